"""Dropout, masks, products and rows of the CUDA kernels on a CPU, against Python and float64."""

from __future__ import annotations

from itertools import product
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.arrays import bytes_of
from helpers.extensions import why_not
from helpers.philox import WORD, philox4x32_10

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")

INF, NAN = np.inf, np.nan
TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}

SEEDS = [0, 1, WORD, 1 << 32, (1 << 62) - 1, (1 << 63) - 1, 0x1234567890ABCDEF]
ITEMS = [0, 1, WORD, 1 << 32, (1 << 32) + 5, (1 << 40) + 3, (1 << 62) + WORD]


def key_of(seed: int) -> tuple[int, int]:
    return seed & WORD, seed >> 32 & WORD


def test_philox(maths: ModuleType, random: np.random.Generator) -> None:
    counters = [[int(c) for c in random.integers(2**32, size=4)] for _ in range(20)]
    counters += [[0] * 4, [WORD] * 4, *(np.roll([WORD, 0, 0, 0], k).tolist() for k in range(4))]
    for seed in [*SEEDS, (1 << 64) - 1, *(int(s) for s in random.integers(2**63, size=10))]:
        for c in counters:
            counter = (c[0], c[1], c[2], c[3])
            assert maths.philox(seed, c) == list(philox4x32_10(counter, key_of(seed)))


@pytest.mark.parametrize("seed", [*SEEDS, -1, -(1 << 63)])
@pytest.mark.parametrize("item", ITEMS)
def test_what_dropout_keeps(maths: ModuleType, seed: int, item: int) -> None:
    scale = float(np.float32(1 / 0.7))
    threshold = int(0.3 * 2**32)
    last = (1 << 31) - 1
    for i, j in product((0, 1, 63, last), (0, 4, 1000, last - 3)):
        words = philox4x32_10((j // 4, i, item & WORD, item >> 32), key_of(seed))
        expected = [scale if word >= threshold else 0 for word in words]
        assert maths.kept_four(seed, threshold, scale, item, i, j // 4) == expected
        assert [maths.kept(seed, threshold, scale, item, i, j + e) for e in range(4)] == expected

        # nothing is below 0, everything is below 2^32, and a word is not below itself
        assert maths.kept_four(seed, 0, scale, item, i, j // 4) == [scale] * 4
        assert maths.kept_four(seed, 1 << 32, scale, item, i, j // 4) == [0] * 4
        for e, word in enumerate(words):
            assert maths.kept(seed, word, scale, item, i, j + e) == scale
            assert maths.kept(seed, word + 1, scale, item, i, j + e) == 0
    assert maths.kept_four(None, 1 << 32, scale, item, 0, 0) == [1] * 4
    assert maths.kept(None, 1 << 32, scale, item, 0, 3) == 1


def test_what_is_dropped_is_zero(maths: ModuleType) -> None:
    assert maths.dropped(1.5, 2) == 3 and np.isnan(maths.dropped(NAN, 1))
    for x in (1.5, INF, -INF, NAN):
        assert maths.dropped(x, 0) == 0


# rows and columns that exist, of 9 x 11
THERE = [(0, 0), (0, 5), (5, 0), (1, 1), (7, 8), (9, 11), (5, 9)]


UNLIMITED = 2**31 - 1
WINDOWS = [(UNLIMITED, UNLIMITED), (UNLIMITED, 0), (2, 3), (0, UNLIMITED)]


def pairs_there(rows: int, columns: int, window: tuple[int, int], first: int = 0) -> np.ndarray:
    i, j = np.mgrid[:9, :11]
    left, right = window
    return (i < rows) & (first <= j) & (j < columns) & (i - j <= left) & (j - i <= right)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("rows, columns", THERE)
@pytest.mark.parametrize("first", [0, 3, 11])
def test_pairs_without_a_mask(
    maths: ModuleType, rows: int, columns: int, window: tuple[int, int], first: int
) -> None:
    keys = first, columns
    taken, added = maths.takes_part(None, maths.Dtype.f32, 0, 0, 0, *window, rows, *keys, 9, 11)
    assert np.array_equal(taken, pairs_there(rows, columns, window, first)) and not added.any()


TILE = 64
LIMITS = [0, 1, 63, 64, 65, 200, UNLIMITED]


@pytest.mark.parametrize("queries, keys", [(1, 1), (64, 64), (65, 200), (300, 63), (130, 0)])
@pytest.mark.parametrize("left, right", [*product(LIMITS, LIMITS)])
def test_tiles_that_queries_see(
    maths: ModuleType, queries: int, keys: int, left: int, right: int
) -> None:
    """Those with a pair in the window, and no others, for one tile of queries and for two."""
    i, j = np.mgrid[:queries, :keys]
    in_window = (i - j <= left) & (j - i <= right)
    tiles = range(-(-queries // TILE))
    for tile, count, first in product(tiles, (1, 2), (0, 1, 70)):
        there = in_window & (j >= first)
        i0, i1 = tile * TILE, (tile + count) * TILE
        columns = there[i0:i1].any(0)
        wanted = [k for k in range(-(-keys // TILE)) if columns[k * TILE : (k + 1) * TILE].any()]
        found = maths.reach(left, right, i0, i1, queries, first, keys)
        assert list(range(*found)) == wanted


def test_tiles_that_the_last_of_many_queries_sees(maths: ModuleType) -> None:
    """Positions near the largest int."""
    most = UNLIMITED - TILE
    first, end = maths.reach(100, 100, most - TILE, most, most, 0, most)
    assert (first, end) == ((most - TILE - 100) // TILE, -(-most // TILE))
    assert maths.reach(UNLIMITED, UNLIMITED, most - TILE, most, most, 0, most) == (0, end)


# strides of the mask's rows and columns: whole, transposed, broadcast, every other
LAYOUTS = [(11, 1), (1, 9), (0, 1), (1, 0), (0, 0), (22, 2)]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", ["boolean", *TORCH])
def test_pairs_with_a_mask(
    maths: ModuleType, random: np.random.Generator, dtype: str, window: tuple[int, int]
) -> None:
    """Only -inf excludes a pair; the largest negative number, inf and NaN are added."""
    values = torch.tensor([-INF, 0.0, -0.0, 1.5, -2.25, INF, NAN, torch.finfo(torch.half).min])
    code = getattr(maths.Dtype, dtype)
    for (row, col), (rows, columns), mask_at in product(LAYOUTS, THERE, (0, 13)):
        size = mask_at + max(rows - 1, 0) * row + max(columns - 1, 0) * col + 1  # and no more
        if dtype == "boolean":
            memory = random.choice(np.array([0, 1], np.uint8), size)
            numbers = np.where(memory, 0, -INF)
        else:
            mask = values[torch.from_numpy(random.integers(values.numel(), size=size))]
            memory = mask.to(TORCH[dtype]).view(torch.uint8).numpy()
            numbers = mask.to(TORCH[dtype]).float().numpy()
        there = pairs_there(rows, columns, window)
        i, j = np.mgrid[:9, :11]
        at = np.where(there, numbers[np.where(there, mask_at + i * row + j * col, 0)], -INF)

        taken, added = maths.takes_part(
            memory, code, mask_at, row, col, *window, rows, 0, columns, 9, 11
        )
        assert np.array_equal(taken, at != -INF)
        assert np.array_equal(added[taken], at[taken], equal_nan=True)
        assert not added[~there].any()


SHAPES = [(1, 8), (2, 4)]
DEPTHS = [*range(8, 72, 8), 512]


def multiply(
    maths: ModuleType, m: int, n: int, a: np.ndarray, b: np.ndarray, short: bool
) -> np.ndarray:
    return getattr(maths, f"product_{m}_{n}")(a, b, short)


def product_error(
    maths: ModuleType, m: int, n: int, a: np.ndarray, b: np.ndarray, short: bool
) -> float:
    """Return the largest error of a b relative to sum |a| |b|."""
    exact, size = a.astype("d") @ b, np.abs(a).astype("d") @ np.abs(b)
    error = np.abs(multiply(maths, m, n, a, b, short) - exact)
    return float((error / np.where(size == 0, 1, size)).max())


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("m, n", SHAPES)
def test_products(
    maths: ModuleType, random: np.random.Generator, m: int, n: int, depth: int
) -> None:
    """Products are within 2^-20 of sum |a| |b|, however many terms have one sign."""
    for size in (1, 1e-3, 1e4):
        a = (size * random.standard_normal((64 * m, depth))).astype("f")
        b = random.standard_normal((depth, 8 * n)).astype("f")
        assert product_error(maths, m, n, a, b, False) <= 2.0**-20
        assert product_error(maths, m, n, np.abs(a), np.abs(b), False) <= 2.0**-20
        for dtype in (torch.bfloat16, torch.float16):
            short = torch.from_numpy(b).to(dtype).float().numpy()
            assert product_error(maths, m, n, a, short, True) <= 2.0**-20
            assert product_error(maths, m, n, np.abs(a), np.abs(short), True) <= 2.0**-20


@pytest.mark.parametrize("m, n", SHAPES)
def test_the_worst_products(maths: ModuleType, random: np.random.Generator, m: int, n: int) -> None:
    """Test one term: every value of the 13 bits beyond tf32, and b with those that lose most.

    The worst, just below 2^-11, lose their product, 2^-22, and one last bit each, 2^-23; the sums
    lose as much again.
    """
    tails = np.arange(1 << 13)
    a, b = np.zeros((tails.size, 8), "f"), np.zeros((8, 8 * n), "f")
    a[:, 3] = 1 + tails * 2.0**-23
    b[3] = 1 + random.integers(1 << 13, size=8 * n) * 2.0**-23
    b[3, :4] = 1 + np.array([0x0FFF, 0x1000, 0x1001, 0x1FFF]) * 2.0**-23
    assert product_error(maths, m, n, a, b, False) <= 1.25 * 2.0**-21
    b[3] = b[3].astype(np.float16)
    assert product_error(maths, m, n, a, b, True) <= 2.0**-22


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("m, n", SHAPES)
def test_nan_in_products(
    maths: ModuleType, random: np.random.Generator, m: int, n: int, short: bool
) -> None:
    """NaN reaches its own row or column and no other, whatever its bits."""
    depth = 24
    a = random.standard_normal((64 * m, depth)).astype("f")
    b = random.standard_normal((depth, 8 * n)).astype(np.float16).astype("f")
    row, column = 37, 8 * n - 3
    payloads = [0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0x7F810000]
    for bits in [*payloads, 0x7F800001, 0xFF801FFF]:  # and two outside the bits that tf32 has
        missing = np.array([bits], np.uint32).view("f")
        spoiled = a.copy()
        spoiled[row, 9] = missing[0]
        found = np.isnan(multiply(maths, m, n, spoiled, b, short))
        assert found[row].all() and not np.delete(found, row, 0).any()
        if short and bits not in payloads:
            continue  # no 16-bit number is loaded as this
        spoiled = b.copy()
        spoiled[17, column] = missing[0]
        found = np.isnan(multiply(maths, m, n, a, spoiled, short))
        assert found[:, column].all() and not np.delete(found, column, 1).any()


LARGEST = float(np.finfo("f").max)


@pytest.mark.parametrize("x", [INF, -INF, LARGEST, -LARGEST])
@pytest.mark.parametrize("m, n", SHAPES)
def test_infinity_in_products(
    maths: ModuleType, random: np.random.Generator, m: int, n: int, x: float
) -> None:
    """As in any sum: infinity stays, 0 times infinity is NaN, and the largest number is finite."""
    a = np.abs(random.standard_normal((64 * m, 24))).astype("f") / 32
    a[:5, 9] = 1, 0.5, 2.0**-20, 1 - 2.0**-24, 0
    b = random.standard_normal((24, 8 * n)).astype(np.float16).astype("f")
    b[9, 5] = x
    with np.errstate(invalid="ignore"):
        exact, size = a.astype("d") @ b, a.astype("d") @ np.abs(b)
        for short in [False, True] if np.isinf(x) else [False]:
            found = multiply(maths, m, n, a, b, short)
            right = (found == exact) | (np.isnan(found) & np.isnan(exact))
            assert (right | (np.abs(found - exact) <= 2.0**-21 * size)).all()


def test_offsets(maths: ModuleType, random: np.random.Generator) -> None:
    """Offsets take the innermost dimension first; strides may be 0, negative, and past 32 bits."""
    assert maths.offset([], [], np.arange(3)).tolist() == [0, 0, 0]
    for trial in range(60):
        rank = 1 + trial % maths.rank
        sizes = [int(s) for s in random.integers(1, 4 if rank > 4 else 9, rank)]
        strides = [int(s) for s in random.choice([0, 1, 7, -3, 1 << 33, 12_345], rank)]
        count = int(np.prod(sizes))
        index = np.unravel_index(np.arange(count), sizes, order="F")
        expected = sum(along * at for along, at in zip(strides, index, strict=True))
        assert np.array_equal(maths.offset(sizes, strides, np.arange(count)), expected)
    last = (1 << 31) - 1  # a check keeps leading indices within this
    at = [last % (1 << 10), last >> 10]
    for strides in ([1, 1 << 30], [-5, -(1 << 30)], [0, 0]):
        found = maths.offset([1 << 10, 1 << 21], strides, np.array([last]))
        assert found[0] == at[0] * strides[0] + at[1] * strides[1]


def lengths_of_sequences(random: np.random.Generator, tile: int) -> list[list[int]]:
    """Return random lengths, many of them 0, and the corners of a tile."""
    corners = [0, 1, tile - 1, tile, tile + 1, 2 * tile]
    some = [[x] for x in corners] + [list(pair) for pair in product(corners, corners)]
    some += [[0] * 5, [0, 0, 300, 0, 0], [1] * 200, [tile] * 7, [tile - 1] * 70, [tile + 1] * 70]
    for trial in range(150):
        count, most = int(random.integers(1, 40)), int(random.choice([3, tile, 5 * tile]))
        each = random.integers(0, most + 1, count)
        some.append((each * (random.random(count) < (1, 0.4)[trial % 2])).tolist())
    return some


@pytest.mark.parametrize("dtype, numpy", [("i32", np.int32), ("i64", np.int64)])
def test_rows_of_sequences(
    maths: ModuleType, random: np.random.Generator, dtype: str, numpy: type
) -> None:
    """Every row of every sequence is in exactly one tile, which belongs to its sequence."""
    code = getattr(maths.Dtype, dtype)
    for lengths in lengths_of_sequences(random, maths.tile):
        ends: np.ndarray = np.concatenate([[0], np.cumsum(lengths)]).astype(numpy)
        rows, memory = int(ends[-1]), bytes_of(ends)
        extents = [maths.extent(memory, code, s, rows) for s in range(len(lengths))]
        assert [e[:2] for e in extents] == list(
            zip(ends[:-1].tolist(), np.diff(ends).tolist(), strict=True)
        )
        met = np.zeros(rows, int)
        owner = np.full(rows, -1)
        tiles = maths.tiles(memory, code, len(lengths), rows)
        for tile, s in enumerate(tiles):
            begin, count, first_tile = extents[s]
            first = (tile - first_tile) * maths.tile
            assert first >= 0
            here = slice(begin + first, begin + min(first + maths.tile, count))
            if first < count:
                met[here] += 1
                owner[here] = s
        assert (met == 1).all()
        assert np.array_equal(owner, np.repeat(np.arange(len(lengths)), lengths))


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 200])
def test_rows_of_one_sequence(maths: ModuleType, rows: int) -> None:
    assert maths.extent(None, maths.Dtype.i32, 0, rows) == (0, rows, 0)
    assert maths.tiles(None, maths.Dtype.i32, 1, rows) == [0] * -(-rows // maths.tile)


def test_rows_past_32_bits(maths: ModuleType) -> None:
    ends = np.array([0, 1 << 33, (1 << 33) + 100], np.int64)
    begin, count, tile = maths.extent(bytes_of(ends), maths.Dtype.i64, 1, 0)
    assert (begin, count, tile) == (1 << 33, 100, (1 << 33) // maths.tile + 1)
