"""Which rows of a sequence each rank holds, and the pieces that these are worked on in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, zip_longest
from typing import NamedTuple


class Rows(NamedTuple):
    """Neighbouring rows of a sequence that a rank holds.

    Attributes:
        start: the place of the first in the whole sequence.
        first: its place among the rows of the rank.
        length: the number of rows.
    """

    start: int
    first: int
    length: int

    @property
    def here(self) -> slice:
        """The rows among those of the rank."""
        return slice(self.first, self.first + self.length)

    @property
    def whole(self) -> slice:
        """The rows in the whole sequence."""
        return slice(self.start, self.start + self.length)


def shards(sizes: Sequence[int], balanced: bool) -> list[list[Rows]]:
    """Return the rows of each rank, if it holds `sizes[rank]` of them.

    They follow the order of the ranks. `balanced` gives each rank a part from the front and one
    from the back: first the front parts by rank, then the back parts from the last rank to the
    first. A rank's front part has half of its rows, rounded up.
    """
    if not balanced:
        starts = accumulate(sizes, initial=0)
        return [[Rows(start, 0, size)] for start, size in zip(starts, sizes, strict=False)]
    fronts = [(size + 1) // 2 for size in sizes]
    backs = [size - front for size, front in zip(sizes, fronts, strict=True)]
    begin = list(accumulate(fronts, initial=0))
    ends = list(accumulate(reversed(backs), initial=begin[-1]))[:-1][::-1]
    return [
        [Rows(begin[rank], 0, fronts[rank]), Rows(ends[rank], fronts[rank], backs[rank])]
        for rank in range(len(sizes))
    ]


def even_sizes(count: int, ranks: int) -> list[int]:
    """Return how many of `count` rows each rank holds, as `torch.tensor_split` cuts them."""
    return [count // ranks + (rank < count % ranks) for rank in range(ranks)]


def cut(held: Sequence[Rows], parts: int, least: int) -> list[Rows]:
    """Return the rows of a rank in about `parts` pieces, none of them empty.

    A piece has at least `least` rows where there are as many together, a multiple of 64. Those of a
    front and of a back part alternate: of causal queries, some see either, others the front twice
    as much and the back not at all, and ranks that wait for each other should work alike.
    """
    share = max(-(-sum(rows.length for rows in held) // parts), least)
    step = -(-share // 64) * 64
    each = [
        [
            Rows(rows.start + at, rows.first + at, min(step, rows.length - at))
            for at in range(0, rows.length, step)
        ]
        for rows in held
    ]
    return [piece for some in zip_longest(*each) for piece in some if piece is not None]


class Window(NamedTuple):
    """The sides of a window, where None is no limit; those of `ops.signature.Options`."""

    left: int | None
    right: int | None

    def seen(self, queries: Rows, keys: Rows) -> bool:
        """Return True if one of the queries sees one of the keys."""
        left, right = self.between(queries.start, keys.start)
        some = queries.length > 0 and keys.length > 0
        after = right is None or queries.length + right > 0
        return some and after and (left is None or keys.length + left > 0)

    def between(self, query: int, key: int) -> Window:
        """Return the window of a block whose first query and key are at these places."""
        left = None if self.left is None else self.left + key - query
        right = None if self.right is None else self.right + query - key
        return Window(left, right)
