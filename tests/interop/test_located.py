"""Location-aware and coverage layers of other libraries: their sums of keys stay in registers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.interop_swap import batches, drive, swapped, tensors
from interop.libraries import SWAPS

from attnkernels.backends import native

PROJECTIONS = {"speechbrain-location": "mlp_loc", "espnet-loc": "mlp_att", "espnet-cov": "wvec"}

pytestmark = pytest.mark.skipif(
    not native.aligns(torch.zeros(1)), reason="the library has no kernels for CPUs"
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which each call of the kernels for scores is added."""
    found, kernel = [], native.aligned_scores

    def counted(*arguments: Any) -> torch.Tensor:
        found.append("scores")
        return kernel(*arguments)

    monkeypatch.setattr(native, "aligned_scores", counted)
    return found


@pytest.mark.parametrize("name", PROJECTIONS)
def test_every_step_is_one_of_the_kernels(name: str, calls: list[str]) -> None:
    case, steps = SWAPS[name], []
    module = swapped(case)
    module.mlp_dec.register_forward_hook(lambda *_: steps.append("step"))
    calls.clear()
    drive(case)(module, *batches(case, torch.float32).values())
    assert len(calls) == len(steps) > 3


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_hooked_projection_is_called(name: str, calls: list[str]) -> None:
    case, steps, hooked = SWAPS[name], [], []
    module = swapped(case)
    module.mlp_dec.register_forward_hook(lambda *_: steps.append("step"))
    layer = getattr(module, PROJECTIONS[name])
    layer.register_forward_hook(lambda *_: hooked.append("hook"))
    calls.clear()
    drive(case)(module, *batches(case, torch.float32).values())
    assert len(hooked) == len(steps) > 3 and not calls


@pytest.mark.parametrize("name", PROJECTIONS)
def test_second_derivatives(name: str) -> None:
    case = SWAPS[name]
    module = swapped(case, torch.float64)
    given = list(batches(case, torch.float64).values())
    found = []
    for hook in (None, lambda *_: None):  # the second time the projection is called
        if hook is not None:
            getattr(module, PROJECTIONS[name]).register_forward_hook(hook)
        result = sum(x.square().sum() for x in tensors(drive(case)(module, *given)))
        leaves = [*given, *(x for x in module.parameters() if x.requires_grad)]
        first = torch.autograd.grad(result, leaves, create_graph=True, allow_unused=True)
        total = sum(x.square().sum() for x in first if x is not None)
        found.append(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(*found)
