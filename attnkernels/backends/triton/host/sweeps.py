"""Gradients of query, key and weight from those of the scores: launches of device/sweep.py."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ..device.maths import is_logistic, span
from ..device.step import step_sweep_kernel
from ..device.sweep import sweep_kernel
from . import configs
from .call import Call, Prepared
from .launch import launch

Sums = tuple[Tensor, Tensor, Tensor]  # float32 (*L, n, d), (*L, m, d), (*L, d)


def windowed(prepared: Prepared, total: Tensor, fill: Callable[[Tensor, int], None]) -> Sums:
    """Sweep through the gradients of the scores, one window of queries at a time.

    fill(ds, first) writes the gradients of the queries from `first` on as gradient_kernel does;
    total (*L) is the sum over all pairs.
    """
    call, lead = prepared.call, prepared.call.lead
    key_rows, rows, width = window(prepared, 64)
    query_parts, key_parts = _parts(prepared, width)
    whole = call.varlen or width >= call.n  # all queries in one buffer
    key_sums = call.new(query_parts, *lead, call.m, call.d).zero_()
    weight_sums = call.new(*lead, call.sequences * query_parts * key_parts, 2, call.d).zero_()
    query_sums = call.new(key_parts, *lead, call.n if whole else width, call.d)
    grad_query = call.new(*lead, call.n, call.d) if not whole else None
    sums = {"grad_query": query_sums, "grad_key": key_sums, "grad_weight": weight_sums}
    ds = call.new(key_rows, width)
    inputs = rows_apart(prepared)
    for first in range(0, rows, width):
        fill(ds, first)
        launch(
            sweep_kernel,
            weight_sums[..., 0, 0].numel() * -(-call.d // call.target.lanes),
            prepared.arguments | inputs | sums,
            warps=1,
            ds=ds,
            query_rows=query_sums.shape[-2],
            query_origin=0 if whole else first,
            window=first,
            width=width,
            run=None,
            query_parts=query_parts,
            key_parts=key_parts,
            key_copies=query_parts,
            RI=configs.SWEEP_ROWS,
            LANES=call.target.lanes,
        )
        if grad_query is not None:
            part = grad_query[..., first : first + width, :]
            torch.sum(query_sums[..., : part.shape[-2], :], 0, out=part)
    if grad_query is None:
        grad_query = summed(query_sums)
    return grad_query, summed(key_sums), of_weight(call, weight_sums, total)


def window(prepared: Prepared, multiple: int) -> tuple[int, int, int]:
    """Return (the keys of all tiles, the queries, those of a window): a multiple of a number."""
    call = prepared.call
    key_rows = max(call.leads * prepared.key_tiles * prepared.tile.BJ, 1)
    rows = _longest_query(call)
    width = max(configs.SCRATCH // (4 * key_rows), multiple)
    return key_rows, rows, min(width, rows + multiple - 1) // multiple * multiple


def rows_apart(prepared: Prepared) -> dict[str, Any]:
    """Return query and key with the strides of their rows apart, which are left unspecialised."""
    query, key = prepared.arguments["query"], prepared.arguments["key"]
    inputs = {"query": query._replace(row=None), "key": key._replace(row=None)}
    return inputs | {"query_row": query.row, "key_row": key.row}


def of_weight(call: Call, weight_sums: Tensor, total: Tensor) -> Tensor:
    """Return the gradient of the weight from the parts (*L, parts, 2, d) of a sweep."""
    grad_weight, seen = weight_sums.sum(-3).unbind(-2)
    activation = call.arguments["ACTIVATION"]
    if is_logistic(activation):  # f = 1 - span r
        total = total.unsqueeze(-1)
        # the sums of a hidden unit that is 0 throughout cancel, but for their rounding
        zero = total * (1 - span(activation) / 2)
        whole = torch.sub(total, grad_weight, alpha=span(activation))
        grad_weight = torch.where(seen == 0, zero, whole)
    return grad_weight * call.arguments["scale"]


def stepwise(call: Call, ds: Tensor) -> Sums:
    """Return the same sums for a few queries, from ds (*L, n, m)."""
    columns = -(-call.d // configs.STEP_UNITS)
    tiles = -(-call.m // configs.STEP_SWEEP_KEYS)
    parts = call.parts(call.leads * columns, configs.STEP_WARPS, tiles)
    query_sums = call.new(parts, *call.lead, call.n, call.d)
    grad_key = call.new(*call.lead, call.m, call.d)
    weight_sums = call.new(parts, *call.lead, call.d)
    sums = {"grad_query": query_sums, "grad_key": grad_key, "grad_weight": weight_sums}
    launch(
        step_sweep_kernel,
        call.leads * parts * columns,
        call.step_arguments(configs.STEP_SWEEP_KEYS) | sums,
        warps=configs.STEP_WARPS,
        ds=ds,
        parts=parts,
    )
    return summed(query_sums), grad_key, summed(weight_sums)


def _parts(prepared: Prepared, width: int) -> tuple[int, int]:
    """Return (parts of the queries, parts of the keys) so that the sweep fills the device.

    Each part of the queries has its own gradients of all keys, to be summed later, and vice versa.
    Of the cuts that fill the device, this one takes the least memory.
    """
    call = prepared.call
    items = call.leads * call.sequences * -(-call.d // call.target.lanes)
    wanted = max(call.target.room(1) // max(items, 1), 1)
    blocks = -(-min(width, call.n) // configs.SWEEP_BLOCK)
    tiles = -(-prepared.key_tiles // call.sequences)
    query_parts = min(max(isqrt(wanted * width // max(call.m, 1)), 1), max(blocks, 1))
    return query_parts, min(-(-wanted // query_parts), max(tiles, 1))


def _longest_query(call: Call) -> int:
    """Return the rows of the longest sequence, read back unless a CUDA graph is being captured."""
    if not call.varlen or call.n == 0:
        return call.n
    if call.query.is_cuda and torch.cuda.is_current_stream_capturing():
        return call.n
    return int(call.arguments["cu_seqlens_q"].diff().max())


def summed(parts: Tensor) -> Tensor:
    """Return the sum over the first dimension."""
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)
