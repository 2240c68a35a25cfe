"""The layer that scores: a fused method reads its matrix if a call computes nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def why_called(module: nn.Module, names: Sequence[str]) -> str | None:
    """Return None if every layer of `names` computes W x + b alone, else a sentence.

    An adapter or a quantised layer has a forward of its own, and hooks may change what a call
    computes. A parametrisation is a part of the matrix.
    """
    for name in names:
        layer: Any = module.get_submodule(name)
        for each in layer if isinstance(layer, nn.ModuleList) else (layer,):
            if list(each._modules) == ["linear_layer"] and not each._parameters:
                if not _hooks(each):
                    each = each.linear_layer  # NVIDIA's wrapper, which only calls it
            if type(each).forward is not nn.Linear.forward or "forward" in vars(each):
                kind = type(each).__name__
                return f"its layer {name} must be a plain torch.nn.Linear, got {kind}"
            if _hooks(each):
                return f"its layer {name} must have no hooks, which a swap would not call"
    return None


def _hooks(layer: Any) -> bool:
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )
