"""The operators behind the backends with kernels: one schema, one fake and one vmap rule each.

`define("native", "forward", ...)` makes attnkernels::native_forward and so on; a library, or a
module by `implement`, then supplies implementations for its devices. Outputs are in the dtype of
the arithmetic (float32, or float64 for float64). Gradients have the leading shape L that the inputs
broadcast to, and the dtype of their input, or that of the arithmetic where they are still to be
summed over L; callers sum and round.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from . import vmap as vmaps
from .codes import KEY, LANE, MASK, PANEL, QUERY, VALUE, WEIGHT
from .shapes import accumulate_dtype, leading_shape

_library = Library("attnkernels", "DEF")

_TENSORS = (
    "Tensor query, Tensor key, Tensor value, Tensor weight, Tensor? attn_mask, "
    "Tensor? key_lengths, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k"
)
_ACTIVATION = "int activation, float negative_slope, float scale"
_OPTIONS = f"float dropout_p, bool is_causal, {_ACTIVATION}"
SCHEMAS = {
    "forward": f"({_TENSORS}, Tensor? packed_key, Tensor? seed, {_OPTIONS}, bool return_weights)"
    " -> (Tensor context, Tensor lse, Tensor weights)",
    "backward": "(Tensor? grad_context, Tensor? grad_lse, Tensor? grad_weights, "
    f"{_TENSORS}, Tensor? seed, Tensor context, Tensor lse, Tensor weights, {_OPTIONS}, int wanted)"
    " -> (Tensor query, Tensor key, Tensor value, Tensor weight, Tensor attn_mask)",
    "scores": f"(Tensor query, Tensor key, Tensor weight, {_ACTIVATION}) -> Tensor",
    "scores_backward": f"(Tensor grad, Tensor query, Tensor key, Tensor weight, {_ACTIVATION}, "
    "int wanted) -> (Tensor query, Tensor key, Tensor weight)",
    "pack_keys": "(Tensor key, int activation) -> Tensor",
}


def define(prefix: str, *names: str) -> SimpleNamespace:
    """Define one backend's operators, those of `names`; returns their overloads by name."""
    ops = SimpleNamespace()
    for name in names:
        full = f"{prefix}_{name}"
        _library.define(full + SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
        setattr(ops, name, getattr(torch.ops.attnkernels, full).default)
        torch.library.register_fake(f"attnkernels::{full}", FAKES[name], lib=_library)
    rules = vmaps.rules(ops)
    for name in names:
        torch.library.register_vmap(f"attnkernels::{prefix}_{name}", rules[name], lib=_library)
    return ops


def implement(full: str, function: Callable[..., Any], dispatch_key: str) -> None:
    """Give operator `full` a Python implementation for one kind of device."""
    _library.impl(full, function, dispatch_key)


def _new(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=accumulate_dtype(like.dtype))


def _lead(query: Tensor, key: Tensor, weight: Tensor, *others: tuple[int, ...]) -> tuple[int, ...]:
    return leading_shape(query.shape[:-2], key.shape[:-2], weight.shape[:-1], *others)


def _attention_lead(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    attn_mask: Tensor | None,
    key_lengths: Tensor | None,
) -> tuple[int, ...]:
    mask_lead = () if attn_mask is None else attn_mask.shape[:-2]
    lengths_lead = () if key_lengths is None else key_lengths.shape
    return _lead(query, key, weight, value.shape[:-2], mask_lead, lengths_lead)


def _gradient(x: Tensor | None, lead: tuple[int, ...], trailing: int, wanted: int) -> Tensor:
    """Of a matrix: in x's dtype, unless x is broadcast and the gradient still to be summed."""
    assert x is not None
    if not wanted:
        return _new(x, 0)
    shape = (*lead, *x.shape[x.dim() - trailing :])
    summed = trailing < 2 or x.shape != shape
    return _new(x, *shape) if summed else x.new_empty(shape)


def _fake_forward(*args: Any) -> tuple[Tensor, ...]:
    query, key, value = args[:3]
    lead, n, m = _attention_lead(*args[:6]), query.shape[-2], key.shape[-2]
    context = _new(query, *lead, n, value.shape[-1])
    return context, _new(query, *lead, n), _new(query, *((*lead, n, m) if args[-1] else (0,)))


def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    query, key, value, weight, attn_mask = args[3:8]
    lead, wanted = _attention_lead(*args[3:9]), args[-1]
    return (
        _gradient(query, lead, 2, wanted & QUERY),
        _gradient(key, lead, 2, wanted & KEY),
        _gradient(value, lead, 2, wanted & VALUE),
        _gradient(weight, lead, 1, wanted & WEIGHT),
        _new(query, *(attn_mask.shape if wanted & MASK else (0,))),
    )


def _fake_scores(query: Tensor, key: Tensor, weight: Tensor, *options: Any) -> Tensor:
    return _new(query, *_lead(query, key, weight), query.shape[-2], key.shape[-2])


def _fake_scores_backward(*args: Any) -> tuple[Tensor, ...]:
    query, key, weight = args[1:4]
    lead, wanted = _lead(query, key, weight), args[-1]
    return (
        _gradient(query, lead, 2, wanted & QUERY),
        _gradient(key, lead, 2, wanted & KEY),
        _gradient(weight, lead, 1, wanted & WEIGHT),
    )


def _fake_pack_keys(key: Tensor, activation: int) -> Tensor:
    m, d = key.shape[-2:]
    panels, rows = (m + PANEL - 1) // PANEL, (d + LANE - 1) // LANE * LANE + 1
    return _new(key, *key.shape[:-2], panels, rows, PANEL)


FAKES: dict[str, Callable[..., Any]] = {
    "forward": _fake_forward,
    "backward": _fake_backward,
    "scores": _fake_scores,
    "scores_backward": _fake_scores_backward,
    "pack_keys": _fake_pack_keys,
}
