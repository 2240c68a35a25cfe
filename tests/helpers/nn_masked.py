"""Every module of attnkernels.nn that takes a mask, and one call that fits them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnkernels.nn import (
    AdditiveAttention,
    CoverageAttention,
    HardAttention,
    LocationSensitiveAttention,
    MonotonicAttention,
    PointerHead,
)

from .inputs import F32, normal

B, N, M = 3, 4, 11
SIZES = (6, 5, 8)  # of query, key, hidden

Make = Callable[..., nn.Module]
MASKED: dict[str, Make] = {
    "additive": lambda **k: AdditiveAttention(*SIZES, **k),
    "heads": lambda **k: AdditiveAttention(*SIZES, num_heads=2, **k),
    "pointer": lambda **k: PointerHead(*SIZES, **k),
    "location": lambda **k: LocationSensitiveAttention(*SIZES, channels=2, kernel_size=3, **k),
    "coverage": lambda **k: CoverageAttention(*SIZES, **k),
    "moving": lambda **k: MonotonicAttention(*SIZES, noise=0.0, **k),
    "hard": lambda **k: HardAttention(*SIZES, **k),
}
masked = pytest.mark.parametrize("make", MASKED.values(), ids=MASKED)


def call(module: nn.Module, mask: Any = None, dtype: torch.dtype = F32, **options: Any) -> Tensor:
    """Return one result of any of these modules, on the same inputs for all of them."""
    torch.manual_seed(1)
    key_dim = 8 if getattr(module, "num_heads", 1) > 1 else SIZES[1]
    key = normal(B, M, SIZES[1], dtype=dtype, grad=False)
    value = normal(B, M, key_dim, dtype=dtype, grad=False)
    given = {"query": normal(B, N, SIZES[0], dtype=dtype, grad=False), "key": key, "value": value}
    if isinstance(module, PointerHead):
        del given["value"]
    result = module(**(given | {"attn_mask": mask} | options))
    return result if isinstance(result, Tensor) else result.log_prob
