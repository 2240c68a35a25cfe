"""Draw attention over an image, word by word or glimpse by glimpse."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch.nn import functional

from .figures import INK, WEIGHTS, NotebookFigure, attention_weights, axes_or_new, numbers, strings
from .fonts import as_given, shortened, wrapped

PANEL = 1.9  # width of one panel in inches
COLUMNS = 6  # of panels, by default
LETTERS, LINES = 21, 3  # of the word over a panel, at most
HINTS = {  # by the number of channels, negative if they come last
    1: ": take image[0]",
    3: ": image.permute(1, 2, 0) puts the channels last",
    4: ": image[:3].permute(1, 2, 0) drops alpha and puts the channels last",
    -1: ": take image[..., 0]",
    -4: ": image[..., :3] drops alpha",
}
LIGHT, IMAGE = 0.65, 0.65  # parts of the colours of the weights and of the image in their sum
SMOOTH = 256  # pixels of a panel's longer side, at least
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

    Each word has a panel: the image plus the colours of the weights of the word, scaled to its
    size. All panels share these colours, which run from 0 to the largest weight.

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
    words = [wrapped(shortened(word, LINES * LETTERS), LETTERS) for word in words]
    height = PANEL * picture.shape[0] / picture.shape[1]
    height += 0.25 * (1 + max(word.count("\n") for word in words)) + 0.2
    figure = NotebookFigure(PANEL * columns + 0.9, height * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    over = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
    most = weights.max() or 1.0
    shades = ListedColormap(LIGHT * matplotlib.colormaps[WEIGHTS](np.linspace(0, 1, 256))[:, :3])
    for at, panel in enumerate(panels.flat):
        panel.set_axis_off()
        if at >= len(words):
            continue
        panel.imshow(_lit(picture, weights[at] / most, shades), extent=over)
        panel.set_title(words[at], fontsize=10, color=INK, **as_given([words[at]]))
        if centres is not None:
            cross = panel.plot(*centres[at], marker="x", color="white", clip_on=False)
            cross[0].set_path_effects(OUTLINE)
    bar = ScalarMappable(Normalize(0.0, most), shades)
    figure.colorbar(bar, ax=panels, label="weight", fraction=0.05, pad=0.02, aspect=30)
    return figure


def _lit(picture: np.ndarray, shares: np.ndarray, shades: Colormap) -> np.ndarray:
    """Return the sum (H', W', 3) of the image and the shades of `shares`, clipped to [0, 1].

    A blend by transparency would dim the image wherever the weights are small.
    """
    fine = ceil(SMOOTH / max(picture.shape[:2]))  # a smooth map over a small image
    image = picture.astype(np.float64)
    if image.ndim == 2:
        image = (image - image.min()) / (np.ptp(image) or 1.0)
        image = np.repeat(image[..., None], 3, -1)
    elif picture.dtype == np.uint8:
        image /= 255
    image = image.repeat(fine, 0).repeat(fine, 1)
    size = image.shape[:2]
    smooth = functional.interpolate(
        torch.from_numpy(shares)[None, None], size, mode="bilinear", align_corners=False
    )
    return np.clip(IMAGE * image + shades(smooth[0, 0].numpy())[..., :3], 0, 1)


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
        inches = ax.get_position().width * figure.get_size_inches()[0]
        title = wrapped(title, inches / (11 * 0.65 / 72))
        ax.set_title(title, color=INK, fontsize=11, **as_given([title]))
    return figure


def _picture(image: Any) -> np.ndarray:
    shape = "(H, W) or (H, W, 3)"
    found = numbers("image", image, shape, 2, 3)
    if found.ndim == 3:
        if found.shape[2] != 3:
            hint = HINTS.get(found.shape[0]) or HINTS.get(-found.shape[2], "")
            raise ValueError(f"image must be {shape}, got shape {found.shape}{hint}")
        if found.dtype.kind == "f":
            if found.min() < 0 or found.max() > 1:
                raise ValueError(
                    f"image must hold colours in [0, 1], got {found.min():g} to {found.max():g}"
                )
        elif found.dtype != np.uint8:
            raise TypeError(f"image must be uint8 or floating in [0, 1], got {found.dtype}")
    return found
