"""Labels of figures: apart from each other, whole or with an ellipsis, from right to left too."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
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

LONG = "incomprehensibilities" * 8
SENTENCE = "an incomprehensible sentence that goes on " * 6


def into_axes(draw: Callable[[Any], object]) -> Figure:
    figure = Figure(figsize=(5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.subplots())
    return figure


def alignment(**options: Any) -> Figure:
    return plot_alignment(torch.rand(3, 4), ["a", LONG, "c"], ["x", LONG, "y", "z"], **options)


def groups(**options: Any) -> Figure:
    names = [LONG, *"abcdefgh"]
    return plot_embeddings(torch.randn(9, 5), names, groups=names, **options)


def cost(**options: Any) -> Figure:
    return plot_cost([1, 2, 4], {LONG: [1, 2, 3]}, ylabel=SENTENCE, **options)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: alignment(title=LONG),
        lambda: into_axes(lambda ax: alignment(ax=ax, title=SENTENCE)),
        groups,
        lambda: into_axes(lambda ax: groups(ax=ax)),
        cost,
        lambda: plot_image_attention(torch.rand(12, 30), torch.rand(2, 4, 10), [LONG, "two"]),
        lambda: plot_glimpses(torch.rand(20, 20), [[0, 0]], [4], title=SENTENCE),
    ],
)
def test_long_labels_leave_room_for_the_picture(draw: Callable[[], Figure]) -> None:
    figure = draw()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that collapses is a warning
        figure.draw_without_rendering()
    inches = figure.axes[0].get_window_extent().size / figure.dpi
    assert inches.min() > 0.5
    whole = figure.bbox.padded(3)
    for text in figure.findobj(Text):
        if text.get_visible() and any(map(str.isalpha, text.get_text())):
            box = text.get_window_extent()
            assert whole.containsx(box.x0) and whole.containsx(box.x1), text
            assert whole.containsy(box.y0) and whole.containsy(box.y1), text


def test_a_long_label_has_an_ellipsis_in_its_middle() -> None:
    assert fonts.shortened("abcdefgh", 8) == "abcdefgh"
    assert fonts.shortened("abcdefgh", 7) == "abc…fgh"
    assert fonts.shortened("abcdefgh", 1) == "…"
    assert fonts.columns(fonts.shortened("注意" * 9, 9)) <= 9
    for most in range(1, 20):
        assert fonts.columns(fonts.shortened("a注b意" * 4, most)) <= most


def test_lines_break_between_words() -> None:
    assert fonts.wrapped("to be or not\nto be", 8) == "to be or\nnot\nto be"
    assert fonts.wrapped("incomprehensible", 8) == "incompre\nhensible"
    assert fonts.wrapped("注意注意", 4) == "注意\n注意" and fonts.wrapped("", 4) == ""


def test_labels_of_a_crowd_do_not_lie_on_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(60, 3, generator=generator)
    names = [f"{'word' * (1 + i % 3)}{i}" for i in range(60)]
    figure = plot_embeddings(vectors, [*names[:-1], ""], groups=[name[-1] for name in names])
    figure.draw_without_rendering()
    (ax,) = figure.axes
    texts = [text for text in ax.texts if text.get_text()]
    assert [text.get_text() for text in texts] == names[:-1]
    boxes = [Text.get_window_extent(text) for text in texts]  # without the line to the point
    boxes.append(ax.get_legend().get_window_extent())
    overlapping = [pair for pair in combinations(boxes, 2) if pair[0].padded(-1).overlaps(pair[1])]
    assert not overlapping
    for text, box in zip(texts, boxes, strict=False):
        x, y = ax.transData.transform(text.xy)
        apart = np.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1))
        assert apart < 70 * figure.dpi / 72


def test_one_map_has_one_look() -> None:
    maps = [
        plot_embeddings(torch.arange(60.0).view(20, 3).sin(), [f"w{i}" for i in range(20)])
        for _ in range(2)
    ]
    first, second = ([text.get_position() for text in m.axes[0].texts] for m in maps)
    assert first == second


@pytest.mark.parametrize("text", ["שלום", "عالم", "a שלום"])
def test_text_from_right_to_left_is_right_or_a_warning(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    for shapes in (True, False):
        monkeypatch.setattr(fonts, "SHAPES", shapes)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plot_alignment([[1.0]], [text], ["left"])
        said = [str(each.message) for each in caught]
        assert bool(said) == (not shapes)
        assert all("runs from right to left in the wrong order; 3.11 draws it" in s for s in said)
        assert all(each.filename == __file__ for each in caught)
