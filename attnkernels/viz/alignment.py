"""Draw which input each output attended to (Bahdanau et al., 1409.0473, figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import FAINT, INK, WEIGHTS, attention_weights, axes_or_new, strings
from .fonts import as_given, columns, shortened, visible, wrapped

LARGE, SMALL = 0.3, 0.1  # inches per token, with few tokens and with many
SIDE = 9.0  # inches per side, between those two
MOST_LABELS = 400  # per side; beyond that every second token is labelled, or every third, ...
BAR = 0.18  # width of the colour bar in inches
FONT, TITLE = 10.0, 11.0  # points; of tokens, at most
LETTER = 0.65 / 72  # width of a letter in inches per point
UPRIGHT = 2  # columns of a label that is not rotated
LONGEST, SHORTEST = 60, 3  # columns of a label, at most and if there is hardly any room
PART = 0.4  # of the side of given axes, for labels


def plot_alignment(
    weights: Any,
    queries: Sequence[str],
    keys: Sequence[str],
    *,
    ax: Axes | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the weights of every query over all keys: one row per query, one column per key.

    The colours run from 0 to the largest weight, which the colour bar shows. The figure grows with
    the number of tokens and the labels shrink; up to 400 tokens per side, every one has a label. A
    label that is too long has an ellipsis in its middle.

    Args:
        weights: (n, m), a tensor or an array of non-negative numbers: one row per query.
        queries: n tokens (words or characters of any script; those from right to left need
            matplotlib 3.11): the output, from top to bottom.
        keys: m tokens: the input, from left to right. A space is shown as "␣".
        ax: axes to draw into, which keep their size; by default those of a new figure.
        title: the title of the figure.

    Returns:
        The new figure, or the figure of `ax`.

    Raises:
        TypeError: weights are not numbers, tokens are not strings, or ax is not matplotlib Axes.
        ValueError: weights are not (n, m), not finite or negative, or the number of tokens differs.
    """
    weights = attention_weights(weights, "(n, m)", 2)
    n, m = weights.shape
    queries = [visible(each) for each in strings("queries", queries, n, "each row of weights")]
    keys = [visible(each) for each in strings("keys", keys, m, "each column of weights")]
    turned = max(map(columns, keys)) > UPRIGHT
    cell = max(SMALL, min(LARGE, SIDE / max(n, m)))
    if ax is None:
        queries, keys = ([shortened(x, LONGEST) for x in tokens] for tokens in (queries, keys))
        left, above = max(map(columns, queries)), max(map(columns, keys))
        letter = LETTER * _font(cell)
        width = cell * min(m, MOST_LABELS) + letter * left + 1.4  # of the bar and the axis' name
        height = cell * min(n, MOST_LABELS) + letter * (above if turned else 2) + 0.8
        width, height = max(width, 3.0), max(height, 1.6)
        if title is not None:
            title = wrapped(title, (width - letter * left) / (LETTER * TITLE))  # over the weights
            height += 0.2 * title.count("\n")
        figure, ax = axes_or_new(None, width, height)
    else:
        figure, ax = axes_or_new(ax, 0, 0)
        box = ax.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
        cell = min(box.width / m, box.height / n)
        letter = LETTER * _font(cell)
        if title is not None:
            letters = box.width / (LETTER * TITLE)
            title = wrapped(shortened(title, 2 * letters), letters)
        most = (max(SHORTEST, PART * side / letter) for side in (box.width, box.height))
        queries, keys = (
            [shortened(token, letters) for token in tokens]
            for tokens, letters in zip((queries, keys), most, strict=True)
        )

    image = ax.imshow(
        weights,
        cmap=WEIGHTS,
        aspect="auto",
        vmin=0.0,
        vmax=weights.max() or 1.0,
        interpolation="nearest",
    )
    bar = {"fraction": 0.05, "pad": 0.02, "aspect": max(10.0, cell * n / BAR)}
    figure.colorbar(image, ax=ax, label="weight", **bar).outline.set_visible(False)
    across, down = (range(0, size, ceil(size / MOST_LABELS)) for size in (m, n))
    style: dict[str, Any] = {"fontsize": _font(cell), "color": INK}
    ax.xaxis.set_ticks_position("top")
    ax.xaxis.set_label_position("top")
    shown = [keys[j] for j in across]
    ax.set_xticks(across, shown, rotation=90 if turned else 0, **style, **as_given(shown))
    shown = [queries[i] for i in down]
    ax.set_yticks(down, shown, **style, **as_given(shown))
    ax.tick_params(length=0, pad=2)
    ax.set_xlabel("input (keys)", color=FAINT, fontsize=9)
    ax.set_ylabel("output (queries)", color=FAINT, fontsize=9)
    ax.spines[:].set_visible(False)
    if title is not None:
        ax.set_title(title, color=INK, fontsize=TITLE, **as_given([title]))
    return figure


def _font(cell: float) -> float:
    """Return the font size in points for tokens of `cell` inches."""
    return max(1.0, min(FONT, 0.75 * 72 * cell))
