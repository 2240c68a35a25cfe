"""One step of a decoder whose keys have features of their positions added to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...backends import native
from ...functional.stepwise import StepwiseMemory, recomputes
from .attend import attend, once, vector
from .live import adds_something


def attend_located(
    query: Tensor,
    keys: Tensor,
    value: Tensor,
    weight: nn.Linear,
    *,
    features: Tensor,
    projection: nn.Module,
    taking_part: Tensor,
    lengths: Callable[[], Tensor],
    scale: float,
    summed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute `attend` for keys + projection(features).

    Where there are kernels for it, the sum is kept in registers, and the backward computes it
    again: it is as large as the keys, at every step.

    Args:
        query, keys, value, weight: as in `attend`.
        features: (B, m, c).
        projection: a layer from c to d features.
        taking_part: bool (B, m), True for the first keys of each sequence.
        lengths: a function that returns their number (B,).
        scale, summed: as in `attend`.
    """
    if not _has_kernel(projection, query, keys, value, features, *weight.parameters()):
        sums = keys + projection(features)
        return attend(
            query, sums, value, weight, taking_part=taking_part, scale=scale, summed=summed
        )
    assert isinstance(projection, nn.Linear)
    memory = StepwiseMemory(
        keys,
        value,
        vector(weight),
        projection.weight.mT.unsqueeze(1),
        key_lengths=lengths(),
        scale=scale,
        precision="exact",
        backend=None,
        steps=1,
    )
    query = query if projection.bias is None else query + projection.bias
    context, weights = memory.attend(query.unsqueeze(1), features.mT)
    return context.squeeze(1), weights.squeeze(1)


def _has_kernel(projection: nn.Module, query: Tensor, keys: Tensor, *others: Tensor) -> bool:
    if adds_something(projection) or not native.aligns(keys) or not keys.numel():
        return False
    if torch.is_autocast_enabled("cpu") or once(keys, query) is not keys:
        return False
    tensors = query, keys, *others, *projection.parameters()
    return recomputes(*tensors) and all(x.dtype is keys.dtype for x in tensors)
