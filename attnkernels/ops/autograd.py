"""First derivatives by the backward operators, second ones by differentiating the reference twice.

The first cost what the forward costs, a few times over. The second cost the naive formula's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from . import formula
from .codes import ACTIVATIONS, DETERMINISTIC, KEY, MASK, QUERY, VALUE, WEIGHT
from .shapes import accumulate_dtype

NAMES = {f.code: f.name for f in ACTIVATIONS.values()}


def differentiable(ops: SimpleNamespace) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """ops.forward and ops.scores, with derivatives where a gradient may be asked for.

    The derivatives stand outside the operators: registered with them, a call would take twice the
    time.
    """
    backward = _function(ops.backward, 15, 15, _backward_gradient)
    scores_backward = _function(ops.scores_backward, 4, 4, _scores_backward_gradient)

    def forward_gradient(ctx: Any, dc: Any, dlse: Any, da: Any) -> Any:
        *inputs, context, lse, weights = ctx.saved_tensors
        *options, return_weights = ctx.options
        if dc is None and dlse is None and da is None:
            return _nothing(ctx)
        wanted = _wanted(ctx, (QUERY, KEY, VALUE, WEIGHT, MASK))
        outer = (dc, dlse, da if return_weights else None)
        grads = backward(*outer, *inputs[:8], inputs[9], context, lse, weights, *options, wanted)
        return _fitted(ctx, grads, inputs)

    def scores_gradient(ctx: Any, grad: Tensor | None) -> Any:
        inputs = ctx.saved_tensors
        if grad is None:
            return _nothing(ctx)
        grads = scores_backward(grad, *inputs, *ctx.options, _wanted(ctx, (QUERY, KEY, WEIGHT)))
        return _fitted(ctx, grads, inputs)

    forward = _function(ops.forward, 10, 5, forward_gradient, keep_outputs=True)
    return forward, _function(ops.scores, 3, 3, scores_gradient)


def _function(
    op: Callable[..., Any],
    tensors: int,
    leaves: int,
    gradient: Callable[..., Any],
    keep_outputs: bool = False,
) -> Callable[..., Any]:
    """`op`, with the derivative `gradient` where one may be asked for.

    Its first `tensors` arguments are tensors or None, the first `leaves` of them may want a
    gradient.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:tensors], *(output if keep_outputs else ()))
        ctx.options = inputs[tensors:]
        ctx.set_materialize_grads(False)

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            outputs = op(*inputs)
            keep(ctx, inputs, outputs)
            return outputs

        backward = staticmethod(gradient)

    class Transformable(torch.autograd.Function):  # by torch.func; 8 us slower to call
        generate_vmap_rule = True
        setup_context = staticmethod(keep)
        backward = staticmethod(gradient)

        @staticmethod
        def forward(*inputs: Any) -> Any:
            return op(*inputs)

    def apply(*inputs: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return Transformable.apply(*inputs)
        if torch.is_grad_enabled():
            for x in inputs[:leaves]:
                if x is not None and x.requires_grad:
                    return Plain.apply(*inputs)
        return op(*inputs)

    return apply


def _wanted(ctx: Any, bits: tuple[int, ...]) -> int:
    wanted = sum(bit for bit, need in zip(bits, ctx.needs_input_grad, strict=False) if need)
    return wanted + DETERMINISTIC * torch.are_deterministic_algorithms_enabled()


def _nothing(ctx: Any) -> tuple[None, ...]:
    """The gradients where no output has one."""
    return (None,) * len(ctx.needs_input_grad)


def _fitted(ctx: Any, grads: tuple[Tensor, ...], inputs: Any) -> tuple[Tensor | None, ...]:
    """Gradients of the broadcast shape as those of the inputs: summed, then rounded."""
    fitted = [_fit(g, x) for g, x in zip(grads, inputs, strict=False)]
    return *fitted, *(None,) * (len(ctx.needs_input_grad) - len(fitted))


def _fit(grad: Tensor, like: Tensor | None) -> Tensor | None:
    if like is None or (grad.dim() == 1 and not grad.shape[0]):
        return None
    if grad.shape != like.shape:
        grad = grad.sum_to_size(like.shape)
    return grad if grad.dtype == like.dtype else grad.to(dtype=like.dtype)


def _backward_gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    outer, inner = ctx.saved_tensors[:3], ctx.saved_tensors[3:8]
    lengths, cu_q, cu_k, seed, context, *_ = ctx.saved_tensors[8:]
    dropout_p, is_causal, activation, slope, scale, _ = ctx.options
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
            context, lse = formula.attention_varlen(q, k, u, w, cu_q, cu_k, **options)
        else:
            context, a, lse = formula.attention(
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
    return *found, *(None,) * (len(ctx.needs_input_grad) - len(found))


def _scores_backward_gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    grad, query, key, weight = ctx.saved_tensors
    activation, slope, scale, _ = ctx.options
    lead, acc = grad.shape[:-2], accumulate_dtype(query.dtype)

    def scores(q: Tensor, k: Tensor, w: Tensor) -> tuple[Tensor]:
        name = NAMES[activation]
        out = formula.scores(q, k, w, activation=name, negative_slope=slope, scale=scale)
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

    found, pull, *_ = torch.func.vjp(first, *cotangents, *primals)
    # a gradient that was not computed has no elements, and nothing depends on it
    weights = tuple(
        g if g is not None and g.shape == y.shape else torch.zeros_like(y)
        for g, y in zip(grads, found, strict=False)
    )
    return pull(weights)
