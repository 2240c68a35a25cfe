"""The operators of forward-mode derivatives: the forward's results, and their tangents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....ops.codes import FAST
from ..device.jvp import combine_jvp_kernel, jvp_kernel, scores_jvp_kernel, weights_jvp_kernel
from ..device.rows import Tangents
from . import configs
from .call import Call, Prepared
from .configs import Tile
from .launch import launch, on, power_of_two

Results = tuple[Tensor, Tensor, Tensor]  # context, lse and weights, or their tangents


def forward_jvp(
    *,
    query_tangent: Tensor | None,
    key_tangent: Tensor | None,
    value_tangent: Tensor | None,
    weight_tangent: Tensor | None,
    attn_mask_tangent: Tensor | None,
    return_weights: bool,
    **arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Implement the operator "forward_jvp" of ops/signature.py."""
    arguments["activation"] &= ~FAST  # tangents are exact
    call = Call(**arguments)
    given = {"query": query_tangent, "key": key_tangent, "weight": weight_tangent}
    given |= {"value": value_tangent, "attn_mask": attn_mask_tangent}
    primal, tangent = _results(call, return_weights), _results(call, return_weights)
    with on(call.query):
        _attend(call, _of_tangents(call, arguments, given), primal, tangent, return_weights)
        if return_weights:
            tiles = -(-call.n // 32) * -(-call.m // 64)
            made = {"scores": primal[2], "lse": primal[1], "BI": 32, "BJ": 64}
            made |= {"scores_tangent": tangent[2], "lse_tangent": tangent[1]}
            launch(weights_jvp_kernel, call.leads * tiles, call.arguments | made, warps=4)
    return *primal, *tangent


def scores_jvp(
    *,
    query_tangent: Tensor | None,
    key_tangent: Tensor | None,
    weight_tangent: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, Tensor]:
    """Implement the operator "scores_jvp" of ops/signature.py."""
    arguments["activation"] &= ~FAST  # tangents are exact
    call = Call(**arguments)
    given = {"query": query_tangent, "key": key_tangent, "weight": weight_tangent}
    shape = (*call.lead, call.n, call.m)
    scores, tangent = call.new(*shape), call.new(*shape)
    if scores.numel():
        with on(call.query):
            prepared = _prepared(call, _of_tangents(call, arguments, given), configs.TILES)
            launch(
                scores_jvp_kernel,
                call.leads * prepared.query_tiles * prepared.key_tiles,
                prepared.arguments,
                warps=prepared.tile.warps,
                scores=scores,
                scores_tangent=tangent,
            )
    return scores, tangent


def _results(call: Call, return_weights: bool) -> Results:
    weights = call.new(*call.lead, call.n, call.m) if return_weights else call.new(0)
    return call.new(*call.lead, call.n, call.dv), call.new(*call.lead, call.n), weights


def _of_tangents(call: Call, arguments: dict[str, Any], given: dict[str, Tensor | None]) -> Call:
    """Return the call with tangents as its inputs, over the leading dimensions of `call`.

    Those of query, key and weight are zeros that take no memory if they are not given; the others
    may be left out.
    """
    inputs = arguments | given
    for name, tangent in given.items():
        if tangent is not None:
            _check(name, tangent, arguments[name])
    for name, trailing in (("query", 2), ("key", 2), ("weight", 1)):
        if inputs[name] is None:
            like = arguments[name]
            inputs[name] = like.new_zeros(()).expand(like.shape[-trailing:])
    tangents = Call(**inputs)
    tangents.lead, tangents.leads = call.lead, call.leads
    return tangents


def _check(name: str, tangent: Tensor, primal: Tensor | None) -> None:
    """Raise ValueError for a tangent unlike its primal: a kernel would read beyond it."""
    if primal is None or not primal.is_floating_point():
        raise ValueError(f"{name} must be floating to have a tangent")
    if (tangent.shape, tangent.dtype) != (primal.shape, primal.dtype):
        raise ValueError(
            f"{name}_tangent must have the shape and dtype of its primal, {tuple(primal.shape)} and"
            f" {primal.dtype}, got {tuple(tangent.shape)} and {tangent.dtype}"
        )


def _prepared(call: Call, of_tangents: Call, tiles: tuple[Tile, ...]) -> Prepared:
    """Prepare both calls, and return `call` with the argument "tangents"."""
    tile = call.tile(tiles)
    prepared = Prepared(call, tile)
    made = Prepared(of_tangents, tile, exponentials=False).arguments
    prepared.arguments["tangents"] = Tangents(
        made["sizes"],
        made["query_panels"],
        made["key_panels"],
        made["weights"],
        made["value"],
        made["mask"],
    )
    return prepared


def _attend(
    call: Call, of_tangents: Call, primal: Results, tangent: Results, return_weights: bool
) -> None:
    """Compute contexts, lse and scores; if there are few rows, programs split the keys."""
    context, lse, scores = primal
    context_tangent, lse_tangent, scores_tangent = tangent
    if return_weights:
        scores.fill_(-torch.inf)
        scores_tangent.zero_()
    prepared = _prepared(call, of_tangents, configs.tangent_tiles())
    warps, programs = prepared.tile.warps, call.leads * prepared.query_tiles
    tiles = call.seen_tiles(prepared.tile.BI, prepared.tile.BJ, prepared.key_tiles)
    splits = call.parts(programs, warps, tiles)
    parts = {"context": context, "lse": lse}
    parts |= {"context_tangent": context_tangent, "lse_tangent": lse_tangent}
    if splits > 1:
        parts = {name: call.new(splits, *x.shape) for name, x in parts.items()}
    launch(
        jvp_kernel,
        programs * splits,
        prepared.arguments | parts,
        warps=warps,
        scores=scores if return_weights else None,
        scores_tangent=scores_tangent if return_weights else None,
        splits=splits,
    )
    if splits > 1:
        rows = call.leads * call.n
        launch(
            combine_jvp_kernel,
            rows,
            call.arguments,
            warps=4,
            part=parts["context"],
            part_lse=parts["lse"],
            part_tangent=parts["context_tangent"],
            part_lse_tangent=parts["lse_tangent"],
            context=context,
            lse=lse,
            context_tangent=context_tangent,
            lse_tangent=lse_tangent,
            rows=rows,
            splits=splits,
            BV=min(power_of_two(call.dv), 1024),
        )
