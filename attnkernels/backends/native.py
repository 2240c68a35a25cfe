"""The compiled kernels: csrc/, on a CPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from ..derivatives import ACTIVATIONS
from ..ops import SCHEMAS, define
from .base import Problem
from .fused import Fused

NAME = "native"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_ops = define(NAME, *SCHEMAS)
_fused = Fused(_ops)
attention, attention_varlen, scores = _fused.attention, _fused.attention_varlen, _fused.scores


def _load() -> str | None:
    """Load the library; None, or a sentence that says why it could not be."""
    path = Path(os.environ.get("ATTNKERNELS_LIBRARY", Path(__file__).parents[1] / "_C.abi3.so"))
    if not path.exists():
        return (
            f"the compiled library {path} is missing: install with a C++ compiler at hand"
            " (see docs/install.md)"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"the compiled library {path} does not load: {error}"
    return None


_missing = _load()


def why_not(problem: Problem) -> str | None:
    """None where the kernels can do it, otherwise a sentence."""
    if _missing:
        return _missing
    if problem.device_type not in ("cpu", "meta"):
        return f"it runs on cpu tensors, not on {problem.device_type}"
    if problem.dtype not in DTYPES:
        return f"it has no kernels for {problem.dtype}"
    return None


def build_info() -> dict[str, str]:
    """What is loaded: the library, and the instruction set it uses here."""
    if _missing:
        return {"library": _missing}
    return {"library": "loaded", "instruction set": torch.ops.attnkernels.native_isa()}


def pack_keys(key: Tensor, *, activation: str) -> Tensor:
    """exp(2 k) in panels of 32 keys, transposed (E7)."""
    return _ops.pack_keys(key, ACTIVATIONS[activation])
