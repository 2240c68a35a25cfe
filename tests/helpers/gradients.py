"""Gradients of decoders, and how they compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attnkernels.testing import assert_within_budget

from .inputs import F64


def gradients(outputs: Sequence[Tensor], at: list[Tensor], **options: Any) -> list[Tensor]:
    """Return the gradients of `at` for random gradients of the outputs."""
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(x.shape, generator=generator, dtype=F64).to(x) for x in outputs]
    return list(
        torch.autograd.grad(tuple(outputs), at, directions, materialize_grads=True, **options)
    )


def close_gradients(
    found: Sequence[Tensor],
    wanted: Sequence[Tensor],
    select: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    at: list[Tensor],
) -> None:
    """Compare the gradients of some of the results, whose graphs are kept, with those of a twin."""
    close(*(gradients(select(each), at, retain_graph=True) for each in (found, wanted)))


def close(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Compare results of decoders with those of a twin."""
    for at, (x, y) in enumerate(zip(found, wanted, strict=True)):
        size = 100 * max(1.0, y.abs().max().item())  # of a sum over steps, keys and sequences
        assert_within_budget(x, y, y, magnitude=size, name=f"result {at}")
