"""The tiles of the kernels, and the number of warps that a processor runs.

They rest on instruction counts, not on measurements yet: `python -m tools.sass` shows the cost of
each per element, on every architecture. To tune for a GPU, run `python -m benchmarks.gpu --out DIR
--sweep` there and set ATTNKERNELS_TILES to the fastest tiles, the largest first:
"64x64x16x4,32x32x8x2,16x16x8x1".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import triton


class Tile(NamedTuple):
    """BI queries against BJ keys by `warps` warps, TJ threads along the keys."""

    BI: int
    BJ: int
    TJ: int
    warps: int

    def shape(self, lanes: int) -> tuple[int, int, int, int]:
        """Return SHAPE of score.py, (RI, RJ, TI, TJ): pairs of a thread, threads of a tile."""
        TI = self.warps * lanes // self.TJ
        return self.BI // TI, self.BJ // self.TJ, TI, self.TJ


def parse(text: str) -> tuple[Tile, ...]:
    """Return the tiles of "BIxBJxTJxwarps,...", or raise ValueError."""
    try:
        tiles = tuple(Tile(*map(int, each.split("x"))) for each in text.split(","))
    except (TypeError, ValueError):
        raise ValueError(
            f"ATTNKERNELS_TILES must be like 64x64x16x4,32x32x8x2, got {text!r}"
        ) from None
    if all(tile.BI % SWEEP_BLOCK for tile in tiles):
        raise ValueError(f"ATTNKERNELS_TILES must have a tile of {SWEEP_BLOCK} or 64 queries")
    return tiles


SWEEP_ROWS = 8  # pairs of queries, twice
SWEEP_BLOCK = 4 * SWEEP_ROWS

# The largest first; a smaller one is used when the larger would leave processors idle. A load in
# score.py is shared by the whole tile only while BI and BJ are less than the number of threads.
# Triton 3.8 holds the weights of a product in more registers, too many for four warps.
WARPS = 8 if triton.__version__.startswith("3.8.") else 4
TILES = parse(os.environ.get("ATTNKERNELS_TILES", f"64x64x16x{WARPS},32x32x8x2,16x16x8x1"))

# Tiles that are scored by sines, with the time of their elements in that of the others: on sm_90
# they take 1.5 and 2.3 instructions per element for |y| <= 8, where quads take 4. Before sm_90 they
# take as many, and so they do on sm_120: operands of their products pass through registers. Those
# of sm_100, and of a gradient, do not hold the larger tile.
LARGE_SINE_TILE, SINE_TILE = Tile(128, 128, 16, 8), Tile(64, 128, 16, 8)
SINE_COSTS = {LARGE_SINE_TILE: 0.35, SINE_TILE: 0.5}
SINE_CAPABILITIES, LARGE_SINE_CAPABILITY = (9, 10), 9

# of the context at a time: more would not leave the scores their registers
VALUE_COLUMNS, SINE_VALUE_COLUMNS = 16, 32
STEP_KEYS, STEP_UNITS, STEP_WARPS = 32, 64, 4
STEP_SWEEP_KEYS = 16
WARPS_A_PROCESSOR = 10  # about as many as the registers allow
# Over edges, a tile has as many heads as make EDGE_COLUMNS columns, of at most EDGE_ROW each, and
# as many edges as make EDGE_TILE numbers for a warp, at most EDGES. A processor gets EDGE_SHARES
# shares of the work for every program that it runs at a time; none is smaller than EDGE_SHARE.
EDGE_COLUMNS, EDGE_ROW, EDGE_TILE, EDGES = 256, 1024, 256, 16
EDGE_SHARES, EDGE_SHARE = 4, 32
SCRATCH = 64 << 20  # bytes that the gradients of a window's scores may take


def backward_tiles() -> tuple[Tile, ...]:
    """The tiles that hold whole blocks of the sweep."""
    return tuple(tile for tile in TILES if tile.BI % SWEEP_BLOCK == 0)


def sine_tiles(name: str, capability: int, forward: bool) -> tuple[Tile, ...]:
    """The tiles by sines for a target of this name and compute capability, if there are any."""
    if name and capability not in SINE_CAPABILITIES:
        return ()
    large = forward and capability == LARGE_SINE_CAPABILITY
    return (LARGE_SINE_TILE, SINE_TILE) if large else (SINE_TILE,)


def tangent_tiles() -> tuple[Tile, ...]:
    """The tiles whose weights and tangents leave registers for a product with values."""
    return tuple(tile for tile in TILES if tile.BI * tile.BJ <= 32 * 32) or TILES[-1:]


def candidates() -> dict[str, Callable[[], None]]:
    """Return the choices that a sweep tries: by name, functions that put one of them to use."""
    names = ("64x64x16x4", "64x64x16x8", "64x128x16x8", "32x64x16x4", "32x32x8x2", "32x32x8x4")
    return {name: partial(_use, parse(name)) for name in names}


def _use(tiles: tuple[Tile, ...]) -> None:
    global TILES
    TILES = tiles
