"""The problem of a call: the device and the dtype that its tensors have in common.

A call whose tensors are as usual is recognised without strings or dictionaries.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from ..backends.base import Problem
from . import checks

_STRIDED = torch.strided
_PLAIN = {Tensor, Parameter}
_FLOATING = checks.FLOATING
_ON_CPU, _ON_CUDA = (
    {dtype: Problem(device, dtype) for dtype in _FLOATING} for device in ("cpu", "cuda")
)


def plain(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Problem | None:
    """Return the problem of a usual call in half the time, or None if it needs a closer look."""
    if type(query) not in _PLAIN:
        return None
    cpu = query.is_cpu
    for x in (query, key, value, weight):
        usual = type(x) in _PLAIN and x.layout is _STRIDED
        if not (usual and (x.is_cpu if cpu else _is_beside(x, query))):
            return None
    dtype = query.dtype
    problem = (_ON_CPU if cpu else _ON_CUDA).get(dtype)
    if problem is None or not dtype is key.dtype is value.dtype is weight.dtype:
        return None
    q, k, u, w = query.shape, key.shape, value.shape, weight.shape
    if not (len(q) == len(k) == len(u) > 1 == len(w)):
        return None
    *of_q, _, d = q  # in half the time of slices
    *of_k, m, of_key = k
    *of_u, of_value, _ = u
    if not (d == of_key == w[0] > 0 and m == of_value and of_q == of_k == of_u):
        return None
    return problem


def _is_beside(x: Tensor, query: Tensor) -> bool:
    """Return True if both are on the same CUDA device."""
    return x.is_cuda and query.is_cuda and x.get_device() == query.get_device()


def plain_step(query: Tensor, key: Tensor, lead: tuple[int, ...]) -> bool:
    """Return True for a usual step, in half the time, or False if it needs a closer look."""
    if not (type(query) in _PLAIN and query.layout is _STRIDED and query.dtype is key.dtype):
        return False
    if not (key.is_cpu if query.is_cpu else _is_beside(key, query)):
        return False
    q = query.shape
    if len(q) != len(lead) + 2:  # first: see `leading_shape`
        return False
    *of_q, _, d = q
    return d == key.shape[-1] and tuple(of_q) == lead


def same_kind(tensors: dict[str, Tensor]) -> Problem:
    """Check for dense tensors of one supported dtype, on one device."""
    (first_name, first), *_ = tensors.items()
    checks.tensor(first_name, first, dtype=_FLOATING)
    dtype, on_cpu = first.dtype, first.is_cpu
    for name, x in tensors.items():
        if not (type(x) in _PLAIN and x.layout is _STRIDED):
            checks.tensor(name, x)
        if x.dtype is not dtype:
            raise TypeError(f"{name} must have the dtype of {first_name}, {dtype}, got {x.dtype}")
        checks.same_device(name, x, first)
    return Problem("cpu" if on_cpu else first.device.type, dtype)
