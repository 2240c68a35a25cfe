"""Shared by all figures: creation without pyplot, and the checks of their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..measure.palette import AMBER, BLACK, BLUE, GREEN, ORANGE, PINK, SKY, YELLOW
from ..measure.palette import FAINT as FAINT
from ..measure.palette import INK as INK

COLOURS = (BLUE, ORANGE, GREEN, AMBER, PINK, SKY, BLACK, YELLOW)  # faint on white comes last
MARKERS = "osD^vP*"  # one fewer than the colours, which makes 56 distinct pairs
WEIGHTS = "cividis"  # the colour map of weights: perceptually uniform, safe for colour blindness


class NotebookFigure(Figure):
    """A figure that a notebook displays directly.

    pyplot would do that too, but it keeps every figure alive until it is closed.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        png = BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def axes_or_new(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """Return the figure and `ax`, or new axes on a figure of this size in inches."""
    if ax is None:
        figure = NotebookFigure(width, height)
        return figure, figure.subplots()
    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be matplotlib Axes, got {type(ax).__name__}")
    return ax.figure.figure, ax  # the outer figure, also for the axes of a subfigure


def numbers(name: str, x: Any, shape: str, *ndims: int) -> np.ndarray:
    """Convert `x`, a tensor on any device or an array-like, to an array of finite numbers.

    Raises:
        TypeError: x does not hold real numbers.
        ValueError: x has another number of dimensions than `ndims` (`shape` describes them for the
            message), is empty, or holds NaN or infinities.
    """
    steps = isinstance(x, (list, tuple))
    try:
        found = np.asarray(_plain(x))
    except ValueError:
        raise ValueError(f"{name} must be {shape}, got rows of different lengths") from None
    if found.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got {found.dtype}")
    if found.ndim not in ndims or not found.size:
        hint = _of_a_batch(name, found.ndim - max(ndims), steps) if found.size else ""
        raise ValueError(f"{name} must be {shape} and not empty, got shape {found.shape}{hint}")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite, got NaN or infinities")
    return found


def _plain(x: Any) -> Any:
    """Return what NumPy converts: tensors in lists too, without gradients, on the CPU."""
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        narrow = x.is_floating_point() and x.dtype.itemsize <= 2  # NumPy has no bfloat16
        return (x.float() if narrow else x).numpy()
    return [_plain(each) for each in x] if isinstance(x, (list, tuple)) else x


def _of_a_batch(name: str, more: int, steps: bool) -> str:
    """Return the rest of a sentence that shows how to select one of a batch."""
    if more < 1:
        return ""
    first = ", ".join(["0"] * more)
    taken = f"[x[{first}] for x in {name}]" if steps else f"{name}[{first}]"
    return f": take one of the batch, as in {taken}"


def attention_weights(x: Any, shape: str, ndim: int) -> np.ndarray:
    """Convert `x` as `numbers` does, to float64, and check that nothing is negative."""
    found = numbers("weights", x, shape, ndim).astype(np.float64)
    if found.min() < 0:
        raise ValueError(f"weights must not be negative, got {found.min():.3g} (logarithms?)")
    return found


def strings(name: str, given: Sequence[str], count: int, of: str) -> list[str]:
    """Convert `given` to a list of `count` strings, one for each `of`.

    Raises:
        TypeError: an entry is not a string.
        ValueError: there are fewer or more than `count`.
    """
    found = list(given)
    wrong = [each for each in found if not isinstance(each, str)]
    if wrong:
        raise TypeError(f"{name} must be strings, got a {type(wrong[0]).__name__}")
    if len(found) != count:
        raise ValueError(f"{name} must have {count} strings, one for {of}, got {len(found)}")
    return found
