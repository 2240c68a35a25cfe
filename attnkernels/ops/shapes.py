"""Shapes, dtypes and masks of a call: the leading shape, and the pairs that take part."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the arithmetic, and of lse."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def leading_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that `shapes` broadcast to; raise ValueError if they do not.

    Faster than `torch.broadcast_shapes` in the common case: equal shapes cost one comparison.
    Lengths are compared first: tuples compare sizes before their lengths, and a trace would be
    bound to the outcome.
    """
    result = shapes[0]
    for shape in shapes[1:]:
        if shape and (len(shape) != len(result) or shape != result):
            result = _broadcast(result, shape)
    return tuple(result)


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    result = list(longer)
    for i, size in enumerate(shorter, len(longer) - len(shorter)):
        if result[i] == 1:
            result[i] = size
        elif size != 1 and size != result[i]:
            raise ValueError(f"shapes must broadcast, got {tuple(a)} and {tuple(b)}")
    return tuple(result)


def attention_lead(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    attn_mask: Tensor | None,
    *bounds: Tensor | None,
) -> tuple[int, ...]:
    """Return the leading shape of an attention; `bounds` are its lengths and starts of keys."""
    return leading_shape(
        query.shape[:-2],
        key.shape[:-2],
        value.shape[:-2],
        weight.shape[:-1],
        () if attn_mask is None else attn_mask.shape[:-2],
        *(x.shape for x in bounds if x is not None),
    )


def by_row(
    like: Tensor, shape: tuple[int, ...], trailing: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Return an empty tensor of `shape`, whose last `trailing` dimensions are rows, lying by row.

    In memory the last leading dimension, usually that of heads, is inside of the rows, as in graph
    libraries' (nodes, heads, channels). Without leading dimensions the tensor is contiguous.
    """
    inner = len(shape) - trailing  # the place of the rows, after the leading dimensions
    if inner == 0:
        return like.new_empty(shape, dtype=dtype)
    lying = list(shape)
    lying[inner - 1], lying[inner] = lying[inner], lying[inner - 1]
    return like.new_empty(lying, dtype=dtype).transpose(inner - 1, inner)


def present_keys(key_lengths: Tensor | None, key_starts: Tensor | None, m: int) -> Tensor | None:
    """Return bool (*L, m): True for keys from the start of their sequence to its end.

    Return None if there are neither ends nor starts.
    """
    conditions = []
    if key_lengths is not None:
        conditions.append(torch.arange(m, device=key_lengths.device) < key_lengths.unsqueeze(-1))
    if key_starts is not None:
        conditions.append(torch.arange(m, device=key_starts.device) >= key_starts.unsqueeze(-1))
    return reduce(torch.logical_and, conditions) if conditions else None


def combine_masks(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None,
    present: Tensor | None,
    left: int | None,
    right: int | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return (taking_part, bias) of (E2), each None or broadcastable to (*L, n, m).

    taking_part is bool, True for the pairs that no mask excludes. bias is floating and added to s.
    present is that of `present_keys`; left and right are the sides of the window, where None is no
    limit.
    """
    n, m = query.shape[-2], key.shape[-2]
    bias = None
    conditions = []
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        conditions.append(attn_mask)
    elif attn_mask is not None:
        bias = attn_mask
        conditions.append(attn_mask != float("-inf"))
    if present is not None:
        conditions.append(present.unsqueeze(-2))
    if left is not None or right is not None:
        ahead = torch.arange(m, device=query.device)
        ahead = ahead - torch.arange(n, device=query.device).unsqueeze(-1)
        if left is not None:
            conditions.append(ahead >= -left)
        if right is not None:
            conditions.append(ahead <= right)
    return reduce(torch.logical_and, conditions) if conditions else None, bias
