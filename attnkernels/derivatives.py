"""First derivatives by the backward operators, second ones by differentiating the reference twice.

The first cost what the forward costs, a few times over. The second cost the naive formula's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .backends import reference
from .backends.base import accumulate_dtype

ACTIVATIONS = {"tanh": 0, "sigmoid": 1, "relu": 2, "leaky_relu": 3}
NAMES = tuple(ACTIVATIONS)

# `wanted` is a sum of these: the gradients to compute. The others come back without elements.
QUERY, KEY, WEIGHT, VALUE, MASK = 1, 2, 4, 8, 16


def formulas(ops: SimpleNamespace) -> dict[str, tuple[Callable[..., Any], Callable[..., None]]]:
    """(gradient, setup_context) of each operator that has a gradient."""

    def forward(ctx: Any, dc: Tensor, dlse: Tensor, da: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, context, lse, weights = _saved(ctx)
        tensors, (_, seed, *options, return_weights) = inputs[:8], inputs[8:]
        wanted = _wanted(ctx, (QUERY, KEY, VALUE, WEIGHT, MASK))
        da = da if return_weights else None
        outputs = (context, lse, weights)
        grads = ops.backward(dc, dlse, da, *tensors, seed, *outputs, *options, wanted)
        return _fitted(grads, inputs)

    def scores(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = _saved(ctx)
        wanted = _wanted(ctx, (QUERY, KEY, WEIGHT))
        return _fitted(ops.scores_backward(grad, *inputs, wanted), inputs)

    return {
        "forward": (forward, _save_with_outputs),
        "backward": (_backward_gradient, _save),
        "scores": (scores, _save),
        "scores_backward": (_scores_backward_gradient, _save),
    }


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.inputs = [Tensor if isinstance(x, Tensor) else x for x in inputs]


def _save_with_outputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, (*inputs, *output), None)
    ctx.set_materialize_grads(False)


def _saved(ctx: Any) -> list[Any]:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if x is Tensor else x for x in ctx.inputs]


def _wanted(ctx: Any, bits: tuple[int, ...]) -> int:
    return sum(bit for bit, need in zip(bits, ctx.needs_input_grad, strict=False) if need)


def _fitted(grads: tuple[Tensor, ...], inputs: list[Any]) -> tuple[Tensor | None, ...]:
    """Gradients of the broadcast shape as those of the inputs: summed, then rounded."""
    fitted = [_fit(g, x) for g, x in zip(grads, inputs, strict=False)]
    return *fitted, *(None,) * (len(inputs) - len(fitted))


def _fit(grad: Tensor, like: Tensor | None) -> Tensor | None:
    if like is None or (grad.dim() == 1 and not grad.shape[0]):
        return None
    if grad.shape != like.shape:
        grad = grad.sum_to_size(like.shape)
    return grad if grad.dtype == like.dtype else grad.to(like.dtype)


def _backward_gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    inputs = _saved(ctx)
    outer, inner, lengths, cu_q, cu_k = inputs[:3], inputs[3:8], *inputs[8:11]
    seed, context, _, _, dropout_p, is_causal, activation, slope, scale, _ = inputs[11:]
    lead = context.shape[:-2]
    options = {
        "is_causal": is_causal,
        "dropout_p": dropout_p,
        "seed": seed,
        "activation": NAMES[activation],
        "negative_slope": slope,
        "scale": scale,
    }

    def outputs(q: Tensor, k: Tensor, u: Tensor, w: Tensor, mask: Tensor | None = inner[4]) -> Any:
        a = None
        if cu_q is not None:
            context, lse = reference.attention_varlen(q, k, u, w, cu_q, cu_k, **options)
        else:
            context, a, lse = reference.attention(
                q,
                k,
                u,
                w,
                attn_mask=mask,
                key_lengths=lengths,
                return_weights=outer[2] is not None,
                **options,
            )
        return tuple(y for y, g in zip((context, lse, a), outer, strict=True) if g is not None)

    trailing = (2, 2, 2, 1)
    acc = accumulate_dtype(inner[0].dtype)
    primals = [
        x.to(acc).expand(*lead, *x.shape[-t:]) for x, t in zip(inner, trailing, strict=False)
    ]
    if inner[4] is not None and inner[4].is_floating_point():
        primals.append(inner[4].to(acc))
    cotangents = [g for g in outer if g is not None]
    second = _second_vjp(outputs, primals, cotangents, grads)
    of_outer = iter(second[: len(cotangents)])
    of_inner = [_fit(g, x) for g, x in zip(second[len(cotangents) :], inner, strict=False)]
    found = [None if g is None else next(of_outer) for g in outer] + of_inner
    return *found, *(None,) * (len(inputs) - len(found))


def _scores_backward_gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    grad, query, key, weight, activation, slope, scale, _ = _saved(ctx)
    lead, acc = grad.shape[:-2], accumulate_dtype(query.dtype)

    def scores(q: Tensor, k: Tensor, w: Tensor) -> tuple[Tensor]:
        name = NAMES[activation]
        out = reference.scores(q, k, w, activation=name, negative_slope=slope, scale=scale)
        return (out,)

    trailing = (2, 2, 1)
    inner = (query, key, weight)
    primals = [x.to(acc).expand(*lead, *x.shape[-t:]) for x, t in zip(inner, trailing, strict=True)]
    second = _second_vjp(scores, primals, [grad], grads)
    found = [_fit(g, x) for g, x in zip(second, (grad, *inner), strict=True)]
    return *found, None, None, None, None


def _second_vjp(
    outputs: Callable[..., tuple[Tensor, ...]],
    primals: list[Tensor],
    cotangents: list[Tensor],
    grads: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Gradients of (*cotangents, *primals) through the first derivative of `outputs`."""
    split = len(cotangents)

    def first(*args: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(outputs, *args[split:])[1](args[:split])

    found, pull = torch.func.vjp(first, *cotangents, *primals)
    # a gradient that was not computed has no elements, and nothing depends on it
    weights = tuple(
        g if g is not None and g.shape == y.shape else torch.zeros_like(y)
        for g, y in zip(grads, found, strict=False)
    )
    return pull(weights)
