"""Tensors for the tests: seeded, at the corners of shapes, in every layout a caller may pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attnkernels.backends import BACKENDS
from attnkernels.backends.base import Problem
from attnkernels.ops import codes

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16

# more keys than a tile has; an interpreter has smaller tiles, and less time
MANY = 40 if os.environ.get("TRITON_INTERPRET") == "1" else 140

Shape = tuple[int, int, int, int, int]

ACTIVATIONS = list(codes.ACTIVATIONS)
BUT_TANH = [name for name in ACTIVATIONS if name != "tanh"]  # tanh is the default of every test
POINTWISE = [f.name for f in codes.ACTIVATIONS.values() if f.family == "pointwise"]

# (B, n, m, d, dv): ones, odd sizes, and just past every tile (256 queries, 128 keys, 32, 16)
CORNERS: list[Shape] = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 8, 7),
    (4, 7, 9, 33, 1),
    (1, 33, 31, 17, 65),
    (1, 130, 257, 64, 48),
    (1, 300, 140, 20, 16),
    (3, 1, 200, 512, 64),
    (2, 2, 1000, 36, 5),
    (3, 1, 201, 40, 203),  # more sums per query than registers, over several tiles
    (1, 2, 3, 4099, 2),
    (1, 16, 32, 16, 32),
    (2, 5, 33, 4, 1),  # its value gradient shows how a product of split numbers was rounded
]
EMPTY: list[Shape] = [
    *((2, 0, 3, 4, 5), (2, 3, 0, 4, 5), (2, 3, 4, 5, 0)),
    *((0, 3, 4, 5, 6), (1, 0, 0, 4, 0)),
]


def normal(*shape: int, dtype: torch.dtype = F32, size: float = 1.0, grad: bool = True) -> Tensor:
    """Return a leaf of normal numbers, drawn in float64 so that every dtype has the same."""
    return (torch.randn(shape, dtype=F64) * size).to(dtype).requires_grad_(grad)


def make(
    shape: Shape, dtype: torch.dtype = F32, *, size: float = 1.0, grad: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return query (B, n, d), key (B, m, d), value (B, m, dv), weight (d,); scores have size 1."""
    batch, n, m, d, dv = shape
    return (
        normal(batch, n, d, dtype=dtype, size=size, grad=grad),
        normal(batch, m, d, dtype=dtype, size=size, grad=grad),
        normal(batch, m, dv, dtype=dtype, grad=grad),
        normal(d, dtype=dtype, size=d**-0.5, grad=grad),
    )


def transposed(x: Tensor) -> Tensor:
    """Return the same numbers with the last two dimensions swapped in memory: stride(-1) != 1."""
    return x.detach().mT.contiguous().mT.requires_grad_(x.requires_grad)


def sliced(x: Tensor) -> Tensor:
    """Return the same numbers in a larger storage: an offset, padded rows, every second element."""
    *lead, rows, cols = x.shape
    store = torch.full((*lead, rows + 2, 2 * cols + 3), float("nan"), dtype=x.dtype)
    view = store[..., 1 : rows + 1, 1 : 2 * cols + 1 : 2]
    view.copy_(x.detach())
    return view.requires_grad_(x.requires_grad)


def batch_last(x: Tensor) -> Tensor:
    """Return the same numbers with the batch innermost in memory."""
    return x.detach().movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_(x.requires_grad)


def cumulative(lengths: Sequence[int], dtype: torch.dtype = torch.int32) -> Tensor:
    """Return the cu_seqlens of these sequence lengths."""
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def supports(backend: str, dtype: torch.dtype) -> bool:
    """Return True if a backend that is available has kernels for `dtype`."""
    (module,) = (each for each in BACKENDS if each.NAME == backend)
    return module.why_not(Problem("cpu", dtype)) is None


class Altered(torch.autograd.Function):
    """The identity, whose gradient passes through a function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alter: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.alter = alter
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.alter(gradient), None
