"""The backward operators: gradients of the scores, (E4), and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....ops.codes import BLOCK, KEY, MASK, QUERY, VALUE, WEIGHT
from ..device.pairs import gradient_kernel, value_kernel
from ..device.rows import Outer, Run
from ..device.step import step_gradient_kernel
from . import bands, configs, sine_sweeps, sweeps
from .call import Call, Prepared
from .launch import launch, on


def backward(
    *,
    grad_context: Tensor | None,
    grad_lse: Tensor | None,
    grad_weights: Tensor | None,
    context: Tensor,
    lse: Tensor,
    weights: Tensor,
    wanted: int,
    **arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Implement the operator "backward" of ops/signature.py."""
    call = Call(**arguments)
    # D_i of (E4) with all terms that do not depend on j; and sum_ij ds_ij, as sum_j a_ij is 1 or 0,
    # but not in a block
    delta, total = call.new(*call.lead, call.n).zero_(), call.new(*call.lead).zero_()
    if grad_context is not None:
        delta += (grad_context * context).sum(-1)
    weights_delta = None
    if grad_weights is not None:
        weights_delta = (grad_weights * weights).sum(-1)
        delta += weights_delta
    if grad_lse is not None:
        delta -= grad_lse
        if not wanted & BLOCK:
            total += torch.where(lse == -torch.inf, 0.0, grad_lse).sum(-1)
    softmax = weights.contiguous() if weights.numel() and weights.dim() == lse.dim() else None
    given = weights.contiguous() if softmax is None and arguments.get("seed") is None else None
    outer = Outer(
        softmax,
        lse.contiguous(),
        given if given is not None and given.numel() else None,
        delta,
        context.contiguous(),
        weights_delta,
        *(None if x is None else x.contiguous() for x in (grad_context, grad_weights, grad_lse)),
    )
    used = grad_context is not None and bool(wanted & VALUE)  # the weights, for grad_value
    grad_value = call.new(*call.lead, call.m, call.dv).zero_() if wanted & VALUE else call.new(0)
    grad_mask = call.new(0)
    if wanted & MASK:
        grad_mask = call.new(*arguments["attn_mask"].shape).zero_()
    if not call.leads * call.n * call.m:
        sums = _nothing(call)
    else:
        with on(call.query):
            whole = _step if call.step else _tiles
            sums = whole(call, outer, total, grad_value if used else None, grad_mask, wanted)
    grad_query, grad_key, grad_weight = _wanted(sums, call, wanted)
    grad_value = _like(grad_value, arguments["value"]) if wanted & VALUE else grad_value
    return grad_query, grad_key, grad_value, grad_weight, grad_mask


def scores_backward(
    *, grad: Tensor, wanted: int, **arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Implement the operator "scores_backward" of ops/signature.py."""
    call = Call(**arguments)
    if not call.leads * call.n * call.m:
        return _wanted(_nothing(call), call, wanted)
    with on(call.query):
        if call.step:
            return _wanted(sweeps.stepwise(call, grad.contiguous()), call, wanted)
        prepared = Prepared(call, call.tile(configs.backward_tiles()))

        def fill(ds: Tensor, first: int) -> None:
            part = grad[..., first : first + ds.shape[-1], :]
            ds.zero_()
            ds.view(*call.lead, -1, ds.shape[-1])[..., : call.m, : part.shape[-2]] = part.mT

        return _wanted(_windowed(prepared, grad.sum((-2, -1)), fill), call, wanted)


def _tiles(
    call: Call,
    outer: Outer,
    total: Tensor,
    grad_value: Tensor | None,
    grad_mask: Tensor,
    wanted: int,
) -> sweeps.Sums:
    prepared = Prepared(call, call.tile(configs.backward_tiles()))
    if bands.pays(prepared) and not grad_mask.numel() and not wanted & BLOCK:
        return _runs(prepared, outer, total, grad_value)
    tile, key_tiles = prepared.tile, prepared.key_tiles
    used = None

    def fill(ds: Tensor, first: int) -> None:
        nonlocal used
        width = ds.shape[-1]
        if used is None and grad_value is not None:
            used = torch.empty_like(ds)
        arguments = prepared.arguments | {"outer": outer, "grad_context": outer.grad_context}
        arguments |= {"ds": ds, "used": used, "run": None, "window": first, "width": width}
        window_tiles = -(-width // tile.BI)
        programs = call.leads * key_tiles * window_tiles
        launch(gradient_kernel, programs, arguments, tile.warps, window_tiles=window_tiles)
        _add_values(prepared, arguments, grad_value)
        pairs = ds.view(*call.lead, -1, width)[..., : call.m, : min(width, call.n - first)].mT
        if wanted & BLOCK:
            total.add_(pairs.sum((-2, -1)))
        if grad_mask.numel():
            _add_summed(grad_mask, pairs, first)

    return _windowed(prepared, total, fill)


def _windowed(
    prepared: Prepared, total: Tensor, fill: Callable[[Tensor, int], None]
) -> sweeps.Sums:
    of = sweeps if prepared.arguments["sines"] is None else sine_sweeps
    return of.windowed(prepared, total, fill)


def _runs(
    prepared: Prepared, outer: Outer, total: Tensor, grad_value: Tensor | None
) -> sweeps.Sums:
    tile, used = prepared.tile, None

    def fill(ds: Tensor, run: Run) -> None:
        nonlocal used
        if used is None and grad_value is not None:
            used = torch.empty_like(ds)
        arguments = prepared.arguments | {"outer": outer, "grad_context": outer.grad_context}
        arguments |= {"ds": ds, "used": used, "run": run} | bands.NO_WINDOW
        programs = ds.numel() // (tile.BI * tile.BJ)
        launch(gradient_kernel, programs, arguments, tile.warps)
        _add_values(prepared, arguments, grad_value)

    return bands.swept(prepared, total, fill)


def _add_values(prepared: Prepared, arguments: dict[str, Any], grad_value: Tensor | None) -> None:
    """Add what the weights of a window or a run give to the gradient of the values, if wanted."""
    if grad_value is None:
        return
    call, tile = prepared.call, prepared.tile
    programs = call.leads * prepared.key_tiles * -(-call.dv // prepared.arguments["BV"])
    more = {"grad_value": grad_value, "BI": 32, "TILE": tile.BI}
    launch(value_kernel, programs, arguments, tile.warps, **more)


def _step(
    call: Call,
    outer: Outer,
    total: Tensor,
    grad_value: Tensor | None,
    grad_mask: Tensor,
    wanted: int,
) -> sweeps.Sums:
    ds, used = call.new(*call.lead, call.n, call.m), call.new(*call.lead, call.n, call.m)
    launch(
        step_gradient_kernel,
        call.leads * call.n * -(-call.m // configs.STEP_KEYS),
        call.step_arguments(configs.STEP_KEYS) | {"outer": outer},
        warps=configs.STEP_WARPS,
        ds=ds,
        used=used,
    )
    if grad_value is not None:
        torch.matmul(used.mT, outer.grad_context, out=grad_value)
    if grad_mask.numel():
        _add_summed(grad_mask, ds, 0)
    return sweeps.stepwise(call, ds)


def _add_summed(grad_mask: Tensor, pairs: Tensor, first: int) -> None:
    """Add the gradients of the pairs, from query `first` on, to those of a mask that broadcasts."""
    rows = grad_mask if grad_mask.dim() > 1 else grad_mask.view(1, -1)
    if rows.shape[-2] > 1:
        rows = rows[..., first : first + pairs.shape[-2], :]
    rows += pairs.sum_to_size(rows.shape)


def _nothing(call: Call) -> sweeps.Sums:
    n, m, d = call.n, call.m, call.d
    return tuple(call.new(*call.lead, *x).zero_() for x in ((n, d), (m, d), (d,)))  # type: ignore


def _wanted(sums: sweeps.Sums, call: Call, wanted: int) -> sweeps.Sums:
    """Return the wanted sums as gradients; that of the weight is not rounded."""
    grad_query, grad_key, grad_weight = sums
    nothing = call.new(0)
    return (
        _like(grad_query, call.query) if wanted & QUERY else nothing,
        _like(grad_key, call.key) if wanted & KEY else nothing,
        grad_weight.sum_to_size(call.weight.shape) if wanted & WEIGHT else nothing,
    )


def _like(grad: Tensor, x: Tensor) -> Tensor:
    return grad.sum_to_size(x.shape).to(x.dtype)
