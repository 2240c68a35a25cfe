"""Where a model looked in an image: word by word, or glimpse by glimpse."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from .figures import INK, WEIGHTS, NotebookFigure, attention_weights, axes_or_new, numbers, strings
from .fonts import as_given

PANEL = 1.9  # inches of the image of a word
COLUMNS = 6  # of panels, where nobody says
OUTLINE = [withStroke(linewidth=2.5, foreground="black")]


def plot_image_attention(
    image: Any,
    weights: Any,
    words: Sequence[str],
    *,
    columns: int | None = None,
    centres: Any = None,
) -> Figure:
    """Where each word of a caption was read from (Xu et al., 1502.03044, figures 2 and 3).

    A panel a word: the image, and over it the weights of the word, blown up to its size. All panels
    have the same colours, from 0 to the largest weight there is.

    Args:
        image: (H, W) grey, shown from its darkest to its brightest, or (H, W, 3): uint8, or
            floating in [0, 1].
        weights: (T, h, w), at least 0: one map a word. An h x w cell covers as much of the image as
            any other; a map that is 1 somewhere and 0 elsewhere is a hard choice.
        words: T strings.
        columns: panels in a row; 6, or T where that is less.
        centres: (T, 2), where to put a cross: (x, y) in pixels, (0, 0) the centre of the first
            pixel; None for no crosses.

    Returns:
        A new figure.

    Raises:
        TypeError: something is no number, or a word no string.
        ValueError: a shape does not fit, weights are negative, or columns is not positive.
    """
    picture = _picture(image)
    weights = attention_weights(weights, "(T, h, w)", 3)
    words = strings("words", words, len(weights), "each map of weights")
    if columns is None:
        columns = min(COLUMNS, len(words))
    if not isinstance(columns, int) or columns < 1:
        raise ValueError(f"columns is {columns!r}; it must be an int of at least 1")
    if centres is not None:
        centres = numbers("centres", centres, "(T, 2)", 2)
        if centres.shape != (len(words), 2):
            raise ValueError(
                f"centres has shape {centres.shape}; it must be (T, 2), ({len(words)}, 2)"
            )

    rows = ceil(len(words) / columns)
    height = PANEL * picture.shape[0] / picture.shape[1]
    figure = NotebookFigure(PANEL * columns + 0.9, (height + 0.35) * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    over = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
    for at, panel in enumerate(panels.flat):
        panel.set_axis_off()
        if at >= len(words):
            continue
        panel.imshow(picture, cmap="gray")
        drawn = panel.imshow(
            weights[at],
            cmap=WEIGHTS,
            alpha=0.65,
            vmin=0.0,
            vmax=weights.max() or 1.0,
            extent=over,
            interpolation="bilinear",
        )
        panel.set_title(words[at], fontsize=10, color=INK, **as_given([words[at]]))
        if centres is not None:
            cross = panel.plot(*centres[at], marker="x", color="white", clip_on=False)
            cross[0].set_path_effects(OUTLINE)
    figure.colorbar(drawn, ax=panels, label="weight", fraction=0.05, pad=0.02, aspect=30)
    return figure


def plot_glimpses(
    image: Any,
    locations: Any,
    sizes: Sequence[int],
    *,
    ax: Axes | None = None,
    title: str | None = None,
) -> Figure:
    """The path of a model that sees one glimpse at a time (Mnih et al., 1406.6247, figure 3).

    Glimpses are numbered from 1 and grow brighter; each has a square for every scale.

    Args:
        image: (H, W) grey, shown from its darkest to its brightest, or (H, W, 3) as in
            `plot_image_attention`.
        locations: (T, 2), (x, y) in [-1, 1]: the centre of each glimpse. (-1, -1) is the corner of
            the image above its first pixel, (1, 1) the opposite one, (0, 0) the centre.
        sizes: pixels of a side of each scale's window.
        ax: axes to draw into; by default a new figure's.
        title: above the picture.

    Returns:
        The figure; that of `ax` where it is given.

    Raises:
        TypeError: something is no number, or ax no axes.
        ValueError: a shape does not fit, a location is outside [-1, 1], or a size not positive.
    """
    picture = _picture(image)
    path = numbers("locations", locations, "(T, 2)", 2)
    if path.shape[1] != 2:
        raise ValueError(f"locations has shape {path.shape}; it must be (T, 2)")
    if np.abs(path).max() > 1:
        raise ValueError(f"locations has {path.flat[np.abs(path).argmax()]:g}; they are in [-1, 1]")
    windows = numbers("sizes", sizes, "(scales,)", 1)
    if windows.min() <= 0:
        raise ValueError(f"sizes has {windows.min():g}; a window has a positive number of pixels")

    rows, columns = picture.shape[:2]
    figure, ax = axes_or_new(ax, 4.0, 4.0 * rows / columns + (0.4 if title else 0.0))
    ax.imshow(picture, cmap="gray")
    x, y = ((path + 1) / 2 * (columns, rows) - 0.5).T
    ax.plot(x, y, color="white", linewidth=1.5, path_effects=OUTLINE)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.35, 1.0, len(path)))
    for at, (across, down) in enumerate(zip(x, y, strict=True)):
        for window in windows:
            corner = across - window / 2, down - window / 2
            ax.add_patch(
                Rectangle(corner, window, window, fill=False, edgecolor=shades[at], linewidth=1.2)
            )
        ax.text(
            across,
            down,
            str(at + 1),
            color=shades[at],
            fontsize=10,
            weight="bold",
            ha="center",
            va="center",
            path_effects=OUTLINE,
            zorder=3,
        )
    ax.set_xlim(-0.5, columns - 0.5)  # a window may reach beyond the image
    ax.set_ylim(rows - 0.5, -0.5)
    ax.set_axis_off()
    if title is not None:
        ax.set_title(title, color=INK, fontsize=11, **as_given([title]))
    return figure


def _picture(image: Any) -> np.ndarray:
    shape = "(H, W) or (H, W, 3)"
    found = numbers("image", image, shape, 2, 3)
    if found.ndim == 3:
        if found.shape[2] != 3:
            raise ValueError(f"image has shape {found.shape}; it must be {shape}")
        if found.dtype.kind == "f":
            if found.min() < 0 or found.max() > 1:
                raise ValueError(
                    f"image has {found.min():g} to {found.max():g}; colours are in [0, 1]"
                )
        elif found.dtype != np.uint8:
            raise TypeError(f"image is {found.dtype}; colours are uint8, or floating in [0, 1]")
    return found
