"""Calls with DTensors: each rank computes its own shard, and nothing is communicated.

Batch, heads and rows of the query may be sharded. A sum over shards, such as the gradient of a
weight that all of them share, is a `Partial` placement, which DTensor adds up where it is used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..ops.seed import draw_seed
from ..ops.shapes import leading_shape
from ..ops.signature import Options
from . import checks

Local = Callable[..., tuple[Tensor, Tensor | None, Tensor | None]]
TRAILING = {"query": 2, "key": 2, "value": 2, "weight": 1, "attn_mask": 2, "key_lengths": 0}
ROWS = 0  # the first dimension after the leading ones, which count from -1 downward
_STEP = 0x9E3779B97F4A7C15 >> 2  # between the seeds of shards of the batch


def is_dtensor(x: object) -> bool:
    """Return True for a DTensor, without loading torch.distributed.tensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def attention(
    local: Local, query: Any, key: Any, value: Any, weight: Any, options: Options
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return context, weights or None, and lse or None of DTensors as DTensors.

    local(query, key, value, weight, options) computes them for plain tensors, after its checks.

    Raises:
        TypeError: an argument is no DTensor, as the query is.
        ValueError: one lies on another mesh, or its placement does not fit the query's; the
            message says which one is wanted.
    """
    given = {"query": query, "key": key, "value": value, "weight": weight}
    masks = {"attn_mask": options.attn_mask, "key_lengths": options.key_lengths}
    given |= {name: x for name, x in masks.items() if x is not None}
    _check_kind(given, query.device_mesh)
    lead = leading_shape(*(tuple(x.shape[: _inner(name, x)]) for name, x in given.items()))
    axes = [_axis(given, dim) for dim in range(query.device_mesh.ndim)]
    shards = {name: _local(name, x, axes) for name, x in given.items()}
    options = options._replace(
        attn_mask=shards.get("attn_mask"), key_lengths=shards.get("key_lengths")
    )
    options = _placed(options, query, axes, key.shape[-2])
    context, weights, lse = local(
        *(shards[name] for name in ("query", "key", "value", "weight")), options
    )
    n, m, dv = query.shape[-2], key.shape[-2], value.shape[-1]
    return (
        _whole(context, query, axes, (*lead, n, dv), 2),
        None if weights is None else _whole(weights, query, axes, (*lead, n, m), 2),
        None if lse is None else _whole(lse, query, axes, (*lead, n), 1),
    )


def _check_kind(given: dict[str, Any], mesh: Any) -> None:
    for name, x in given.items():
        if not is_dtensor(x):
            raise TypeError(
                f"{name} must be a DTensor on the mesh of query, as query is one, got"
                f" {checks.type_name(x)}: use torch.distributed.tensor.distribute_tensor"
            )
        if x.device_mesh != mesh:
            raise ValueError(f"{name} must be on the mesh of query, {mesh}, got {x.device_mesh}")
        if x.ndim < TRAILING[name] - (name == "attn_mask"):
            raise ValueError(f"{name} must have {TRAILING[name]} or more dimensions, got {x.ndim}")


def _inner(name: str, x: Any) -> int:
    """Return the place of the first dimension after the leading ones."""
    return x.ndim - TRAILING[name]


def _axis(given: dict[str, Any], dim: int) -> int | None:
    """Return what dimension `dim` of the mesh shards: a leading dimension, ROWS, or None.

    Raises:
        ValueError: the placements do not fit.
    """
    from torch.distributed.tensor import Replicate, Shard

    found = {}
    for name, x in given.items():
        placement = x.placements[dim]
        if type(placement) is Shard:
            found[name] = placement.dim % x.ndim - _inner(name, x)
        elif type(placement) is not Replicate:
            raise ValueError(
                f"{name} must be Shard or Replicate on dimension {dim} of the mesh, got {placement}"
            )
    axis = min(found.values(), default=None)
    if axis is None:
        return None
    if axis > ROWS or (axis == ROWS and "query" not in found):
        name = next(iter(found))
        raise ValueError(
            f"{name} must be Replicate on dimension {dim} of the mesh: only leading dimensions, and"
            f" the rows of query, can be sharded, got {given[name].placements[dim]}; for keys see"
            " attnkernels.distributed.context_parallel_attention"
        )
    for name, x in given.items():
        place = axis + _inner(name, x)
        takes = 0 <= place < x.ndim and x.shape[place] > 1
        takes = takes and (axis < ROWS or name in ("query", "attn_mask"))
        wanted = Shard(place) if takes else Replicate()
        placement = Shard(x.placements[dim].dim % x.ndim) if name in found else Replicate()
        if placement != wanted:
            raise ValueError(
                f"{name} must have the placement {wanted} on dimension {dim} of the mesh, whose"
                f" shards are of {_name(axis)}, got {placement}"
            )
    return axis


def _name(axis: int) -> str:
    return "the rows of query" if axis == ROWS else f"leading dimension {axis}"


def _local(name: str, x: Any, axes: list[int | None]) -> Tensor:
    """Return the shard of this rank; a gradient that others share in is a Partial one."""
    from torch.distributed.tensor import Partial, Shard

    placements = [
        Partial() if axis is not None and not isinstance(placement, Shard) else placement
        for placement, axis in zip(x.placements, axes, strict=True)
    ]
    return x.to_local(grad_placements=placements)


def _placed(options: Options, query: Any, axes: list[int | None], m: int) -> Options:
    """Return the options of the shard: window and dropout by the places of its rows."""
    first, shard = _first_row(query, axes), 0
    for dim, axis in enumerate(axes):
        if axis is not None and axis < ROWS:
            mesh = query.device_mesh
            shard = shard * mesh.size(dim) + mesh.get_local_rank(dim)
    if options.dropout_p:
        seed = (draw_seed(query.device) + shard * _STEP) % 2**62
        options = options._replace(
            seed=torch.stack([seed, seed.new_tensor(first), seed.new_zeros(())])
        )
    left, right = options.window_left, options.window_right
    if not first:
        return options
    if left is not None and m + left - first <= 0:  # nothing to see
        none = torch.zeros((), dtype=torch.int64, device=query.device)
        return options._replace(key_lengths=none, window_left=None, window_right=None)
    return options._replace(
        window_left=None if left is None else left - first,
        window_right=None if right is None else right + first,
    )


def _first_row(query: Any, axes: list[int | None]) -> int:
    """Return the place of the first row of the shard."""
    first, count = 0, query.shape[-2]
    for dim, axis in enumerate(axes):
        if axis == ROWS:
            mesh = query.device_mesh
            share = -(-count // mesh.size(dim))
            place = min(mesh.get_local_rank(dim) * share, count)
            first, count = first + place, min(share, count - place)
    return first


def _whole(
    x: Tensor, query: Any, axes: list[int | None], shape: tuple[int, ...], trailing: int
) -> Tensor:
    from torch.distributed.tensor import DTensor, Replicate, Shard

    inner = len(shape) - trailing
    placements = [Replicate() if axis is None else Shard(inner + axis) for axis in axes]
    stride = tuple(prod(shape[place + 1 :]) for place in range(len(shape)))
    return DTensor.from_local(
        x, query.device_mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )
