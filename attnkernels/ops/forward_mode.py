"""Forward-mode derivatives by the fused operators: outputs and their tangents in one sweep.

The tangents are differentiable again, in both modes and by the formula.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C import _are_functorch_transforms_active
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
)
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from .signature import TANGENT, Operator, Signature, Values

_KEYS = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}


def transforms() -> tuple[list[TransformType], list[TransformType]]:
    """Return the transforms of torch.func, the outermost first, and those inside of every jvp."""
    if not _are_functorch_transforms_active():
        return [], []
    keys = [level.key() for level in get_interpreter_stack() or ()]
    inside = keys[::-1]
    return keys, inside[: inside.index(TransformType.Jvp)] if TransformType.Jvp in keys else inside


def is_in_jvp() -> bool:
    """Return True inside of a jvp of torch.func.

    The level of `forward_ad` does not say so where a graph with a grad before the jvp is traced.
    """
    return not is_dynamo_compiling() and TransformType.Jvp in transforms()[0]


def is_first_order(keys: list[TransformType], inside: list[TransformType]) -> bool:
    """Return True unless jvps are nested, or something other than reverse mode is inside of one."""
    return keys.count(TransformType.Jvp) < 2 and all(key == TransformType.Grad for key in inside)


def is_vectorized(tangents: Values) -> bool:
    """Return True for tangents of torch.autograd's own vmap, which has no rule for make_dual."""
    return any(t is not None and is_legacy_batchedtensor(t) for t in tangents)


class Jvp:
    """An operator with tangents as a function of the inputs of the one without.

    Attributes:
        leaves: the number of inputs, the first ones, that may have a tangent.
    """

    def __init__(
        self,
        op: Any,
        by_formula: Operator,
        signature: Signature,
        primal: Signature,
        gradient: Operator,
    ) -> None:
        """Take ops.forward_jvp and its formula, the signatures, and the gradient of ops.forward."""
        self.leaves = len(primal.leaves)
        self._op, self._primal, self._signature = op, primal, signature
        tangents = (each.name + TANGENT for each in primal.leaves)
        self._order = signature.places_in((*tangents, *primal.names))
        self._apply = _differentiable(op, by_formula, signature, primal, gradient).apply

    def exists(self, inputs: Values) -> bool:
        """Return True if the operator has a kernel for these inputs, and no compiler traces it."""
        return not is_dynamo_compiling() and _has_kernel(self._op, inputs[0].device.type)

    def unpacked(self, inputs: Values) -> tuple[Values, Values | None]:
        """Return primals, and the tangents of the leaves, or None if there are none."""
        duals = [
            forward_ad.unpack_dual(x) if isinstance(x, Tensor) and x.is_floating_point() else None
            for x in inputs[: self.leaves]
        ]
        primals = (
            x if dual is None else dual.primal for x, dual in zip(inputs, duals, strict=False)
        )
        tangents = tuple(None if dual is None else dual.tangent for dual in duals)
        found = any(tangent is not None for tangent in tangents)
        return (*primals, *inputs[self.leaves :]), tangents if found else None

    def __call__(self, inputs: Values, tangents: Values) -> tuple[Any, Any]:
        """Return the outputs of the operator without tangents, and their tangents."""
        given = (*tangents, *inputs)
        args = [given[place] for place in self._order]
        outputs = (self._apply if _is_recorded(args) else self._op)(*args)
        half = len(outputs) // 2
        return (outputs[:half], outputs[half:]) if half > 1 else outputs


def _is_recorded(args: list[Any]) -> bool:
    """Return True if the tangents may be differentiated, which costs as much as a small call."""
    keys, _ = transforms()
    if keys and keys != [TransformType.Jvp]:
        return True
    return is_grad_enabled() and any(isinstance(x, Tensor) and _needs_gradient(x) for x in args)


def _needs_gradient(x: Tensor) -> bool:
    while is_functorch_wrapped_tensor(x):  # a transform hides it
        x = get_unwrapped(x)
    return x.requires_grad


@cache
def _has_kernel(op: Any, device_type: str) -> bool:
    key = _KEYS.get(device_type)
    if op is None or key is None:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), key)


def _differentiable(
    op: Any, by_formula: Operator, signature: Signature, primal: Signature, gradient: Operator
) -> type[torch.autograd.Function]:
    """Return `op` as a function whose derivatives are those of the formula.

    Without gradients of tangents, its derivative is that of the operator without tangents.
    """
    count = len(signature.tensors)
    inputs = [signature.names.index(n) if n in signature.names else None for n in primal.tensors]
    half = len(primal.results)

    class Fused(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return op(*args)

        @staticmethod
        def setup_context(ctx: Any, args: Values, outputs: Any) -> None:
            saved = *args[:count], *outputs[:half]
            ctx.save_for_backward(*saved)
            ctx.save_for_forward(*saved)
            ctx.options = args[count:]
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            tensors, outputs = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
            needed = ctx.needs_input_grad
            if all(grad is None for grad in grads[half:]):
                first = SimpleNamespace(
                    saved_tensors=(*(None if i is None else tensors[i] for i in inputs), *outputs),
                    options=ctx.options,
                    needs_input_grad=[i is not None and needed[i] for i in inputs],
                )
                found = dict(zip(inputs, gradient(first, *grads[:half]), strict=True))
                return tuple(found.get(i) for i in range(len(needed)))
            call, places, values = _of_floats(by_formula, tensors, ctx.options)
            outputs, pull, *_ = torch.func.vjp(call, *values)
            weights = (
                torch.zeros_like(y) if g is None else g for g, y in zip(grads, outputs, strict=True)
            )
            pulled = dict(zip(places, pull(tuple(weights)), strict=True))
            return tuple(pulled.get(i) for i in range(len(needed)))

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
            tensors = [_primal(x) for x in ctx.saved_tensors[:count]]
            call, places, values = _of_floats(by_formula, tensors, ctx.options)
            moved = (
                torch.zeros_like(x) if (t := tangents[i]) is None else t
                for i, x in zip(places, values, strict=True)
            )
            return torch.func.jvp(call, tuple(values), tuple(moved))[1]

    return Fused


def _of_floats(by_formula: Operator, tensors: Any, options: Values) -> tuple[Any, Any, Any]:
    """Return the formula as a function of the floating tensors alone, their places, and them."""
    places = [i for i, x in enumerate(tensors) if x is not None and x.is_floating_point()]

    def call(*values: Tensor) -> Any:
        args = list(tensors)
        for place, value in zip(places, values, strict=True):
            args[place] = value
        return by_formula(*args, *options)

    return call, places, [tensors[i] for i in places]


def _primal(x: Tensor | None) -> Tensor | None:
    return x if x is None or not x.is_floating_point() else forward_ad.unpack_dual(x).primal
