"""The forward operators: context, lse and weights, or raw scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..device.forward import combine_kernel, forward_kernel, weights_kernel
from ..device.pairs import scores_kernel
from ..device.step import step_kernel
from . import configs
from .call import Call, Prepared
from .launch import launch, on, power_of_two


def forward(
    *, packed_key: Tensor | None, return_weights: bool, **arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Implement the operator "forward" of ops/signature.py."""
    call = Call(**arguments)
    lead, n, m, dv = call.lead, call.n, call.m, call.dv
    context, lse = call.new(*lead, n, dv), call.new(*lead, n)
    softmax = call.new(*lead, 2 * n)
    weights = call.new(*lead, n, m, fill=-torch.inf) if return_weights else softmax
    with on(call.query):
        _attend(call, context, lse, softmax, weights if return_weights else None)
        if return_weights:
            tiles = -(-n // 32) * -(-m // 64)
            made = {"scores": weights, "softmax": softmax, "BI": 32, "BJ": 64}
            launch(weights_kernel, call.leads * tiles, call.arguments | made, warps=4)
    return context, lse, weights


def _attend(
    call: Call, context: Tensor, lse: Tensor, softmax: Tensor, scores: Tensor | None
) -> None:
    """Compute context, lse and the softmax; if there are few rows, programs split the keys."""
    rows = call.leads * call.n
    if call.step:
        kernel, warps = step_kernel, configs.STEP_WARPS
        arguments = call.step_arguments(configs.STEP_KEYS)
        tiles = call.seen_tiles(1, configs.STEP_KEYS, -(-call.m // configs.STEP_KEYS))
        programs = rows
    else:
        tile = call.tile(configs.TILES, forward=True)
        kernel, warps = forward_kernel, tile.warps
        prepared = Prepared(call, tile)
        arguments = prepared.arguments
        tiles = call.seen_tiles(tile.BI, tile.BJ, prepared.key_tiles)
        programs = call.leads * prepared.query_tiles
    splits = call.parts(programs, warps, tiles)
    parts: tuple[Tensor, ...] = context, lse, softmax
    if splits > 1:
        parts = tuple(call.new(splits, *x.shape) for x in parts)
    launch(
        kernel,
        programs * splits,
        arguments,
        warps=warps,
        context=parts[0],
        lse=parts[1],
        softmax=parts[2],
        scores=scores,
        splits=splits,
    )
    if splits > 1:
        launch(
            combine_kernel,
            rows,
            call.arguments,
            warps=4,
            part=parts[0],
            part_softmax=parts[2],
            context=context,
            lse=lse,
            softmax=softmax,
            rows=rows,
            splits=splits,
            BV=min(power_of_two(call.dv), 1024),
        )


def scores(**arguments: Any) -> Tensor:
    """Implement the operator "scores" of ops/signature.py."""
    call = Call(**arguments)
    result = call.new(*call.lead, call.n, call.m)
    if result.numel():
        with on(call.query):
            tile = call.tile(configs.TILES, forward=True)
            prepared = Prepared(call, tile)
            programs = call.leads * prepared.query_tiles * prepared.key_tiles
            launch(scores_kernel, programs, prepared.arguments, warps=tile.warps, scores=result)
    return result
