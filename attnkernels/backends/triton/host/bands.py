"""The sweep of device/sweep.py where a window lets every query see few of the keys.

ds holds, for a run of tiles of queries, only the tiles of keys that each of them sees: time and
memory are linear in n + m.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..device.rows import SCALE, Run
from ..device.sweep import sweep_kernel
from . import configs
from .call import Prepared
from .launch import launch
from .sweeps import Sums, of_weight, rows_apart, summed

NO_WINDOW = {"window": 0, "width": 0, "window_tiles": 0}  # of the kernels, which have a run instead


def pays(prepared: Prepared) -> bool:
    """Return True if the queries of a tile see at most half of the tiles of keys."""
    return 2 * _slots(prepared) <= prepared.key_tiles


def swept(prepared: Prepared, total: Tensor, fill: Callable[[Tensor, Run], None]) -> Sums:
    """Sweep through the gradients of the scores, one run of tiles of queries at a time.

    fill(ds, run) writes those of a run as gradient_kernel does; total as in `sweeps.windowed`.
    """
    call, tile, lead = prepared.call, prepared.tile, prepared.call.lead
    slots = _slots(prepared)
    room = max(configs.SCRATCH // (4 * call.leads * slots * tile.BI * tile.BJ), 1)
    tiles = min(prepared.query_tiles, room)
    query_parts, key_parts, key_copies = _parts(prepared, tiles * tile.BI)
    whole = call.varlen or tiles == prepared.query_tiles
    key_sums = call.new(key_copies, *lead, call.m, call.d).zero_()
    weight_sums = call.new(*lead, call.sequences * query_parts * key_parts, 2, call.d).zero_()
    query_sums = call.new(key_parts, *lead, call.n if whole else tiles * tile.BI, call.d)
    grad_query = call.new(*lead, call.n, call.d) if not whole else None
    sums = {"grad_query": query_sums, "grad_key": key_sums, "grad_weight": weight_sums}
    for first in range(0, prepared.query_tiles, tiles):
        count = min(tiles, prepared.query_tiles - first)
        run = Run(*(SCALE.value * each for each in (first, count, slots)))
        ds = call.new(call.leads * count * slots * tile.BJ, tile.BI)
        fill(ds, run)
        origin = first * tile.BI
        launch(
            sweep_kernel,
            weight_sums[..., 0, 0].numel() * -(-call.d // call.target.lanes),
            prepared.arguments | rows_apart(prepared) | sums | NO_WINDOW,
            warps=1,
            ds=ds,
            run=run,
            query_rows=query_sums.shape[-2],
            query_origin=0 if whole else origin,
            query_parts=query_parts,
            key_parts=key_parts,
            key_copies=key_copies,
            RI=configs.SWEEP_ROWS,
            LANES=call.target.lanes,
        )
        if grad_query is not None:
            part = grad_query[..., origin : origin + tiles * tile.BI, :]
            torch.sum(query_sums[..., : part.shape[-2], :], 0, out=part)
    if grad_query is None:
        grad_query = summed(query_sums)
    return grad_query, summed(key_sums), of_weight(call, weight_sums, total)


def _slots(prepared: Prepared) -> int:
    """Return how many tiles of keys a tile of queries sees, at most."""
    tile = prepared.tile
    return prepared.call.seen_tiles(tile.BI, tile.BJ, prepared.key_tiles)


def _parts(prepared: Prepared, rows: int) -> tuple[int, int, int]:
    """Return (parts of the queries of a run, parts of the keys of each, copies of the gradients of
    the keys), so that the sweep fills the device.

    A part of the queries is as long as half of what a query sees, if enough are: then few of them
    see the same key, and others share a copy.
    """
    call, tile = prepared.call, prepared.tile
    items = call.leads * call.sequences * -(-call.d // call.target.lanes)
    wanted = max(call.target.room(1) // max(items, 1), 1)
    around = sum(call.limits)
    each = -(-min(rows, call.n) // max(call.sequences, 1))  # rows of a sequence, on average
    blocks = max(-(-each // configs.SWEEP_BLOCK), 1)
    query_parts = min(wanted, blocks, max(each // max(around // 2, 1), 1))
    key_parts = min(-(-wanted // query_parts), _slots(prepared))
    share = 1 if call.varlen else -(-blocks // query_parts)
    apart = -(-(around + 2 * tile.BJ) // (share * configs.SWEEP_BLOCK)) + 1
    return query_parts, key_parts, min(query_parts, apart)
