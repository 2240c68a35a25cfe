"""The calls under test, each with the signature of the public function that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnkernels import (
    additive_attention,
    additive_attention_varlen,
    additive_scores,
    prepare_keys,
)

from . import naive
from .case import TRAILING, Case
from .tensors import laid_out

Call = Callable[..., Any]
_OF_MEMORY = ("key_lengths", "activation", "negative_slope", "scale", "backend")
_MASKS = ("attn_mask", "key_lengths")
_PUBLIC: dict[str, Call] = {
    "attention": additive_attention,
    "varlen": additive_attention_varlen,
    "scores": additive_scores,
}
_NAIVE = {"attention": naive.attention, "varlen": naive.varlen, "scores": naive.scores}
_NAMES = {"emulated": "native", "interpreted": "triton"}  # of the backends that have others here


def call_of(case: Case) -> Call:
    """Return the call that the case tests; the formula of `naive` tests the reference."""
    if case.call in _PUBLIC:
        if case.backend == "reference":
            tested: Call = _NAIVE[case.call]
        else:
            tested = partial(_PUBLIC[case.call], backend=name_of(case.backend))
    else:
        of_case = {"attend": _attend, "vmap": _mapped(case)}[case.call]
        tested = partial(of_case, backend=name_of(case.backend))
    return _with_layout(tested, case.gradient_layout)


def naive_of(case: Case) -> Call:
    """Return the formula, over the keys that take part alone."""
    return _NAIVE.get(case.call, naive.attention)


def reference_of(case: Case) -> Call:
    """Return the reference, which computes masked pairs too."""
    return partial(_PUBLIC.get(case.call, additive_attention), backend="reference")


def name_of(backend: str) -> str:
    """Return the name that the library has for one of `LIMITS`."""
    return _NAMES.get(backend, backend)


def _attend(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, **options: Any) -> Any:
    of_memory = {name: options.pop(name) for name in _OF_MEMORY if name in options}
    return prepare_keys(key, value, weight, **of_memory).attend(query, **options)


def _mapped(case: Case) -> Call:
    """Return `additive_attention` mapped over the first leading dimension."""

    def call(*inputs: Tensor, **options: Any) -> Any:
        tensors = dict(zip(("query", "key", "value", "weight"), inputs, strict=True))
        masks = {
            name: options.pop(name) for name in ("attn_mask", "key_lengths") if name in options
        }
        tensors |= masks
        dims: list[int | None] = []
        for name, x in tensors.items():
            has_it = x.dim() - TRAILING.get(name, 0) == len(case.lead)
            mapped = has_it and x.shape[0] == case.lead[0]
            dims.append(0 if mapped else None)
            if has_it and not mapped:  # of size 1
                tensors[name] = x.squeeze(0)
        if all(dim is None for dim in dims):
            return additive_attention(*inputs, **masks, **options)
        return torch.func.vmap(partial(_by_name, tuple(tensors), options), tuple(dims))(
            *tensors.values()
        )

    return call


def _by_name(names: tuple[str, ...], options: dict[str, Any], *tensors: Tensor) -> Any:
    return additive_attention(**dict(zip(names, tensors, strict=True)), **options)


class _Layout(torch.autograd.Function):
    """The identity, whose gradient arrives in another layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: str) -> Tensor:
        ctx.layout = layout
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return laid_out(gradient, ctx.layout), None


def _with_layout(call: Call, layout: str) -> Call:
    """Return `call`, whose kernels see incoming gradients in `layout`."""
    if layout in ("plain", "expanded"):
        return call

    def laid(*inputs: Tensor, **options: Any) -> Any:
        outputs = call(*inputs, **options)
        if isinstance(outputs, tuple):
            return tuple(_Layout.apply(x, layout) for x in outputs)
        return _Layout.apply(outputs, layout)

    return laid
