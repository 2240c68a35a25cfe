"""Triton kernels for NVIDIA and AMD GPUs, and for CPU tensors where TRITON_INTERPRET=1 is set."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ...ops.schema import define, implement, undispatched
from ...ops.signature import SIGNATURES
from ..base import Problem
from ..fused import Fused
from .host.fold import folded

NAME = "triton"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# The module that implements each operator; its import of triton takes time.
_MODULES = {
    "forward": "host.forward",
    "backward": "host.backward",
    "scores": "host.forward",
    "scores_backward": "host.backward",
    "forward_jvp": "host.jvp",
    "scores_jvp": "host.jvp",
    "sparse_forward": "host.edge_forward",
    "sparse_backward": "host.edge_backward",
}
_REPEATED = ("forward", "backward")
_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
_missing = find_spec("triton") is None


def computing(name: str) -> Callable[..., Any]:
    """Return the function that computes operator `name`, from arguments in order."""
    module = import_module(f".{_MODULES[name]}", __package__)
    signature, function = SIGNATURES[name], getattr(module, name)

    def compute(*args: Any) -> Any:
        given = signature.named(args)
        return function(**given) if "source" in given else folded(function, signature, given)

    return compute


def _implementation(name: str) -> Callable[..., Any]:
    """Return operator `name`, which imports its module when it is first called."""

    def call(*args: Any) -> Any:
        return _loaded(name)(*args)

    return call


@cache
def _loaded(name: str) -> Callable[..., Any]:
    if name not in _REPEATED:
        return computing(name)
    replay = import_module(".host.replay", __package__)
    return replay.Replay(computing(name), _tensors(name))


def _tensors(name: str) -> int:
    """Return how many arguments of operator `name` are tensors; they come first."""
    return len(SIGNATURES[name].tensors)


ops = define(NAME, *_MODULES)
for _name in _REPEATED:
    _direct = undispatched(getattr(ops, _name), _implementation(_name), _tensors(_name))
    setattr(ops, f"undispatched_{_name}", _direct)
_fused = Fused(ops)
attention, scores = _fused.attention, _fused.scores
attention_over_edges = _fused.attention_over_edges

for _name in _MODULES:
    for _key in ("CUDA", "CPU") if _interpreted else ("CUDA",):  # a ROCm tensor is a CUDA one, too
        implement(f"{NAME}_{_name}", _implementation(_name), _key)


def why_not(problem: Problem) -> str | None:
    """Return None if the kernels can do it, otherwise a sentence that says why not."""
    if problem.device_type == "cpu" and not _interpreted:
        return (
            "it runs on cuda tensors, not on cpu (TRITON_INTERPRET=1, set before Python starts,"
            " interprets its kernels on cpu tensors, slowly)"
        )
    if problem.device_type not in ("cuda", "cpu", "meta"):
        return f"it runs on cuda tensors, not on {problem.device_type}"
    if _missing:
        return "the package triton is not installed"
    if problem.dtype not in DTYPES:
        return f"it has no kernels for {problem.dtype}"
    return None


def pack_keys(key: Tensor, *, activation: str) -> None:
    """Return None: a step is bound by reading keys, and prepared keys are no shorter."""
    return None
