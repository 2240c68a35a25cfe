"""The backward operator over edges: a pass by target, (E4)-(E6), and one by source, (E5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....ops.codes import EDGE_BIAS, EDGE_KEY, KEY, QUERY, VALUE, WEIGHT
from ....ops.shapes import by_row
from ..device.edge_sources import edge_source_kernel, edge_sum_kernel
from ..device.edge_targets import edge_delta_kernel, edge_target_kernel
from ..device.edges import SIGNS
from ..device.maths import is_logistic
from . import configs
from .edges import EdgeCall, Shares, in_rows
from .launch import on


def sparse_backward(
    *,
    grad_context: Tensor | None,
    grad_lse: Tensor | None,
    grad_weights: Tensor | None,
    context: Tensor,
    lse: Tensor,
    weights: Tensor,
    wanted: int,
    **arguments: Any,
) -> tuple[Tensor, ...]:
    """Implement the operator "sparse_backward" of ops/signature.py."""
    call = EdgeCall(**arguments)

    def gradient(name: str, bit: int, trailing: int = 2) -> Tensor | None:
        if not wanted & bit or arguments[name] is None:
            return None
        x = _whole(call, name, arguments[name], trailing)
        return by_row(x, tuple(x.shape), trailing, torch.float32 if trailing == 1 else None)

    query, key, value = gradient("query", QUERY), gradient("key", KEY), gradient("value", VALUE)
    edge_key = gradient("edge_key", EDGE_KEY)
    edge_bias = gradient("edge_bias", EDGE_BIAS, trailing=1)
    delta = None if grad_weights is None else call.by_row(call.n, trailing=1)
    softmax = weights if weights.dim() > lse.dim() else None
    computed = softmax is not None or arguments["seed"] is not None or not weights.numel()
    given = call.operands(
        {
            "context": in_rows(context),
            "softmax": softmax,
            "grad_context": in_rows(grad_context),
            "grad_query": query,
            "grad_key": key,
            "grad_value": value,
            "grad_edge_key": edge_key,
            "delta_rows": None if delta is None else delta.unsqueeze(-1),
        },
        {
            "lse": lse,
            "weights": None if delta is None else weights,
            "given": None if computed else weights,
            "grad_weights": grad_weights,
            "grad_lse": grad_lse,
            "grad_edge_bias": edge_bias,
            "delta": delta,
        },
    )
    weight = None
    if wanted & WEIGHT:
        weight = _whole(call, "weight", arguments["weight"], trailing=1)
    with on(call.query):
        weight = _by_target(call, given, weight, by_source=key is not None or value is not None)
        if key is not None or value is not None:
            _by_source(call, given)
    if value is not None and grad_context is None:
        value.zero_()
    found = query, key, value, weight, edge_key, edge_bias
    return tuple(call.new(0) if x is None else x for x in found)


def _by_target(
    call: EdgeCall, given: dict[str, Any], weight: Tensor | None, by_source: bool
) -> Tensor | None:
    """Compute the gradients over the edges of every target; return that of the weight."""
    shares = call.shares(call.target_begin)
    if given["delta"] is not None:
        part = shares.parts(call, 1)
        narrow = given | {"columns": 1, "BE": max(min(512 // call.BH, configs.EDGES), 1)}
        call.launch(edge_delta_kernel, shares, narrow, part=part)
        _sum_parts(call, shares, narrow, part, given["delta_rows"], 1, 1)
    given["pairs"] = call.new(call.edges, 2, call.leads) if by_source else None
    given["signs"] = None
    width = call.columns * (given["BD"] // SIGNS.value)
    if given["grad_key"] is not None and not is_logistic(given["ACTIVATION"]) and width:
        given["signs"] = call.new(call.edges, call.leads, width, dtype=torch.uint8)
    sums = None if weight is None else call.new(shares.programs, call.leads, call.d)
    part_query = None if given["grad_query"] is None else shares.parts(call, call.d)
    call.launch(edge_target_kernel, shares, given, part_query=part_query, part_weight=sums)
    _sum_parts(call, shares, given, part_query, given["grad_query"], call.d, given["BD"])
    if weight is None or sums is None:
        return None
    return (sums.sum(0) * given["scale"]).view(weight.shape)


def _by_source(call: EdgeCall, given: dict[str, Any]) -> None:
    """Compute the gradients over the edges of every source, of the key and the value."""
    shares = call.shares(call.source_begin)
    if given["value"] is not None and given["grad_value"] is None:
        given = given | {"grad_context": None}  # it matters to values only
    if given["grad_context"] is None:
        given = given | {"grad_value": None}
    if given["grad_key"] is None and given["grad_value"] is None:
        return
    part_key = None if given["grad_key"] is None else shares.parts(call, call.d)
    part_value = None if given["grad_value"] is None else shares.parts(call, call.dv)
    call.launch(edge_source_kernel, shares, given, part_key=part_key, part_value=part_value)
    _sum_parts(call, shares, given, part_key, given["grad_key"], call.d, given["BD"])
    _sum_parts(call, shares, given, part_value, given["grad_value"], call.dv, given["BV"])


def _sum_parts(
    call: EdgeCall,
    shares: Shares,
    given: dict[str, Any],
    part: Tensor | None,
    out: Any,
    width: int,
    block: int,
) -> None:
    """Put the rows of cut nodes together, if there are any."""
    if part is not None:
        more = {"part": part, "out": out, "width": width, "BD": block}
        call.merge(edge_sum_kernel, shares, given | more)


def _whole(call: EdgeCall, name: str, x: Tensor, trailing: int) -> Tensor:
    """Return x; raise ValueError if it broadcasts, so that its gradient would be a sum."""
    if tuple(x.shape[: x.dim() - trailing]) != call.lead:
        raise ValueError(
            f"{name} must have all leading dimensions of the call, {call.lead}, to have a gradient,"
            f" got shape {tuple(x.shape)}"
        )
    return x
