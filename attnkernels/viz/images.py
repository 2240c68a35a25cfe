"""Draw attention over an image, word by word or glimpse by glimpse."""

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

PANEL = 1.9  # width of one panel in inches
COLUMNS = 6  # of panels, by default
OUTLINE = [withStroke(linewidth=2.5, foreground="black")]


def plot_image_attention(
    image: Any,
    weights: Any,
    words: Sequence[str],
    *,
    columns: int | None = None,
    centres: Any = None,
) -> Figure:
    """Draw the weights of each word of a caption (Xu et al., 1502.03044, figures 2 and 3).

    Each word has a panel: the image, under the weights of the word scaled to its size. All panels
    share their colours, which run from 0 to the largest weight.

    Args:
        image: (H, W) in grey, scaled from its darkest to its brightest value, or (H, W, 3) in
            colour: uint8, or floating in [0, 1].
        weights: (T, h, w), non-negative: one map per word, whose cells cover the image evenly. A
            one-hot map is a hard choice.
        words: T strings.
        columns: panels per row; by default the smaller of 6 and T.
        centres: (T, 2), the (x, y) of a cross per panel, in pixels from the centre of the first
            pixel; None for no crosses.

    Returns:
        A new figure.

    Raises:
        TypeError: image, weights or centres are not numbers, or a word is not a string.
        ValueError: a shape does not fit, weights are negative, or columns is not positive.
    """
    picture = _picture(image)
    weights = attention_weights(weights, "(T, h, w)", 3)
    words = strings("words", words, len(weights), "each map of weights")
    if columns is None:
        columns = min(COLUMNS, len(words))
    if not isinstance(columns, int) or columns < 1:
        raise ValueError(f"columns must be an int of at least 1, got {columns!r}")
    if centres is not None:
        centres = numbers("centres", centres, "(T, 2)", 2)
        if centres.shape != (len(words), 2):
            raise ValueError(
                f"centres must be (T, 2) = ({len(words)}, 2), got shape {centres.shape}"
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
    """Draw the path of a model that sees one glimpse at a time (Mnih et al., 1406.6247, figure 3).

    Glimpses are numbered from 1 and become brighter; each has one square per scale.

    Args:
        image: (H, W) or (H, W, 3), as in `plot_image_attention`.
        locations: (T, 2), the (x, y) of the centre of each glimpse in [-1, 1]. (-1, -1) is the
            outer corner of the first pixel, (1, 1) that of the last, (0, 0) the image centre.
        sizes: the side of the window at each scale, in pixels.
        ax: axes to draw into; by default those of a new figure.
        title: the title of the figure.

    Returns:
        The new figure, or the figure of `ax`.

    Raises:
        TypeError: image, locations or sizes are not numbers, or ax is not matplotlib Axes.
        ValueError: a shape does not fit, a location is outside [-1, 1], or a size is not positive.
    """
    picture = _picture(image)
    path = numbers("locations", locations, "(T, 2)", 2)
    if path.shape[1] != 2:
        raise ValueError(f"locations must be (T, 2), got shape {path.shape}")
    if np.abs(path).max() > 1:
        raise ValueError(f"locations must lie in [-1, 1], got {path.flat[np.abs(path).argmax()]:g}")
    windows = numbers("sizes", sizes, "(scales,)", 1)
    if windows.min() <= 0:
        raise ValueError(f"sizes must be positive numbers of pixels, got {windows.min():g}")

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
            raise ValueError(f"image must be {shape}, got shape {found.shape}")
        if found.dtype.kind == "f":
            if found.min() < 0 or found.max() > 1:
                raise ValueError(
                    f"image must hold colours in [0, 1], got {found.min():g} to {found.max():g}"
                )
        elif found.dtype != np.uint8:
            raise TypeError(f"image must be uint8 or floating in [0, 1], got {found.dtype}")
    return found
