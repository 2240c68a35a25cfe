"""First derivatives by the operators of a backend; second derivatives by the formula.

A first derivative costs a few times the forward; the others cost the naive formula's memory.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C import _are_functorch_transforms_active
from torch._C._functorch import TransformType
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.utils._pytree import tree_map

from . import plain
from .codes import DETERMINISTIC
from .failures import explain
from .forward_mode import Jvp, is_first_order, is_in_jvp, is_vectorized, transforms
from .schema import composite
from .signature import (
    BACKWARD,
    FORWARD,
    FORWARD_JVP,
    SCORES,
    SCORES_BACKWARD,
    SCORES_JVP,
    SPARSE_BACKWARD,
    SPARSE_FORWARD,
    Operator,
    Signature,
    Values,
)
from .unmasked import shortened


def differentiable(ops: SimpleNamespace) -> tuple[Operator, Operator]:
    """Return ops.forward and ops.scores, with derivatives if one may be needed.

    Calls with tangents of forward-mode AD are computed by ops.forward_jvp and ops.scores_jvp where
    the backend has them, and otherwise by the formula, as in every backward. The derivatives are
    kept outside the operators: registering them would double the time of a call.
    """
    backward = _function(
        ops.backward,
        plain.backward,
        BACKWARD,
        None,
        _second(BACKWARD, plain.of_attention),
        called=getattr(ops, "undispatched_backward", None),
    )
    gradient = _forward_gradient(backward)
    op = getattr(ops, "forward_jvp", None)
    forward = _function(
        ops.forward,
        plain.forward,
        FORWARD,
        len(FORWARD.leaves),
        gradient,
        keep_outputs=True,
        fused=Jvp(op, plain.forward_jvp, FORWARD_JVP, FORWARD, gradient),
        called=getattr(ops, "undispatched_forward", None) or shortened(ops.forward),
    )
    backward = _function(
        ops.scores_backward,
        plain.scores_backward,
        SCORES_BACKWARD,
        None,
        _second(SCORES_BACKWARD, plain.of_scores),
    )
    gradient = _scores_gradient(backward)
    op = getattr(ops, "scores_jvp", None)
    scores = _function(
        ops.scores,
        plain.scores,
        SCORES,
        len(SCORES.leaves),
        gradient,
        fused=Jvp(op, plain.scores_jvp, SCORES_JVP, SCORES, gradient),
    )
    return forward, scores


def differentiable_over_edges(ops: SimpleNamespace) -> Operator:
    """Return ops.sparse_forward with derivatives, as `differentiable` does."""
    backward = _function(
        ops.sparse_backward,
        plain.sparse_backward,
        SPARSE_BACKWARD,
        None,
        _second(SPARSE_BACKWARD, plain.of_edges),
    )
    return _function(
        ops.sparse_forward,
        plain.sparse_forward,
        SPARSE_FORWARD,
        len(SPARSE_FORWARD.leaves),
        _forward_gradient(backward, SPARSE_FORWARD, SPARSE_BACKWARD),
        keep_outputs=True,
    )


def _forward_gradient(
    backward: Operator, of: Signature = FORWARD, back: Signature = BACKWARD
) -> Operator:
    """Return the derivative of an operator `of`, by the operator `back`."""
    options = of.names[len(of.tensors) :]
    order = back.places_in((*plain.OUTER, *of.tensors, *of.results, *options, "wanted"))
    weights_exist, bits = options.index("return_weights"), _bits(of)

    def gradient(ctx: Any, dc: Any, dlse: Any, da: Any) -> Any:
        if dc is None and dlse is None and da is None:
            return _nothing(ctx)
        saved, options = _exact(ctx.saved_tensors), ctx.options
        da = da if options[weights_exist] else None
        values = (dc, dlse, da, *saved, *options, _wanted(ctx, bits))
        try:
            found = backward(*[values[place] for place in order])
        except RuntimeError as error:
            explain(error)
        return _fitted(ctx, found, saved)

    return gradient


def _scores_gradient(backward: Operator) -> Operator:
    """Return the derivative of ops.scores."""
    bits = _bits(SCORES)

    def gradient(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return _nothing(ctx)
        # backward has the arguments of ops.scores between two of its own
        saved = _exact(ctx.saved_tensors[: len(SCORES.tensors)])
        try:
            found = backward(grad, *saved, *ctx.options, _wanted(ctx, bits))
        except RuntimeError as error:
            explain(error)
        return _fitted(ctx, found, saved)

    return gradient


def _function(
    op: Operator,
    by_formula: Operator,
    signature: Signature,
    leaves: int | None,
    gradient: Operator,
    keep_outputs: bool = False,
    fused: Jvp | None = None,
    called: Operator | None = None,
) -> Operator:
    """Return `op` with the derivative `gradient`, used if one may be needed.

    Where an input has a tangent, `fused` replaces `op` if it exists, or else `by_formula`, which
    differentiates itself in every mode.
    The first `leaves` arguments may require a gradient, or all tensors if `leaves` is None. Tensors
    are saved, and the outputs if requested; the other arguments become ctx.options. `called` is a
    function to call in the place of `op` where nothing transforms or traces the call.
    """
    compute = called or op
    tensors = len(signature.tensors)
    leaves = tensors if leaves is None else leaves

    def keep(ctx: Any, inputs: Values, output: Any) -> None:
        saved = *inputs[:tensors], *(output if keep_outputs else ())
        ctx.save_for_backward(*saved)
        ctx.options = inputs[tensors:]
        ctx.set_materialize_grads(False)

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            outputs = compute(*inputs)
            keep(ctx, inputs, outputs)
            return outputs

        backward = staticmethod(gradient)

    class Transformable(torch.autograd.Function):  # for torch.func; 8 us slower to call
        generate_vmap_rule = True
        backward = staticmethod(gradient)

        @staticmethod
        def forward(*inputs: Any) -> Any:
            return op(*inputs[:tensors], *inputs[tensors].options)

        @staticmethod
        def setup_context(ctx: Any, inputs: Values, output: Any) -> None:
            keep(ctx, (*inputs[:tensors], *inputs[tensors].options), output)

    class WithTangents(Transformable):
        """The same in forward mode, under a transform inside a jvp."""

        @staticmethod
        def setup_context(ctx: Any, inputs: Values, output: Any) -> None:
            Transformable.setup_context(ctx, inputs, output)
            ctx.save_for_forward(*inputs[:tensors], *(output if keep_outputs else ()))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            assert fused is not None
            inputs, _ = fused.unpacked((*ctx.saved_tensors[:tensors], *ctx.options))
            found = fused(inputs, tangents[: fused.leaves])[1]
            outputs = ctx.saved_tensors[tensors:]
            if not outputs or found[-1].numel():
                return found
            # in the place of weights that are not wanted, op keeps what nobody differentiates
            return *found[:-1], torch.zeros_like(outputs[-1])

    class Computed(Plain):
        """The outputs and tangents of `fused`, its last argument, with the derivative of `op`."""

        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            *rest, (outputs, ctx.tangents) = inputs
            outputs = tree_map(torch.detach, outputs)
            keep(ctx, tuple(rest), outputs)
            return outputs

        @staticmethod
        def jvp(ctx: Any, *_: Any) -> Any:
            return ctx.tangents

    def packed(inputs: Values) -> Values:
        return *inputs[:tensors], _Packed(inputs[tensors:])

    seed = signature.names.index("seed") if "seed" in signature.names else None

    def with_tangents(inputs: Values) -> Any:
        if fused is None or not fused.exists(inputs):
            return plain.with_tangents(by_formula, inputs)
        # Where torch.compile gave up on a call, it would still compile its parts: without tangents.
        compiles = "torch._dynamo" in sys.modules
        return (torch.compiler.disable(by_fused) if compiles else by_fused)(inputs)

    def by_fused(inputs: Values) -> Any:
        keys, inside = transforms()
        if not is_first_order(keys, inside):
            return by_formula(*inputs)
        assert fused is not None
        primals, tangents = (inputs, None) if inside else fused.unpacked(inputs)
        if tangents is not None:
            if is_vectorized(tangents):
                return by_formula(*inputs)
            found = fused(primals, tangents)
            if keys or not needs_gradient(inputs):
                return tree_map(forward_ad.make_dual, *found)
            return Computed.apply(*inputs, found)  # reverse mode may follow, with tangents
        if keys:
            drops = seed is not None and inputs[seed] is not None  # no rule maps over its mask
            return by_formula(*inputs) if drops else WithTangents.apply(*packed(inputs))
        return None

    def needs_gradient(inputs: Values) -> bool:
        if is_grad_enabled():
            for x in inputs[:leaves]:
                if x is not None and x.requires_grad:
                    return True
        return False

    def apply(*inputs: Any) -> Any:
        transformed = _are_functorch_transforms_active()
        if forward_ad._current_level >= 0 or (transformed and is_in_jvp()):
            outputs = with_tangents(inputs)
            if outputs is not None:
                return outputs
        if transformed:
            return (
                traced(*inputs) if is_dynamo_compiling() else Transformable.apply(*packed(inputs))
            )
        if is_grad_enabled():  # needs_gradient(), whose call would take 0.1 us
            for x in inputs[:leaves]:
                if x is not None and x.requires_grad:
                    return Plain.apply(*(_distinct(inputs) if is_dynamo_compiling() else inputs))
        return compute(*inputs)

    traced = composite(op, apply)
    return apply


class _Packed:
    """The options of a call as one argument: each transform takes the others apart, one by one."""

    __slots__ = ("options",)

    def __init__(self, options: Values) -> None:
        self.options = options


def _distinct(inputs: Values) -> Values:
    """Return `inputs` with views for tensors that came before, which Dynamo refuses to trace."""
    seen: list[Any] = []
    for x in inputs:
        again = isinstance(x, Tensor) and any(x is y for y in seen)
        seen.append(x.view_as(x) if again else x)
    return tuple(seen)


def _bits(signature: Signature) -> tuple[int, ...]:
    """Return the bits of `wanted` for the leaves, the first arguments, in order."""
    return tuple(each.wanted for each in signature.leaves)


def _wanted(ctx: Any, bits: tuple[int, ...]) -> int:
    wanted = DETERMINISTIC if torch.are_deterministic_algorithms_enabled() else 0
    for bit, need in zip(bits, ctx.needs_input_grad, strict=False):
        if need:
            wanted |= bit
    return wanted


def _nothing(ctx: Any) -> tuple[None, ...]:
    """Return the gradients of the inputs if no output has one."""
    return (None,) * len(ctx.needs_input_grad)


def _fitted(ctx: Any, grads: tuple[Tensor | None, ...], inputs: Any) -> tuple[Tensor | None, ...]:
    """Round gradients to the dtypes of the inputs; return None for those that are not wanted."""
    fitted = [_fit(g, x) for g, x in zip(grads, inputs, strict=False)]
    return *fitted, *(None,) * (len(ctx.needs_input_grad) - len(fitted))


def _fit(grad: Tensor | None, like: Tensor | None) -> Tensor | None:
    if like is None or grad is None:
        return None
    if grad.dim() == 1 and not grad.shape[0] and like.shape != grad.shape:  # not wanted
        return None
    return grad if grad.dtype == like.dtype else grad.to(dtype=like.dtype)


def _exact(saved: Any) -> Any:
    """Return inputs for gradients that are not rounded, under a vmap.

    It sums them for what its examples share, and autograd rounds the sum.
    """
    if not _are_functorch_transforms_active() or TransformType.Vmap not in transforms()[0]:
        return saved
    return tuple(
        x if x is None or x.dtype not in (torch.bfloat16, torch.float16) else x.float()
        for x in saved
    )


def _second(signature: Signature, of: plain.Differentiated) -> Operator:
    """Return the derivative of the operator `signature`, which differentiates of(call)."""

    def gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call = signature.named((*ctx.saved_tensors, *ctx.options))
        second = _second_vjp(*of(call), dict(zip(signature.results, grads, strict=True)))
        return tuple(_fitting(second, name, call) for name in signature.names)

    return gradient


def _second_vjp(
    outputs: plain.Outputs,
    primals: dict[str, Tensor],
    cotangents: dict[str, Tensor],
    grads: dict[str, Tensor | None],
) -> dict[str, Tensor]:
    """Return gradients of cotangents and primals through the first derivative of `outputs`.

    `grads` are those of the first derivatives, named as the primals, of which some may not exist.
    """
    split = len(cotangents)

    def first(*args: Tensor) -> Any:
        return plain.vjp(outputs, dict(zip(primals, args[split:], strict=True)), args[:split])

    found, pull, *_ = torch.func.vjp(first, *cotangents.values(), *primals.values())
    # a gradient that was not computed has no elements, and nothing depends on it
    weights = tuple(
        g if (g := grads[name]) is not None and g.shape == y.shape else torch.zeros_like(y)
        for name, y in zip(primals, found, strict=True)
    )
    return dict(zip((*cotangents, *primals), pull(weights), strict=True))


def _fitting(grads: dict[str, Tensor], name: str, call: plain.Call) -> Tensor | None:
    return _fit(grads[name], call[name]) if name in grads else None
