"""Gradients of query, key and weight by matrix products of sines: device/sine_sweep.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..device.maths import span
from ..device.sine_sweep import sine_sweep_kernel
from ..device.sines import UNITS
from .call import Call, Prepared
from .launch import launch
from .sweeps import Sums, window

ROWS, WARPS = 128, 8  # of either side in a program, and its warps


def windowed(prepared: Prepared, total: Tensor, fill: Callable[[Tensor, int], None]) -> Sums:
    """Do what `sweeps.windowed` does, for a call that has a table of sines."""
    call, lead = prepared.call, prepared.call.lead
    assert prepared.tile.BJ == ROWS  # a program of keys has one panel of them
    key_rows, rows, width = window(prepared, ROWS)
    query_tiles = call.tiles(call.n, ROWS) if call.varlen else width // ROWS
    grad_query = call.new(*lead, call.n, call.d).zero_()
    grad_key = call.new(*lead, call.m, call.d).zero_()
    along = call.new(*lead, query_tiles, call.d).zero_()
    ds, halves = call.new(key_rows, width), call.query.new_empty(key_rows, width, dtype=torch.half)
    columns = -(-call.d // UNITS.value)
    for first in range(0, rows, width):
        if call.varlen:  # shorter sequences than the longest leave gaps
            ds.zero_()
        fill(ds, first)
        count = min(width, rows - first)
        pairs, halved = (x.view(*lead, -1, width)[..., :count] for x in (ds, halves))
        if count < width:
            halves.zero_()
        sides = (-2, True, grad_query, query_tiles), (-1, False, grad_key, prepared.key_tiles)
        for dim, of_query, grad, tiles in sides:
            largest = torch.linalg.vector_norm(pairs, torch.inf, dim, keepdim=True)
            torch.div(pairs, torch.where(largest == 0, 1.0, largest), out=halved)
            totals = pairs.sum(dim)
            if of_query:  # a row of `width` numbers per leading index
                largest, totals = (pad(x, (0, width - count)) for x in (largest, totals))
            launch(
                sine_sweep_kernel,
                call.leads * tiles * columns,
                prepared.arguments,
                warps=WARPS,
                ds=ds,
                halves=halves,
                largest=largest.contiguous(),
                totals=totals,
                grad=grad,
                along=along,
                window=first,
                width=width,
                first_tile=first // ROWS if of_query and not call.varlen else 0,
                own_tiles=tiles,
                OF_QUERY=of_query,
                OWN=ROWS,
                OTHER=ROWS,
            )
    return grad_query, grad_key, _of_weight(call, along.sum(-2), total)


def _of_weight(call: Call, along: Tensor, total: Tensor) -> Tensor:
    """Return the gradient of the weight from the sums (*L, d) of ds tanh."""
    half = span(call.arguments["ACTIVATION"]) / 2  # f = 1 - half + half * tanh
    return torch.add(total.unsqueeze(-1) * (1 - half), along, alpha=half) * call.arguments["scale"]
