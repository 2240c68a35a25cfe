"""Figures: their contents, text of any script, headless drawing, and refusals."""

from __future__ import annotations

import builtins
import logging
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import _pylab_helpers
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from attnkernels.viz import (
    fonts,
    plot_alignment,
    plot_cost,
    plot_embeddings,
    plot_glimpses,
    plot_image_attention,
)

PNG = b"\x89PNG\r\n"


def saved(figure: Figure, kind: str = "png") -> bytes:
    """Save the figure and return the file; a warning (missing glyph, failed layout) is an error."""
    file = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(file, format=kind)
    return file.getvalue()


def texts(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def alignment(n: int = 3, m: int = 4, **options: Any) -> Figure:
    return plot_alignment(
        torch.rand(n, m), [f"q{i}" for i in range(n)], [f"k{j}" for j in range(m)], **options
    )


def image_attention(**options: Any) -> Figure:
    words = ["one", "$five$", "."]
    return plot_image_attention(torch.rand(12, 30), torch.rand(3, 4, 10), words, **options)


def glimpses(**options: Any) -> Figure:
    return plot_glimpses(torch.rand(20, 40), [[0, 0], [-1, -1], [1, 0.5]], [4, 8], **options)


def embeddings(**options: Any) -> Figure:
    return plot_embeddings(torch.randn(9, 5), [f"${i}" for i in range(9)], **options)


def cost(**options: Any) -> Figure:
    series = {"naive": [1.0, 20.0, None], "fused": [0.5, 2.0, 9.0], "none": [None] * 3}
    return plot_cost([50, 100, 1000], series, ylabel="seconds", **options)


PLOTS: list[Callable[..., Figure]] = [alignment, image_attention, glimpses, embeddings, cost]
INTO_AXES = [plot for plot in PLOTS if plot is not image_attention]


@pytest.mark.parametrize("plot", PLOTS)
def test_is_a_figure_of_its_own_that_a_notebook_shows(plot: Callable[..., Figure]) -> None:
    figure = plot()
    assert saved(figure).startswith(PNG)
    assert b"<svg" in saved(figure, "svg")
    assert figure._repr_png_().startswith(PNG)  # type: ignore[attr-defined]
    assert not _pylab_helpers.Gcf.figs  # pyplot knows of no figure


@pytest.mark.parametrize("plot", INTO_AXES)
def test_draws_into_axes_that_are_given(plot: Callable[..., Figure]) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subfigures(1, 2)
    ax, other = left.subplots(), right.subplots()
    assert plot(ax=ax) is figure
    assert ax.has_data() and not other.has_data()
    assert tuple(figure.get_size_inches()) == (9, 4)
    assert saved(figure).startswith(PNG)
    with pytest.raises(TypeError, match="ax must be matplotlib Axes, got Figure"):
        plot(ax=figure)


def test_alignment_has_rows_of_queries_and_columns_of_keys() -> None:
    weights = torch.tensor([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]], dtype=torch.bfloat16)
    figure = plot_alignment(weights.requires_grad_(), ["a", "b"], ["x", "y", "z"], title="here")
    ax, bar = figure.axes
    assert labels(ax.yaxis) == ["a", "b"] and labels(ax.xaxis) == ["x", "y", "z"]
    drawn = ax.images[0]
    assert np.array_equal(drawn.get_array(), weights.detach().float())
    assert drawn.get_clim() == (0.0, 1.0) and ax.get_title() == "here"
    assert ax.yaxis_inverted()  # the first query is on top
    saved(figure)
    assert bar.get_ylabel() == "weight"
    saved(plot_alignment([[0.0]], [""], ["a"]))  # a row that attends to nothing, and an empty token


def test_alignment_is_legible_at_200_tokens() -> None:
    """Every token has a label, no two labels touch, and none is smaller than 5 points."""
    tokens = ["word" if i % 2 else "Wörter" for i in range(200)]
    figure = plot_alignment(np.eye(200), tokens, tokens)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    for axis, side in ((ax.xaxis, 0), (ax.yaxis, 1)):
        assert labels(axis) == tokens
        boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
        spans = sorted((box.intervalx if side == 0 else box.intervaly).tolist() for box in boxes)
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
        assert min(label.get_fontsize() for label in axis.get_ticklabels()) >= 5
    assert max(figure.get_size_inches()) < 25


def test_alignment_turns_words_and_not_characters() -> None:
    for keys, turned in ((["a", "é…"], 0.0), (["a", "word"], 90.0)):
        figure = plot_alignment(torch.rand(1, 2), ["q"], keys)
        figure.draw_without_rendering()
        rotations = {label.get_rotation() for label in figure.axes[0].get_xticklabels()}
        assert rotations == {turned}


def test_alignment_of_too_many_tokens_labels_some() -> None:
    figure = alignment(1, 1000)
    assert labels(figure.axes[0].xaxis) == [f"k{j}" for j in range(0, 1000, 3)]
    assert max(figure.get_size_inches()) < 50


def test_whitespace_is_seen_and_dollars_are_no_formulas() -> None:
    figure = plot_alignment(torch.rand(2, 4), ["$x_1$", "\\$^"], [" ", "\n", "a\tb", "New York"])
    shown = texts(figure)
    for text in ("$x_1$", "\\$^", "␣", "↵", "a⇥b", "New York"):
        assert text in shown
    for plot in (image_attention, embeddings):
        found = [text for text in plot().findobj(Text) if "$" in text.get_text()]
        assert found and not any(text.get_parse_math() for text in found)


def test_characters_come_from_fonts_that_have_them() -> None:
    """matplotlib ships DejaVu Sans, and other fonts with characters missing from it."""
    borrowed = "⌕"
    for scripts in ("añ", "мир", "ελλ", "שלום", "عالم"):
        assert fonts.as_given([scripts])["fontfamily"] == ["sans-serif"]
    families = fonts.as_given(["a", borrowed])["fontfamily"]
    assert families[0] == "sans-serif" and len(families) == 2
    saved(plot_alignment([[1.0]], [borrowed], [f"a {borrowed}"], title=borrowed))
    saved(plot_embeddings(torch.randn(3, 2), [borrowed, "", "b"], groups=[borrowed, "", "c"]))
    with pytest.warns(UserWarning, match="missing from font"):
        plot_alignment([[1.0]], ["\U000f1234"], ["a"])._repr_png_()  # type: ignore[attr-defined]


def test_image_attention_lays_each_map_over_the_whole_image() -> None:
    weights = torch.zeros(3, 2, 5)
    weights[0, 0, 0], weights[1, 1, 4] = 0.5, 0.25
    words, centres = ["a", "b", "c"], [[0, 1], [29, 11], [4, 4]]
    figure = plot_image_attention(
        torch.rand(12, 30, 3), weights, words, columns=2, centres=torch.tensor(centres)
    )
    saved(figure)
    panels = figure.axes[:4]
    assert [panel.get_title() for panel in panels] == [*words, ""]
    for panel, centre in zip(panels, centres, strict=False):
        assert list(panel.images[0].get_extent()) == [-0.5, 29.5, 11.5, -0.5]
        assert panel.lines[0].get_xydata().tolist() == [centre]
    assert not panels[3].has_data() and figure.axes[4].get_ylim() == (0.0, 0.5)


@pytest.mark.parametrize("coloured", [False, True])
def test_image_and_weights_are_seen_through_each_other(coloured: bool) -> None:
    """A bright pixel is bright whatever its weight, and a weight is seen on black and on white."""
    image = np.zeros((8, 16))
    image[:, 8:] = 1.0
    weights = np.zeros((1, 4, 8))
    weights[0, :2] = 1.0
    given = np.repeat((255 * image).astype(np.uint8)[..., None], 3, -1) if coloured else image
    drawn = plot_image_attention(given, weights, ["a"]).axes[0].images[0].get_array()
    high, wide = drawn.shape[0] // 8, drawn.shape[1] // 16  # pixels of one of the image's
    lightness = drawn @ [0.2126, 0.7152, 0.0722]
    top, bottom = lightness[0], lightness[7 * high]  # under the most and the least weight
    (most_black, most_white), (least_black, least_white) = (
        row[[wide, 14 * wide]] for row in (top, bottom)
    )
    assert least_white > 0.65 and least_white - least_black > 0.5
    assert most_white - most_black > 0.3
    assert most_black - least_black > 0.3 and most_white - least_white > 0.15


def test_glimpses_are_where_the_model_looked() -> None:
    figure = glimpses(title="three")
    saved(figure)
    (ax,) = figure.axes
    wanted = [(19.5, 9.5), (-0.5, -0.5), (39.5, 14.5)]  # of 40 x 20 pixels
    assert [tuple(xy) for xy in ax.lines[0].get_xydata()] == wanted
    squares = [(patch.get_center().tolist(), patch.get_width()) for patch in ax.patches]
    assert squares == [(list(xy), size) for xy in wanted for size in (4, 8)]
    assert [text.get_text() for text in ax.texts] == ["1", "2", "3"]
    assert ax.get_xlim() == (-0.5, 39.5) and ax.get_ylim() == (19.5, -0.5)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_embeddings_keep_groups_apart(method: str) -> None:
    """Three distant clusters stay distant on the map, and one seed always gives one map."""
    vectors = torch.randn(30, 12) + 40 * torch.eye(12)[:3].repeat(10, 1)
    groups = ["x", "y", "$z$"] * 10
    names = [f"n{i}" for i in range(30)]
    maps = []
    for _ in range(2):
        (ax,) = plot_embeddings(vectors, names, method=method, groups=groups, seed=3).axes
        maps.append([np.asarray(dots.get_offsets()) for dots in ax.collections])
        assert [dots.get_label() for dots in ax.collections] == ["x", "y", "$z$"]
        assert len({tuple(dots.get_facecolor()[0]) for dots in ax.collections}) == 3
        assert [text.get_text() for text in ax.texts if text.get_text()] == names
    assert all(np.array_equal(a, b) for a, b in zip(*maps, strict=True))
    centres = [points.mean(0) for points in maps[0]]
    widest = max(np.linalg.norm(p - c, axis=1).max() for p, c in zip(maps[0], centres, strict=True))
    nearest = min(np.linalg.norm(centres[i] - centres[i - 1]) for i in range(3))
    assert nearest > 2 * widest


def test_embeddings_say_how_much_of_the_variance_they_show() -> None:
    vectors = torch.zeros(4, 3)
    vectors[:, 1] = torch.tensor([3.0, -3.0, 0.0, 0.0])
    vectors[:, 2] = torch.tensor([0.0, 0.0, 1.0, -1.0])
    (ax,) = plot_embeddings(vectors, ["a", "b", "c", "d"]).axes
    assert ax.get_xlabel() == "first principal component, 90% of the variance"
    assert ax.get_ylabel() == "second principal component, 10% of the variance"


def test_embeddings_name_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"attnkernels\[viz\]"):
        embeddings()


def test_cost_draws_what_was_run() -> None:
    figure = cost()
    saved(figure)
    (ax,) = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines == {
        "naive": [[50, 1], [100, 20]],
        "fused": [[50, 0.5], [100, 2], [1000, 9]],
        "none": [],
    }
    assert len({(line.get_color(), line.get_marker()) for line in ax.lines}) == 3
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(lines)
    assert ax.get_xscale() == ax.get_yscale() == "log" and ax.get_ylabel() == "seconds"
    assert labels(ax.xaxis) == ["50", "100", "1,000"]


def test_colours_differ_without_colour_vision() -> None:
    """The colour map rises in lightness, visible to every eye; lines differ by marker as well."""
    import matplotlib

    from attnkernels.viz.figures import COLOURS, WEIGHTS

    red, green, blue = matplotlib.colormaps[WEIGHTS](np.linspace(0, 1, 32))[:, :3].T
    assert (np.diff(0.2126 * red + 0.7152 * green + 0.0722 * blue) > 0).all()
    assert len(set(COLOURS)) == 8
    many = {f"m{i}": [1.0 + i, 2.0] for i in range(20)}
    (ax,) = plot_cost([1, 2], many, ylabel="seconds").axes
    assert len({(line.get_color(), line.get_marker()) for line in ax.lines}) == 20
    assert len({line.get_marker() for line in ax.lines[:7]}) == 7
    (ax,) = plot_embeddings(torch.randn(20, 2), [""] * 20, groups=list(many)).axes
    assert len(ax.collections) == 20


W, Q, K = torch.rand(2, 3), ["a", "b"], ["x", "y", "z"]
IMAGE, MAPS = torch.rand(6, 8), torch.rand(2, 3, 4)
V, N = torch.randn(4, 3), ["a", "b", "c", "d"]
REFUSALS: list[tuple[Callable[[], Figure], type[Exception], str]] = [
    (lambda: plot_alignment(W, Q[:1], K), ValueError, "queries must have 2 strings, .* got 1"),
    (lambda: plot_alignment(W, Q, [*K, "w"]), ValueError, "keys must have 3 strings, .* got 4"),
    (lambda: plot_alignment(W, Q, [1, 2, 3]), TypeError, "keys must be strings, got a int"),
    (
        lambda: plot_alignment(W[0], Q, K),
        ValueError,
        r"weights must be \(n, m\) .* got shape \(3,\)",
    ),
    (lambda: plot_alignment(W[:0], [], K), ValueError, "not empty"),
    (lambda: plot_alignment(W.log(), Q, K), ValueError, "must not be neg"),
    (lambda: plot_alignment(W / 0, Q, K), ValueError, "NaN or infinities"),
    (lambda: plot_alignment([["a"]], Q[:1], K[:1]), TypeError, "must hold real numbers"),
    (lambda: plot_alignment([[1.0], [1.0, 2.0]], Q, K), ValueError, "different lengths"),
    (lambda: plot_image_attention(IMAGE, MAPS[0], Q), ValueError, r"must be \(T, h, w\)"),
    (lambda: plot_image_attention(IMAGE, MAPS, K), ValueError, "words must have 2 strings"),
    (lambda: plot_image_attention(IMAGE[0], MAPS, Q), ValueError, "image must be .* got shape"),
    (lambda: plot_image_attention(W[..., None], MAPS, Q), ValueError, "image must be .* got shape"),
    (
        lambda: plot_image_attention(torch.full((2, 2, 3), 2.0), MAPS, Q),
        ValueError,
        r"colours in \[0, 1\]",
    ),
    (
        lambda: plot_image_attention(torch.zeros(2, 2, 3).long(), MAPS, Q),
        TypeError,
        "image must be uint8",
    ),
    (
        lambda: plot_image_attention(IMAGE, MAPS, Q, columns=0),
        ValueError,
        "columns .* got 0",
    ),
    (
        lambda: plot_image_attention(IMAGE, MAPS, Q, centres=V),
        ValueError,
        "centres .* got shape",
    ),
    (lambda: plot_glimpses(IMAGE, V, [3]), ValueError, "locations must be .* got shape"),
    (
        lambda: plot_glimpses(IMAGE, [[0, 1.5]], [3]),
        ValueError,
        "locations must lie .* got 1.5",
    ),
    (lambda: plot_glimpses(IMAGE, [[0, 0]], [3, 0]), ValueError, "sizes must be positive .* got 0"),
    (lambda: plot_embeddings(V, N[:3]), ValueError, "labels must have 4 strings"),
    (lambda: plot_embeddings(V, N, groups=N[:2]), ValueError, "groups must have 4 strings"),
    (lambda: plot_embeddings(V[:2], N[:2]), ValueError, "N at least 3"),
    (
        lambda: plot_embeddings(V, N, method="umap"),
        ValueError,
        "pca, tsne, got .umap",
    ),
    (lambda: plot_cost([2, 1], {"a": [1, 1]}, ylabel="s"), ValueError, "positive and ascend"),
    (lambda: plot_cost([1, 2], {}, ylabel="s"), ValueError, "series must have one method or more"),
    (
        lambda: plot_cost([1, 2], {"a": [1]}, ylabel="s"),
        ValueError,
        r"series\['a'\] .* 2 costs",
    ),
    (lambda: plot_cost([1, 2], {"a": [1, 0]}, ylabel="s"), ValueError, "must hold positive costs"),
]


@pytest.mark.parametrize("call, error, message", REFUSALS)
def test_refusals(call: Callable[[], Figure], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_no_font_is_looked_for_in_vain(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "matplotlib.font_manager"):
        saved(alignment())
        saved(glimpses())
    assert not caplog.records
