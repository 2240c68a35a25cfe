"""Every ValueError and TypeError: which argument, what is wanted, what was given.

Each public function has one check here, which returns what the caller wants to know of its
arguments. The way through without a complaint counts microseconds: it makes no strings.
"""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

from ..backends.base import Problem
from ..ops.codes import ACTIVATIONS
from ..ops.shapes import leading_shape

_FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (torch.int64, torch.int32)
_STRIDED = torch.strided
_ON_CPU = {dtype: Problem("cpu", dtype) for dtype in _FLOATING}
_NUMBERS = (float, int, torch.SymFloat, torch.SymInt)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    attn_mask: Tensor | None,
    key_lengths: Tensor | None,
    is_causal: bool,
    dropout_p: float,
    activation: str,
    negative_slope: float,
    scale: float,
    return_weights: bool,
    return_lse: bool,
) -> Problem:
    problem = None
    if attn_mask is None and key_lengths is None:
        problem = _plain(query, key, value, weight)
    if problem is None:
        problem = _same_kind(("query", "key", "value", "weight"), (query, key, value, weight))
        leads = _pairs(query, key, weight)
        leads["value"] = _values(value, key.shape)
        if attn_mask is not None:
            leads["attn_mask"] = _mask(attn_mask, query, key.shape[-2])
        if key_lengths is not None:
            leads["key_lengths"] = _lengths(key_lengths, key)
        _leading(leads)
    for flag in (is_causal, return_weights, return_lse):
        if flag is not True and flag is not False:
            names = ("is_causal", "return_weights", "return_lse")
            _flags(names, (is_causal, return_weights, return_lse))
    if dropout_p.__class__ is not float or not 0 <= dropout_p <= 1:
        _dropout(dropout_p)
    if not (
        activation == "tanh"
        and negative_slope == 0.2
        and scale.__class__ is float
        and -inf < scale < inf
    ):
        _scoring(activation, negative_slope, scale)
    return problem


def _plain(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Problem | None:
    """The usual call, seen to be right in half the time; None: it takes a closer look."""
    for x in (query, key, value, weight):
        if not (isinstance(x, Tensor) and x.is_cpu and x.layout is _STRIDED):
            return None
    dtype = query.dtype
    if not (dtype in _FLOATING and dtype is key.dtype is value.dtype is weight.dtype):
        return None
    q, k, u, w = query.shape, key.shape, value.shape, weight.shape
    if not (len(q) == len(k) == len(u) > 1 == len(w)):
        return None
    *of_q, _, d = q  # in half the time of slices
    *of_k, m, of_key = k
    *of_u, of_value, _ = u
    if not (d == of_key == w[0] > 0 and m == of_value and of_q == of_k == of_u):
        return None
    return _ON_CPU[dtype]


def scores(
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    *,
    activation: str,
    negative_slope: float,
    scale: float,
) -> Problem:
    problem = _same_kind(("query", "key", "weight"), (query, key, weight))
    _leading(_pairs(query, key, weight))
    _scoring(activation, negative_slope, scale)
    return problem


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    is_causal: bool,
    dropout_p: float,
    activation: str,
    negative_slope: float,
    scale: float,
    return_lse: bool,
) -> Problem:
    problem = _same_kind(("query", "key", "value", "weight"), (query, key, value, weight))
    leads = _pairs(query, key, weight)
    leads["value"] = _values(value, key.shape)
    _leading(leads)
    _boundaries("cu_seqlens_q", cu_seqlens_q, "query", query)
    _boundaries("cu_seqlens_k", cu_seqlens_k, "key", key)
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            "cu_seqlens_q and cu_seqlens_k must describe the same number of sequences, got "
            f"{cu_seqlens_q.shape[0] - 1} and {cu_seqlens_k.shape[0] - 1}"
        )
    _flags(("is_causal", "return_lse"), (is_causal, return_lse))
    _dropout(dropout_p)
    _scoring(activation, negative_slope, scale)
    return problem


def prepared(
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    key_lengths: Tensor | None,
    activation: str,
    negative_slope: float,
    scale: float,
) -> tuple[Problem, tuple[int, ...]]:
    """Returns the leading shape as well."""
    problem = _same_kind(("key", "value", "weight"), (key, value, weight))
    k = key.shape
    leads = {"key": _rows("key", k), "value": _values(value, k), "weight": _width(weight, k)}
    if key_lengths is not None:
        leads["key_lengths"] = _lengths(key_lengths, key)
    _scoring(activation, negative_slope, scale)
    return problem, _leading(leads)


def step(
    query: Tensor,
    key: Tensor,
    lead: tuple[int, ...],
    *,
    attn_mask: Tensor | None,
    dropout_p: float,
    return_weights: bool,
    return_lse: bool,
) -> None:
    """What is new in a step: the query and the options, against prepared keys."""
    if attn_mask is not None or not _plain_step(query, key, lead):
        _same_kind(("the prepared key", "query"), (key, query))
        q, (m, d) = query.shape, key.shape[-2:]
        leads = {"query": _rows("query", q), "the prepared keys": lead}
        if q[-1] != d:
            raise ValueError(
                f"query must be (..., n, d) with the d = {d} of the prepared keys, got {tuple(q)}"
            )
        if attn_mask is not None:
            leads["attn_mask"] = _mask(attn_mask, query, m)
        _leading(leads)
    _flags(("return_weights", "return_lse"), (return_weights, return_lse))
    _dropout(dropout_p)


def _plain_step(query: Tensor, key: Tensor, lead: tuple[int, ...]) -> bool:
    """The usual step, seen to be right in half the time; False: it takes a closer look."""
    if not (isinstance(query, Tensor) and query.is_cpu and query.layout is _STRIDED):
        return False
    if not (key.is_cpu and query.dtype is key.dtype):
        return False
    q = query.shape
    if len(q) < 2:
        return False
    *of_q, _, d = q
    return d == key.shape[-1] and tuple(of_q) == lead


def selection(dim: int, index: Tensor, lead: tuple[int, ...], device: torch.device) -> int:
    """Returns the dimension of `lead` counted from its end, as a negative number."""
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim must be an int, got {type(dim).__name__}")
    if not -len(lead) <= dim < len(lead):
        raise ValueError(
            f"dim must be one of the {len(lead)} leading dimensions {lead} of the memory, got {dim}"
        )
    dim = dim - len(lead) if dim >= 0 else dim
    _integers("index", index)
    _on(device, "index", index)
    if index.ndim != 1:
        raise ValueError(f"index must be 1-D, got shape {tuple(index.shape)}")
    if lead[dim] != 1:  # 1 broadcasts: whichever entry is asked for, it is there
        _within("index", index, 0, lead[dim] - 1, f"the size {lead[dim]} of dim {dim}")
    return dim


def _dense(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {tensor.layout}")


def _same_kind(names: tuple[str, ...], tensors: tuple[Tensor, ...]) -> Problem:
    """Dense tensors of one supported dtype, on one device."""
    first = tensors[0]
    _dense(names[0], first)
    dtype, on_cpu = first.dtype, first.is_cpu
    if dtype not in _FLOATING:
        raise TypeError(f"{names[0]} must be float32, bfloat16, float16 or float64, got {dtype}")
    for name, tensor in zip(names, tensors, strict=True):
        _dense(name, tensor)
        if tensor.dtype is not dtype:
            raise TypeError(
                f"{name} must have the dtype of {names[0]}, {dtype}, got {tensor.dtype}"
            )
        if not (on_cpu and tensor.is_cpu):  # a tenth of the time of asking for its device
            _on(first.device, name, tensor)
    return Problem("cpu" if on_cpu else first.device.type, dtype)


def _on(device: torch.device, name: str, tensor: Tensor) -> None:
    if tensor.device != device:
        raise ValueError(
            f"{name} must be on the device of the other tensors, {device}, got {tensor.device}"
        )


def _rows(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The leading shape of (..., rows, columns)."""
    if len(shape) < 2:
        raise ValueError(f"{name} must have 2 or more dimensions, got shape {tuple(shape)}")
    return shape[:-2]


def _pairs(query: Tensor, key: Tensor, weight: Tensor) -> dict[str, tuple[int, ...]]:
    q, k = query.shape, key.shape
    leads = {"query": _rows("query", q), "key": _rows("key", k)}
    if q[-1] != k[-1]:
        raise ValueError(
            f"key must be (..., m, d) with the d = {q[-1]} of query {tuple(q)}, got {tuple(k)}"
        )
    leads["weight"] = _width(weight, k)
    return leads


def _width(weight: Tensor, key: tuple[int, ...]) -> tuple[int, ...]:
    d, shape = key[-1], weight.shape
    if d == 0:
        raise ValueError(f"key must have d of 1 or more to be scored, got shape {tuple(key)}")
    if not shape or shape[-1] != d:
        raise ValueError(
            f"weight must be (..., d) with the d = {d} of key {tuple(key)}, got {tuple(shape)}"
        )
    return shape[:-1]


def _values(value: Tensor, key: tuple[int, ...]) -> tuple[int, ...]:
    shape = value.shape
    lead = _rows("value", shape)
    if shape[-2] != key[-2]:
        raise ValueError(
            f"value must be (..., m, dv) with the m = {key[-2]} of key {tuple(key)}, "
            f"got {tuple(shape)}"
        )
    return lead


def _mask(attn_mask: Tensor, query: Tensor, m: int) -> tuple[int, ...]:
    _dense("attn_mask", attn_mask)
    if attn_mask.dtype is not torch.bool and attn_mask.dtype is not query.dtype:
        raise TypeError(
            f"attn_mask must be bool or have the dtype of query, {query.dtype}, "
            f"got {attn_mask.dtype}"
        )
    _on(query.device, "attn_mask", attn_mask)
    shape, n = attn_mask.shape, query.shape[-2]
    if (shape and shape[-1] not in (1, m)) or (len(shape) > 1 and shape[-2] not in (1, n)):
        raise ValueError(
            f"attn_mask must broadcast to (..., n, m) = (..., {n}, {m}), got {tuple(shape)}"
        )
    return shape[:-2]


def _lengths(key_lengths: Tensor, key: Tensor) -> tuple[int, ...]:
    _integers("key_lengths", key_lengths)
    _on(key.device, "key_lengths", key_lengths)
    _within("key_lengths", key_lengths, 0, key.shape[-2], "the number of keys")
    return key_lengths.shape


def _integers(name: str, tensor: Tensor) -> None:
    _dense(name, tensor)
    if tensor.dtype not in _INTEGERS:
        raise TypeError(f"{name} must be int32 or int64, got {tensor.dtype}")


def _within(name: str, tensor: Tensor, low: int, high: int, why: str) -> None:
    values = _readable(tensor)
    if values and not (low <= min(values) and max(values) <= high):
        raise ValueError(
            f"{name} must lie in [{low}, {high}] ({why}), "
            f"got values from {min(values)} to {max(values)}"
        )


def _boundaries(name: str, cu_seqlens: Tensor, of: str, packed: Tensor) -> None:
    _integers(name, cu_seqlens)
    _on(packed.device, name, cu_seqlens)
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(
            f"{name} must be 1-D with 1 or more entries, got shape {tuple(cu_seqlens.shape)}"
        )
    ends, total = _readable(cu_seqlens), packed.shape[-2]
    if ends is None:
        return
    if ends[0] != 0:
        raise ValueError(f"{name} must start at 0, got {ends[0]}")
    if ends[-1] != total:
        raise ValueError(f"{name} must end at the number of rows of {of}, {total}, got {ends[-1]}")
    for s in range(1, len(ends)):
        if ends[s] < ends[s - 1]:
            raise ValueError(f"{name} must not decrease, got {ends[s - 1]} and then {ends[s]}")


def _readable(tensor: Tensor) -> list[int] | None:
    """The values, where reading them makes no device wait and breaks no trace."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor or not tensor.is_cpu:
        return None
    try:
        return tensor.flatten().tolist()
    except RuntimeError:  # batched by vmap or recorded by make_fx
        return None


def _leading(leads: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    try:
        return leading_shape(*leads.values())
    except ValueError:
        shapes = ", ".join(f"{tuple(lead)} of {name}" for name, lead in leads.items())
        raise ValueError(f"leading dimensions must broadcast, got {shapes}") from None


def _scoring(activation: str, negative_slope: float, scale: float) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    _number("negative_slope", negative_slope)
    if not 0 <= negative_slope <= 1:
        raise ValueError(f"negative_slope must lie in [0, 1], got {negative_slope}")
    _number("scale", scale)
    if not -inf < scale < inf:
        raise ValueError(f"scale must be finite, got {scale}")


def _dropout(dropout_p: float) -> None:
    _number("dropout_p", dropout_p)
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout_p must lie in [0, 1], got {dropout_p}")


def _number(name: str, value: Any) -> None:
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, _NUMBERS)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def _flags(names: tuple[str, ...], values: tuple[bool, ...]) -> None:
    for name, value in zip(names, values, strict=True):
        if value is not True and value is not False:
            raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
