"""Draw a map of vectors, such as sentence embeddings (Sutskever et al., figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..extras import needs
from .figures import COLOURS, FAINT, INK, MARKERS, axes_or_new, numbers, strings
from .fonts import as_given, shortened
from .labels import place

METHODS = ("pca", "tsne")
LONGEST = 32  # letters of a label
PERPLEXITY = 30.0  # of t-SNE, as in scikit-learn; smaller for fewer than 91 vectors


def plot_embeddings(
    vectors: Any,
    labels: Sequence[str],
    *,
    method: str = "pca",
    groups: Sequence[str] | None = None,
    seed: int = 0,
    ax: Axes | None = None,
) -> Figure:
    """Draw vectors in two dimensions with their labels (Sutskever et al., 1409.3215, figure 2).

    Args:
        vectors: (N, d), a tensor or an array, N at least 3 and d at least 2.
        labels: N strings of any script; "" for a point without one.
        method: "pca", whose axes show their share of the variance, or "tsne", which keeps
            neighbours together on axes without meaning. The perplexity of t-SNE is the smaller of
            30 and (N - 1) / 3.
        groups: N strings; the points of a group share a colour and a marker, named in the legend.
        seed: seed of the random numbers that both methods use.
        ax: axes to draw into; by default those of a new figure.

    Returns:
        The new figure, or the figure of `ax`.

    Raises:
        ImportError: scikit-learn is not installed; it comes with the extra "viz".
        TypeError: vectors are not numbers, labels or groups are not strings, or ax is not Axes.
        ValueError: a size does not fit, all vectors are equal, or method is unknown.
    """
    vectors = numbers("vectors", vectors, "(N, d)", 2)
    if vectors.shape[0] < 3 or vectors.shape[1] < 2:
        raise ValueError(
            f"vectors must be (N, d), N at least 3, d at least 2, got shape {vectors.shape}"
        )
    labels = strings("labels", labels, len(vectors), "each vector")
    if groups is not None:
        groups = strings("groups", groups, len(vectors), "each vector")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    points, names = _reduce(_scaled(vectors.astype(np.float64)), method, seed)
    labels = [shortened(label, LONGEST) for label in labels]

    figure, ax = axes_or_new(ax, 8.0, 6.4)
    looks = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    for group in [None] if groups is None else dict.fromkeys(groups):
        mine = [group is None or each == group for each in groups or labels]
        colour, marker = next(looks)
        name = None if group is None else shortened(group, LONGEST)
        x, y = points[mine].T
        ax.scatter(x, y, s=28, marker=marker, color=colour, label=name, linewidths=0)
    if groups is not None:
        for text in ax.legend(frameon=False, labelcolor=INK).get_texts():
            text.update(as_given([text.get_text()]))
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel(names[0], color=FAINT, fontsize=9)
    ax.set_ylabel(names[1], color=FAINT, fontsize=9)
    ax.spines[:].set_color("#cccccc")
    ax.margins(0.08)
    place(ax, points, labels, fontsize=8 if len(labels) <= 100 else 6)
    return figure


def _scaled(vectors: np.ndarray) -> np.ndarray:
    """Shift and scale the vectors into [-2, 2], which changes no picture; refuse equal ones."""
    vectors = vectors / (np.abs(vectors).max() or 1.0)
    vectors -= vectors[0].copy()
    largest = np.abs(vectors).max()
    if largest == 0:
        raise ValueError(f"vectors must not all be equal, got {len(vectors)} equal ones")
    return vectors / largest


def _reduce(vectors: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, list[str]]:
    """Return points (N, 2) and the names of the two axes."""
    with needs("viz"):
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    if method == "tsne":
        perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
        reduction = TSNE(perplexity=perplexity, init="pca", random_state=seed)
        return reduction.fit_transform(vectors), ["t-SNE", ""]
    reduction = PCA(2, random_state=seed)
    points = reduction.fit_transform(vectors)
    shares = reduction.explained_variance_ratio_
    return points, [
        f"{which} principal component, {share:.0%} of the variance"
        for which, share in zip(("first", "second"), shares, strict=True)
    ]
