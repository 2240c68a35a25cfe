"""The operators in terms of the formula, where derivatives need PyTorch's own operations.

Second derivatives go through here, with the formula's use of memory, and so do forward-mode ones
for which a backend has no kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _get_dispatch_mode,
    _TorchDispatchModeKey,
)
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from . import edge_formula, formula
from .codes import find_activation
from .shapes import accumulate_dtype
from .signature import (
    BACKWARD,
    FORWARD,
    FORWARD_JVP,
    SCORES,
    SCORES_BACKWARD,
    SCORES_JVP,
    SPARSE_BACKWARD,
    SPARSE_FORWARD,
    TANGENT,
    EdgeOptions,
    Operator,
    Options,
    Signature,
    Values,
)

Call = dict[str, Any]  # the arguments of an operator by name
Tensors = dict[str, Tensor]
Outputs = Callable[..., tuple[Tensor, ...]]  # the primals by name -> some results of the formula
Differentiated = Callable[[Call], tuple[Outputs, Tensors, Tensors]]  # of_attention and its like

# The incoming gradients, and the outputs they belong to.
OUTER = {"grad_context": "context", "grad_lse": "lse", "grad_weights": "weights"}


def with_tangents(by_formula: Operator, inputs: Values) -> Any:
    """Return by_formula(*inputs) inside a level of forward-mode AD, or None without tangents.

    Under a transform of `torch.func` inputs count as having tangents: it hides those of the levels
    below.

    Raises:
        NotImplementedError: torch.compile traces the call, and no tangent was made in its graph.
    """
    if _are_functorch_transforms_active():
        return by_formula(*inputs)
    found = False
    for x in inputs:
        if isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None:
            found = True
            break
    if is_dynamo_compiling():
        if not found:  # tangents of a graph's inputs are not seen here, and inductor drops them
            raise NotImplementedError(
                "torch.compile cannot trace tangents of forward_ad that were made outside the"
                " compiled function: make them inside it, or use torch.func.jvp"
            )
    elif found and "torch._dynamo" in sys.modules:  # torch.compile gave up on this call: see above
        by_formula = torch.compiler.disable(by_formula)
    return by_formula(*inputs) if found else None


def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the results of ops.forward, rounded, with None for weights that are not wanted."""
    call = FORWARD.named(args)
    _refuse_examples(call)
    if call["seed"] is not None and _get_dispatch_mode(_TorchDispatchModeKey.PROXY) is not None:
        raise NotImplementedError(
            "dropout_p must be 0 under torch.func.linearize, which would draw another mask at every"
            f" call of the linear function, got {call['dropout_p']}: use torch.func.jvp"
        )
    inputs = call["query"], call["key"], call["value"], call["weight"]
    context, weights, lse = formula.attention(*inputs, options=_options(call))
    return context, lse, weights


def scores(*args: Any) -> Tensor:
    """Return the result of ops.scores, rounded."""
    call = SCORES.named(args)
    return formula.scores(call["query"], call["key"], call["weight"], options=_options(call))


def forward_jvp(*args: Any) -> tuple[Tensor, ...]:
    """Return the results of ops.forward_jvp, in the dtype of the arithmetic."""
    call = FORWARD_JVP.named(args)
    _refuse_examples(call)
    options = _options(call)

    def outputs(
        attn_mask: Tensor | None = options.attn_mask, **inputs: Tensor
    ) -> tuple[Tensor, ...]:
        masked = options._replace(attn_mask=attn_mask)
        context, weights, lse = formula.attention(**inputs, options=masked)
        return context, lse, context.new_empty(0) if weights is None else weights

    return _beside_tangents(FORWARD, outputs, call)


def scores_jvp(*args: Any) -> tuple[Tensor, ...]:
    """Return the results of ops.scores_jvp, in the dtype of the arithmetic."""
    call = SCORES_JVP.named(args)
    options = _options(call)
    return _beside_tangents(SCORES, lambda **x: (formula.scores(**x, options=options),), call)


def _beside_tangents(signature: Signature, outputs: Outputs, call: Call) -> tuple[Tensor, ...]:
    acc = accumulate_dtype(call["query"].dtype)
    given = {each.name: call[each.name] for each in signature.leaves}
    primals = {n: x.to(acc) for n, x in given.items() if x is not None and x.is_floating_point()}
    tangents = {n: t.to(acc) for n in primals if (t := call[n + TANGENT]) is not None}

    def moved(*args: Tensor) -> tuple[Tensor, ...]:
        return outputs(**{**primals, **dict(zip(tangents, args, strict=True))})

    at = tuple(primals[name] for name in tangents)
    found, tangent, *_ = torch.func.jvp(moved, at, tuple(tangents.values()))
    return *found, *tangent


def backward(*args: Any) -> tuple[Tensor | None, ...]:
    """Return the gradients of ops.backward, wanted or not, in the dtype of the arithmetic."""
    return _first(BACKWARD, *of_attention(BACKWARD.named(args)))


def scores_backward(*args: Any) -> tuple[Tensor | None, ...]:
    """Return the gradients of ops.scores_backward, as `backward` does."""
    return _first(SCORES_BACKWARD, *of_scores(SCORES_BACKWARD.named(args)))


def sparse_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the results of ops.sparse_forward, as `forward` does."""
    call = SPARSE_FORWARD.named(args)
    inputs = call["query"], call["key"], call["value"], call["weight"]
    context, weights, lse = edge_formula.attention(*inputs, options=_edge_options(call))
    return context, lse, weights


def sparse_backward(*args: Any) -> tuple[Tensor | None, ...]:
    """Return the gradients of ops.sparse_backward, as `backward` does."""
    return _first(SPARSE_BACKWARD, *of_edges(SPARSE_BACKWARD.named(args)))


def of_edges(call: Call) -> tuple[Outputs, Tensors, Tensors]:
    """Return what ops.sparse_backward differentiates, as `of_attention` does."""
    cotangents = {name: g for name in OUTER if (g := call[name]) is not None}
    options = _edge_options(call)._replace(return_weights="grad_weights" in cotangents)

    def outputs(
        value: Tensor | None = None,
        edge_key: Tensor | None = None,
        edge_bias: Tensor | None = None,
        **inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        of_edges = options._replace(edge_key=edge_key, edge_bias=edge_bias)
        context, weights, lse = edge_formula.attention(value=value, **inputs, options=of_edges)
        found: dict[str, Any] = {"context": context, "weights": weights, "lse": lse}
        return tuple(found[OUTER[name]] for name in cotangents)

    return outputs, _primals(call, SPARSE_FORWARD), cotangents


def of_attention(call: Call) -> tuple[Outputs, Tensors, Tensors]:
    """Return what ops.backward differentiates: the outputs, their primals, their cotangents.

    Primals are named as the inputs are, cotangents as in the arguments of ops.backward.
    """
    cotangents = {name: g for name in OUTER if (g := call[name]) is not None}
    options = _options(call)._replace(return_weights="grad_weights" in cotangents)

    def outputs(
        attn_mask: Tensor | None = options.attn_mask, **inputs: Tensor
    ) -> tuple[Tensor, ...]:
        masked = options._replace(attn_mask=attn_mask)
        context, weights, lse = formula.attention(**inputs, options=masked)
        found: dict[str, Any] = {"context": context, "weights": weights, "lse": lse}
        return tuple(found[OUTER[name]] for name in cotangents)

    return outputs, _primals(call, FORWARD), cotangents


def of_scores(call: Call) -> tuple[Outputs, Tensors, Tensors]:
    """Return what ops.scores_backward differentiates, as `of_attention` does."""
    options = _options(call)

    def outputs(**inputs: Tensor) -> tuple[Tensor]:
        return (formula.scores(**inputs, options=options),)

    return outputs, _primals(call, SCORES), {"grad": call["grad"]}


def vjp(outputs: Outputs, primals: Tensors, cotangents: tuple[Tensor, ...]) -> Any:
    """Return the gradients of the primals, in their order."""

    def of_primals(*args: Tensor) -> tuple[Tensor, ...]:
        return outputs(**dict(zip(primals, args, strict=True)))

    return torch.func.vjp(of_primals, *primals.values())[1](cotangents)


def _first(
    signature: Signature, outputs: Outputs, primals: Tensors, cotangents: Tensors
) -> tuple[Tensor | None, ...]:
    found = vjp(outputs, primals, tuple(cotangents.values()))
    grads = dict(zip(primals, found, strict=True))
    return tuple(grads.get(name) for name in signature.results)


def _refuse_examples(call: Call) -> None:
    """Raise ValueError if torch.func.vmap maps over cu_seqlens, whose values the formula reads."""
    for name in ("cu_seqlens_q", "cu_seqlens_k"):
        x = call[name]
        while x is not None and is_functorch_wrapped_tensor(x):
            if is_batchedtensor(x):
                raise ValueError(
                    f"{name} must be shared by all examples of torch.func.vmap, got one each"
                )
            x = get_unwrapped(x)


def _options(call: Call) -> Options:
    """Return the options of an operator's arguments."""
    given = {name: call[name] for name in Options._fields if name in call}
    return Options(**{**given, "activation": find_activation(call["activation"]).name})


def _edge_options(call: Call) -> EdgeOptions:
    given = {name: call[name] for name in EdgeOptions._fields if name in call}
    return EdgeOptions(**{**given, "activation": find_activation(call["activation"]).name})


def _primals(call: Call, signature: Signature) -> Tensors:
    """Return the inputs to differentiate the formula by, in the dtype of the arithmetic."""
    acc = accumulate_dtype(call["query"].dtype)
    leaves = {each.name: call[each.name] for each in signature.leaves}
    return {
        name: x.to(acc) for name, x in leaves.items() if x is not None and x.is_floating_point()
    }
