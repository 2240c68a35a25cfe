"""The plain formula in PyTorch: any device and dtype."""

from __future__ import annotations

from torch import Tensor

from ..ops.formula import attention as attention
from ..ops.formula import scores as scores
from .base import Problem

NAME = "reference"


def why_not(problem: Problem) -> str | None:
    """Return None: PyTorch runs it everywhere."""
    return None


def pack_keys(key: Tensor, *, activation: str) -> Tensor | None:
    """Return None: the formula takes keys as they are."""
    return None
