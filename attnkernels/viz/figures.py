"""What all pictures share: figures without pyplot, colours that everyone tells apart, checks."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with every common colour vision; yellow, faint on white, last.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
    "#F0E442",
)
MARKERS = "osD^vP*"  # not as many as colours: 56 pairs come before the first comes again
INK, FAINT = "#333333", "#767676"
WEIGHTS = "cividis"  # the colour map of weights: even in lightness, and made for colour blindness


class NotebookFigure(Figure):
    """A figure that a notebook shows by itself.

    pyplot would have that done too, but keeps every figure until someone closes it.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        png = BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def axes_or_new(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """The axes given, or new ones on a figure of this size in inches; with the figure."""
    if ax is None:
        figure = NotebookFigure(width, height)
        return figure, figure.subplots()
    if not isinstance(ax, Axes):
        raise TypeError(f"ax is a {type(ax).__name__}; it must be matplotlib Axes")
    return ax.figure.figure, ax  # of a subfigure, too, the figure that is saved


def numbers(name: str, x: Any, shape: str, *ndims: int) -> np.ndarray:
    """`x`, a tensor of any device or anything like an array, as finite numbers of `ndims`.

    Raises:
        TypeError: it does not hold numbers.
        ValueError: it has other dimensions (`shape` says which are wanted), is empty, or has NaN
            or infinities.
    """
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()  # numpy has no bfloat16
    try:
        found = np.asarray(x)
    except ValueError:
        raise ValueError(f"{name} has rows of different lengths; it must be {shape}") from None
    if found.dtype.kind not in "biuf":
        raise TypeError(f"{name} holds {found.dtype}; it must hold real numbers")
    if found.ndim not in ndims or not found.size:
        raise ValueError(f"{name} has shape {found.shape}; it must be {shape}, and not empty")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} has NaN or infinities; all must be finite")
    return found


def attention_weights(x: Any, shape: str, ndim: int) -> np.ndarray:
    """`numbers` that are not negative, as float64."""
    found = numbers("weights", x, shape, ndim).astype(np.float64)
    if found.min() < 0:
        raise ValueError(f"weights has {found.min():.3g}; weights are not negative (logarithms?)")
    return found


def strings(name: str, given: Sequence[str], count: int, of: str) -> list[str]:
    """`given` as a list of `count` strings, one for each `of`.

    Raises:
        TypeError: something in it is no string.
        ValueError: there are fewer or more.
    """
    found = list(given)
    wrong = [each for each in found if not isinstance(each, str)]
    if wrong:
        raise TypeError(f"{name} has a {type(wrong[0]).__name__}; all must be strings")
    if len(found) != count:
        raise ValueError(f"{name} has {len(found)} strings; there must be {count}, one for {of}")
    return found
