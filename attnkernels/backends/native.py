"""The compiled kernels: csrc/, on a CPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from ..derivatives import ACTIVATIONS, differentiable
from ..ops import define
from .base import Problem

NAME = "native"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_ops = define(NAME)
_forward, _scores = differentiable(_ops)


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
    seed: Tensor | None,
    activation: str,
    negative_slope: float,
    scale: float,
    return_weights: bool,
    packed_key: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(E1)-(E3) in one pass; see `Backend.attention`."""
    context, lse, weights = _forward(
        query,
        key,
        value,
        weight,
        attn_mask,
        key_lengths,
        None,
        None,
        packed_key,
        seed,
        dropout_p,
        is_causal,
        ACTIVATIONS[activation],
        negative_slope,
        scale,
        return_weights,
    )
    return _rounded(context, query), _rounded(weights, query) if return_weights else None, lse


def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    is_causal: bool,
    dropout_p: float,
    seed: Tensor | None,
    activation: str,
    negative_slope: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The same for packed sequences; see `Backend.attention_varlen`."""
    context, lse, _ = _forward(
        query,
        key,
        value,
        weight,
        None,
        None,
        cu_seqlens_q,
        cu_seqlens_k,
        None,
        seed,
        dropout_p,
        is_causal,
        ACTIVATIONS[activation],
        negative_slope,
        scale,
        False,
    )
    return _rounded(context, query), lse


def scores(
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    *,
    activation: str,
    negative_slope: float,
    scale: float,
) -> Tensor:
    """(E1); see `Backend.scores`."""
    code = ACTIVATIONS[activation]
    return _rounded(_scores(query, key, weight, code, negative_slope, scale), query)


def pack_keys(key: Tensor, *, activation: str) -> Tensor:
    """exp(2 k) in panels of 32 keys, transposed (E7)."""
    return _ops.pack_keys(key, ACTIVATIONS[activation])


def _rounded(result: Tensor, like: Tensor) -> Tensor:
    return result if result.dtype == like.dtype else result.to(like.dtype)
