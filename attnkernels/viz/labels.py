"""Place labels beside their points, apart from each other."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sin
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .figures import FAINT, INK
from .fonts import as_given

MOST = 500  # beyond that, labels lie on each other wherever they are
RADII = (4, 9, 15, 22, 30, 40, 52, 66)  # of the places that are tried, in points
ANGLES = [pi / 4 + k * pi / 8 for k in (0, 4, -4, 8, -2, 2, 6, -6, *range(-7, 8, 2))]
NEAR = RADII[1]  # a label that is farther away has a line to its point
POINT = 3.0  # half the side of a point


def place(ax: Axes, points: np.ndarray, labels: Sequence[str], fontsize: float) -> None:
    """Annotate points (N, 2) with their labels where they cover the least of what is there.

    The first places tried are close to the upper right. The axes must have their final limits.
    """
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": fontsize, "color": INK}
    texts = [
        ax.annotate(label, point, xytext=(RADII[0], RADII[0]), **style, **as_given([label]))
        for point, label in zip(points, labels, strict=True)
        if label
    ]
    if len(texts) > MOST:
        return
    figure = ax.figure.figure
    figure.draw_without_rendering()  # lays the figure out
    unit = figure.dpi / 72
    centres = ax.transData.transform(points) / unit
    at = np.array([text.xy for text in texts]).reshape(-1, 2)
    at = ax.transData.transform(at) / unit
    extents = [text.get_window_extent() for text in texts]
    sizes = np.array([(box.width, box.height) for box in extents]).reshape(-1, 2) / unit
    inside = ax.get_window_extent()
    frame = np.array([[*inside.min, *inside.max]]) / unit
    taken = np.concatenate([centres - POINT, centres + POINT], 1)  # boxes: left, bottom, right, top
    if (legend := ax.get_legend()) is not None:
        box = legend.get_window_extent()
        taken = np.concatenate([taken, np.array([[*box.min, *box.max]]) / unit])
    apart = np.abs(at[:, None] - at[None]).max(-1)
    for k in np.argsort(np.sort(apart, 1)[:, : 1 + min(5, len(at) - 1)].sum(1)):  # crowded first
        ends, corners = _places(at[k], sizes[k])
        radii = np.hypot(*(ends - at[k]).T)
        boxes = np.concatenate([corners, corners + sizes[k]], 1)
        outside = np.prod(sizes[k]) - _shared(boxes, frame)[:, 0]
        covered = _shared(boxes, taken).sum(1) + outside
        best = int(np.argmin(covered + 1e-3 * radii))
        texts[k].set_position(corners[best] - at[k])
        if radii[best] > 1.01 * NEAR:
            line = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
            end = ends[best] - at[k]
            ax.annotate("", texts[k].xy, xytext=end, textcoords="offset points", arrowprops=line)
        taken = np.concatenate([taken, boxes[best : best + 1]])


def _places(point: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each place that is tried the end nearest to the point and the lower left corner.

    Both are (P, 2).
    """
    ways = np.array([(cos(angle), sin(angle)) for angle in ANGLES])
    ends = point + np.concatenate([radius * ways for radius in RADII])
    return ends, ends - np.tile((1 - ways) / 2, (len(RADII), 1)) * size


def _shared(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the areas (P, Q) that boxes (P, 4) share with others (Q, 4)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), -1)
