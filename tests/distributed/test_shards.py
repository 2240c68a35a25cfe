"""Which rows each rank holds, in which pieces, and which pieces see each other."""

from __future__ import annotations

import pytest
import torch

from attnkernels.distributed.shards import Rows, Window, cut, even_sizes, shards


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("sizes", [(8, 8), (5, 0, 7), (1, 2, 3, 4), (0, 0), (1,)], ids=str)
def test_every_row_is_held_once(sizes: tuple[int, ...], balanced: bool) -> None:
    held = shards(sizes, balanced)
    for rank, size in enumerate(sizes):
        own = [i for rows in held[rank] for i in range(rows.here.start, rows.here.stop)]
        assert own == list(range(size))
    places = [i for each in held for rows in each for i in range(rows.whole.start, rows.whole.stop)]
    assert sorted(places) == list(range(sum(sizes)))


def test_the_balanced_layout() -> None:
    """Fronts by rank, then backs from the last rank to the first: equal work where causal."""
    held = shards((4, 4, 4), balanced=True)
    starts = [[rows.start for rows in each] for each in held]
    assert starts == [[0, 10], [2, 8], [4, 6]]
    seen = [
        sum(
            1
            for rows in each
            for i in range(rows.start, rows.start + rows.length)
            for _ in range(i + 1)
        )
        for each in held
    ]
    assert len(set(seen)) == 1


def test_even_sizes_are_those_of_tensor_split() -> None:
    for count, ranks in ((10, 3), (2, 4), (0, 2), (12, 4)):
        wanted = [len(x) for x in torch.arange(count).tensor_split(ranks)]
        assert even_sizes(count, ranks) == wanted


def test_pieces() -> None:
    held = [Rows(100, 0, 300), Rows(900, 300, 0), Rows(1000, 300, 70)]
    found = cut(held, parts=3, least=1)
    assert found == [
        Rows(100, 0, 128),
        Rows(1000, 300, 70),
        Rows(228, 128, 128),
        Rows(356, 256, 44),
    ]
    assert cut(held, parts=3, least=1000) == [held[0], held[2]]


@pytest.mark.parametrize("window", [(None, None), (None, 0), (2, 3), (0, None), (5, 0)], ids=str)
def test_pieces_that_see_each_other(window: tuple[int | None, int | None]) -> None:
    left, right = window
    for q, k in ((q, k) for q in range(0, 24, 3) for k in range(0, 24, 3)):
        some = any(
            (left is None or i - left <= j) and (right is None or j <= i + right)
            for i in range(q, q + 4)
            for j in range(k, k + 3)
        )
        assert Window(left, right).seen(Rows(q, 0, 4), Rows(k, 0, 3)) == some
