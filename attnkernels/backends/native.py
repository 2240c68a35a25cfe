"""The compiled kernels of csrc/: for CPUs, and for NVIDIA GPUs if built with CUDA."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

import torch
from torch import Tensor

from ..ops.codes import ACTIVATIONS
from ..ops.schema import define
from ..ops.signature import SIGNATURES
from .base import Problem
from .fused import Fused

NAME = "native"
_FLOAT64 = torch.float64
DTYPES = (torch.float32, torch.bfloat16, torch.float16, _FLOAT64)


def _load() -> str | None:
    """Load the library; return None, or a sentence that says why it did not load."""
    path = Path(os.environ.get("ATTNKERNELS_LIBRARY", Path(__file__).parents[1] / "_C.abi3.so"))
    if not path.exists():
        return (
            f"the compiled library {path} is missing: install with a C++ compiler available"
            " (see docs/install.md)"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"the compiled library {path} does not load: {error}"
    return None


_missing = _load()
ops = define(NAME, *SIGNATURES)  # after the library, which defines them too
# The tests run the CUDA kernels on CPU tensors.
_emulated = _missing is None and torch.ops.attnkernels.native_isa() == "emulated CUDA"
_fused = Fused(ops, fast_on_cpu=_emulated)
attention, scores = _fused.attention, _fused.scores
attention_over_edges = _fused.attention_over_edges


def _implemented(name: str, device: str) -> bool:
    """Return True if the library has operator `name` for `device`, "CPU" or "CUDA"."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"attnkernels::{NAME}_{name}", device)


def _why_not_cuda() -> str | None:
    if torch.version.hip:
        return "its GPU kernels are CUDA's, and this torch is built for ROCm"
    if not _implemented("forward", "CUDA"):
        return (
            "the compiled library has no CUDA kernels: build it where nvcc is found"
            " (docs/install.md)"
        )
    return None


# Asked once, after the library was loaded: these calls take microseconds.
_no_cuda = _why_not_cuda()


def _watch_signals() -> None:
    """Let the CPU kernels ask Python for signals, so that Ctrl-C ends a long call."""
    python = ctypes.pythonapi
    functions = python.PyGILState_Ensure, python.PyGILState_Release, python.PyErr_CheckSignals
    addresses = (ctypes.cast(function, ctypes.c_void_p).value for function in functions)
    torch.ops.attnkernels.native_watch(*addresses, threading.main_thread().ident)


if _missing is None and not _emulated:
    _watch_signals()
_sorts = _implemented("sort_edges", "CPU")
_aligns = _implemented("aligned_scores", "CPU")
_packs = {"cpu": _implemented("pack_keys", "CPU"), "cuda": _implemented("pack_keys", "CUDA")}


def why_not(problem: Problem) -> str | None:
    """Return None if the kernels can compute it, otherwise a sentence that says why not."""
    if _missing:
        return _missing
    device_type, dtype = problem
    if device_type == "cuda":
        if _no_cuda:
            return _no_cuda
    elif device_type not in ("cpu", "meta"):
        return f"it runs on cpu and cuda tensors, not on {device_type}"
    if dtype not in DTYPES:
        return f"it has no kernels for {dtype}"
    if dtype is _FLOAT64 and (device_type == "cuda" or _emulated):
        return "its CUDA kernels have no float64 (the reference backend has)"
    return None


def sorts(ends: Tensor) -> bool:
    """Return True if `sort_edges` takes the tensor."""
    return ends.is_cpu and _sorts


def sort_edges(ends: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Return where the edges of each node begin, (nodes + 1,), and their stable order, (E,)."""
    return ops.sort_edges(ends, nodes)


def aligns(key: Tensor) -> bool:
    """Return True if `aligned_scores` takes keys like these."""
    return key.is_cpu and _aligns and key.dtype in (torch.float32, _FLOAT64)


def aligned_scores(
    query: Tensor, key: Tensor, weight: Tensor, seen: Tensor, filter: Tensor, scale: float
) -> Tensor:
    """Return the scores (B, m) of single queries (B, d) to keys that see earlier weights.

    All tensors are contiguous. `seen` is padded, (B, c, m + taps - 1); see `functional.stepwise`.
    """
    return ops.aligned_scores(query, key, weight, seen, filter, scale)


def aligned_scores_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    seen: Tensor,
    filter: Tensor,
    scale: float,
    *sums: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of query and seen; add those of key, weight and filter to `sums`."""
    return ops.aligned_scores_backward(grad, query, key, weight, seen, filter, *sums, scale)


def build_info() -> dict[str, str]:
    """Describe the library: its instruction set on this machine, with or without CUDA kernels."""
    if _missing:
        return {"library": _missing}
    return {
        "library": "loaded",
        "instruction set": torch.ops.attnkernels.native_isa(),
        "CUDA kernels": "yes" if _implemented("forward", "CUDA") else "no",
    }


def pack_keys(key: Tensor, *, activation: str) -> Tensor | None:
    """Return exp(gain k) in groups of rows (E7), or None if the kernels take plain keys.

    Those of 16 bits stay as they are: exponentials in float32 would take twice their bytes, and in
    16 bits have errors that the budget does not allow.
    """
    of = ACTIVATIONS[activation]
    if of.family != "logistic" or key.dtype.itemsize == 2:
        return None
    if not _packs["cuda" if key.is_cuda else "cpu"]:
        return None
    return ops.pack_keys(key, of.code)
