"""Arrays for figures: lists of steps, gradients, narrow dtypes; and refusals of the rest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from attnkernels.measure.ticks import ticks
from attnkernels.viz import (
    plot_alignment,
    plot_cost,
    plot_embeddings,
    plot_glimpses,
    plot_image_attention,
)

Q, K = ["a", "b", "c"], ["w", "x", "y", "z"]
V, N = torch.randn(9, 5), ["a"] * 9


def steps(dtype: torch.dtype, *shape: int) -> list[torch.Tensor]:
    return [torch.rand(shape, dtype=dtype, requires_grad=True) * 1 for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_takes_lists_of_steps_with_gradients(dtype: torch.dtype) -> None:
    given = steps(dtype, 4)
    drawn = plot_alignment(given, Q, K).axes[0].images[0].get_array()
    assert np.array_equal(drawn, torch.stack(given).detach().double())
    plot_alignment(tuple(given), Q, K)
    plot_image_attention(torch.rand(8, 8), steps(dtype, 2, 2), Q)
    plot_glimpses(torch.rand(8, 8), [x / 2 for x in steps(dtype, 2)], [2])
    plot_embeddings(steps(dtype, 5), Q)
    series = {
        "tensor": torch.tensor([1.0, 2.0], dtype=dtype).requires_grad_(),
        "list": given[0][:2],
    }
    series["with None"] = [given[0][0], None]
    lines = plot_cost([1, 2], series, ylabel="seconds").axes[0].lines
    assert [len(line.get_ydata()) for line in lines] == [2, 2, 1]


REFUSALS: list[tuple[Callable[[], Figure], str]] = [
    (
        lambda: plot_alignment(torch.rand(2, 3, 4), Q, K),
        r"shape \(2, 3, 4\): .* as in weights\[0\]$",
    ),
    (lambda: plot_alignment(torch.rand(2, 5, 3, 4), Q, K), r"as in weights\[0, 0\]$"),
    (
        lambda: plot_alignment(steps(torch.float32, 2, 4), Q, K),
        r"shape \(3, 2, 4\): take one of the batch, as in \[x\[0\] for x in weights\]$",
    ),
    (lambda: plot_alignment(torch.rand(4), Q, K), r"got shape \(4,\)$"),
    (lambda: plot_alignment(torch.rand(0, 3, 4), Q, K), r"got shape \(0, 3, 4\)$"),
    (lambda: plot_embeddings(torch.rand(2, 9, 5), N), r"as in vectors\[0\]$"),
    (lambda: plot_glimpses(torch.rand(8, 8), torch.zeros(5, 4, 2), [4]), r"as in locations\[0\]$"),
    (lambda: plot_glimpses(torch.rand(2, 1, 8, 8), [[0, 0]], [4]), r"as in image\[0\]$"),
    (lambda: plot_glimpses(torch.rand(1, 8, 8), [[0, 0]], [4]), r"\(1, 8, 8\): take image\[0\]$"),
    (
        lambda: plot_image_attention(torch.rand(3, 8, 8), torch.rand(3, 2, 2), Q),
        r"\(3, 8, 8\): image.permute\(1, 2, 0\) puts the channels last$",
    ),
    (lambda: plot_glimpses(torch.rand(8, 8, 4), [[0, 0]], [4]), r"image\[..., :3\] drops alpha$"),
    (lambda: plot_glimpses(torch.rand(8, 8, 1), [[0, 0]], [4]), r"take image\[..., 0\]$"),
    (
        lambda: plot_cost([1, 2], {"a": [None] * 2, "b": [None] * 2}, ylabel="s"),
        "series must have one cost or more, got only None",
    ),
    (lambda: plot_embeddings(torch.full((9, 5), 0.1), N), "must not all be equal, got 9 equal"),
    (lambda: plot_embeddings(torch.zeros(9, 5), N, method="tsne"), "must not all be equal"),
]


@pytest.mark.parametrize("call, message", REFUSALS)
def test_refusals(call: Callable[[], Figure], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("scale", [1e-200, 1e200, 1e308])
def test_the_scale_of_vectors_does_not_matter(scale: float) -> None:
    drawn = []
    for factor in (1.0, scale):
        (ax,) = plot_embeddings(V.double().tanh() * factor, N).axes
        assert "nan" not in ax.get_xlabel()
        drawn.append((np.abs(ax.collections[0].get_offsets()), ax.get_xlabel()))
    assert np.allclose(drawn[0][0], drawn[1][0], rtol=1e-6) and drawn[0][1] == drawn[1][1]


def test_a_pair_has_the_colour_of_its_method_and_the_style_of_its_variant() -> None:
    pairs = [(method, part) for method in ("naive", "fused") for part in ("forward", "both")]
    series = {pair: [1.0 + place, 2.0] for place, pair in enumerate(pairs)}
    (ax,) = plot_cost([1, 2], series | {"plain": [3, 4]}, ylabel="s").axes
    looks = [(line.get_color(), line.get_linestyle()) for line in ax.lines]
    assert looks[0][0] == looks[1][0] != looks[2][0] == looks[3][0]
    assert looks[0][1] == looks[2][1] != looks[1][1] == looks[3][1]
    assert len(set(looks)) == 5
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == [*(", ".join(pair) for pair in pairs), "plain"]


@pytest.mark.parametrize("costs", [[3.0, 4.0], [1.01, 1.02], [5.0, 5.0], [1.0, 1e9], [2e-5, 9e-5]])
def test_an_axis_has_two_ticks_or_more(costs: list[float]) -> None:
    figure = plot_cost([1, 2], {"a": costs}, ylabel="seconds")
    figure.draw_without_rendering()
    (ax,) = figure.axes
    low, high = ax.get_ylim()
    shown = [
        label.get_text()
        for tick, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
        if low <= tick <= high and label.get_text()
    ]
    assert len(set(shown)) >= 2


@pytest.mark.parametrize(
    "low, high, wanted",
    [
        (0.5, 200.0, [1, 10, 100]),
        (3.0, 30.0, [5, 10, 20]),
        (3.0, 4.5, [3, 4]),
        (3.1, 3.9, [3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7, 3.8, 3.9]),
        (8.5, 9.5, [8.5, 8.6, 8.7, 8.8, 8.9, 9, 9.1, 9.2, 9.3, 9.4, 9.5]),
    ],
)
def test_ticks_are_round(low: float, high: float, wanted: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(wanted)
    assert ticks(low, high, [3.2, 3.3]) == ([3.2, 3.3] if low < 3.2 and high > 3.3 else
        pytest.approx(wanted))  # fmt: skip
