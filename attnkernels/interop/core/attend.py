"""One step of a decoder: the calls of the operator that the library files share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from ...functional.attention import additive_attention
from ...functional.deferred import RepeatedMemory
from ...functional.memory import prepare_keys
from ...ops.codes import ActivationName
from .live import KEPT, adds_something


def attend(
    query: Tensor,
    keys: Tensor,
    value: Tensor,
    weight: nn.Linear,
    *,
    taking_part: Tensor | None = None,
    key_lengths: Tensor | None = None,
    scale: float = 1.0,
    activation: ActivationName = "tanh",
    summed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the context (B, dv) and weights (B, m) of one query per sequence.

    Args:
        query: projected, (B, d).
        keys: projected, (B, m, d).
        value: (B, m, dv).
        weight: the scoring layer, of weight (1, d).
        taking_part: bool (B, m), True for the keys to attend to. None: all of them.
        key_lengths: (B,), the number of keys to attend to.
        scale, activation: as in `attnkernels.additive_attention`.
        summed: True for a library that sums weights * value. Autocast casts the product of
            matrices, but not this sum: the context has the dtype that both promote to.
    """
    tensors = query, once(keys, query), once(value, query), vector(weight)
    wide = _wide(query, value, summed)
    with _without_autocast(query, wide):
        q, k, v, w = _in(wide, *tensors)
        context, weights = additive_attention(
            q.unsqueeze(1),
            k,
            v,
            w,
            attn_mask=None if taking_part is None else taking_part.unsqueeze(1),
            key_lengths=key_lengths,
            scale=scale,
            activation=activation,
            return_weights=True,
        )
    return context.squeeze(1), weights.squeeze(1).to(query.dtype if wide else weights.dtype)


def attend_again(
    module: nn.Module,
    query: Tensor,
    keys: Tensor,
    value: Tensor,
    weight: nn.Linear,
    *,
    mask: Tensor,
    lengths: Callable[[], Tensor],
    scale: float,
    summed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute `attend` for keys that come back step after step.

    The keys are prepared once, and their gradients are computed after all steps. They are prepared
    again if a tensor is replaced (by ``reset`` or the reordering of a beam) or changed in place,
    or if grad mode changes. Changes in place go unnoticed in inference mode, whose tensors have no
    version counter.

    Args:
        module: the module that the prepared keys are kept in.
        query, keys, value, weight: as in `attend`.
        mask: the module's own mask, from which ``lengths`` always returns the same lengths.
        lengths: a function that returns the lengths (B,) of the keys.
        scale, summed: as in `attend`.
    """
    if is_compiling():  # a graph keeps nothing and reads no versions
        return attend(query, keys, value, weight, key_lengths=lengths(), scale=scale, summed=summed)
    wide = _wide(query, value, summed)
    read = weight.weight  # once: a parametrisation computes it
    given = (keys, value, read, mask)
    versions = [0 if x.is_inference() else x._version for x in given]
    also = (scale, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), versions, wide)
    kept = module.__dict__.get(KEPT)
    if kept is None or kept[1] != also or any(map(is_not, kept[0], given)):
        tensors = once(keys, query), once(value, query), vector(weight, read)
        with _without_autocast(query, wide):
            k, v, w = _in(wide, *tensors)
            memory = prepare_keys(k, v, w, key_lengths=lengths(), scale=scale)
        kept = given, also, RepeatedMemory(memory)
        module.__dict__[KEPT] = kept
    with _without_autocast(query, wide):
        (q,) = _in(wide, query)
        context, weights = kept[2].attend(q.unsqueeze(1))
    return context.squeeze(1), weights.squeeze(1).to(query.dtype if wide else weights.dtype)


def _wide(query: Tensor, value: Tensor, summed: bool) -> torch.dtype | None:
    """Return the dtype that a sum has where autocast casts no sums, or None without autocast."""
    kind = query.device.type
    if not summed or kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.promote_types(query.dtype, value.dtype)


def _in(wide: torch.dtype | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tensors if wide is None else tuple(x.to(wide) for x in tensors)


def _without_autocast(query: Tensor, wide: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if wide is None else torch.autocast(query.device.type, enabled=False)


def vector(layer: nn.Linear, weight: Tensor | None = None) -> Tensor:
    """Return the scoring vector (d,) of a layer that scores.

    The softmax cancels the bias of the layer. It takes part with a factor of 0: its gradient is 0
    as in the library, not None, and data-parallel training waits for it.

    Args:
        layer: of weight (1, d).
        weight: ``layer.weight`` if it is read already, which a parametrisation computes.
    """
    found = (layer.weight if weight is None else weight)[0]
    return found if layer.bias is None else torch.add(found, layer.bias, alpha=0.0)


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """Return ``layer(x)``, computed once for a batch whose entries are one, such as beams."""
    if _is_repeated(x) and adds_something(layer) is None:
        y: Tensor = layer(x[:1])
        return y.expand(x.shape[0], *y.shape[1:])
    found: Tensor = layer(x)
    return found


def once(x: Tensor, query: Tensor) -> Tensor:
    """Return ``x`` (B, ...) as (1, ...) if its entries are one and ``query`` has B, too."""
    return x[:1] if _is_repeated(x) and query.shape[0] == x.shape[0] else x


def _is_repeated(x: Tensor) -> bool:
    """Return True if `expand` made the batch, and no gradient tells its entries apart."""
    wants = x.requires_grad and torch.is_grad_enabled()
    return x.stride(0) == 0 and x.shape[0] > 1 and not wants


def beyond(lengths: Tensor, m: int) -> Tensor:
    """Return bool (B, m), True at the positions at and beyond the lengths (B,)."""
    return torch.arange(m, device=lengths.device) >= lengths.unsqueeze(1)
