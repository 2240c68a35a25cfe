"""Helpers of the tests on a GPU: their marks, and their tensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attnkernels import additive_attention
from attnkernels.backends import select
from attnkernels.backends.base import Problem
from attnkernels.measure import cuda
from attnkernels.testing import check_attention
from helpers.inputs import Shape, cumulative, normal

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic mode
NAMES, GPU = ("triton", "native"), torch.device("cuda")
PAST_THE_TILES: Shape = (2, 130, 257, 33, 20)
STEP: Shape = (3, 1, 300, 65, 7)
EVERYTHING = {"return_weights": True, "return_lse": True}


def _why_not(name: str) -> str | None:
    if not torch.cuda.is_available():
        return cuda.why_not()
    try:
        select(Problem("cuda", torch.float32), name)
    except ValueError as error:
        return str(error)
    return None


def _parameter(name: str) -> Any:
    sentence = _why_not(name)
    return pytest.param(name, marks=pytest.mark.skipif(sentence is not None, reason=str(sentence)))


# Every test of a file with these marks takes `name`, a backend with GPU kernels.
MARKS = [pytest.mark.gpu, pytest.mark.parametrize("name", [_parameter(name) for name in NAMES])]


def attention(backend: str, *inputs: Tensor, **options: Any) -> Any:
    return additive_attention(*inputs, backend=backend, **options)


def check(backend: str | Callable[..., Any], *inputs: Tensor, **options: Any) -> None:
    check_attention(*inputs, backend=backend, **options)


def on_gpu(build: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return build(...), called with the GPU as default device."""
    with GPU:
        return build(*arguments, **options)


def packed(
    lengths: tuple[list[int], list[int]], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Return query, key, value, weight, cu_seqlens_q and cu_seqlens_k of packed sequences."""
    rows, columns = map(sum, lengths)
    shapes = ((2, rows, 19), (2, columns, 19), (2, columns, 7), (19,))
    ends = [on_gpu(cumulative, each) for each in lengths]
    return [*(on_gpu(normal, *shape, dtype=dtype) for shape in shapes), *ends]
