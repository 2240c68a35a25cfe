"""Training of swapped modules: gradients of the same parameters, in parallel and checkpointed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import interop_distributed, ranks
from helpers.inputs import F32
from helpers.interop_swap import LENGTHS, SwapCase, batches, keep, plain, swapped, tensors
from helpers.nn_twins import GRADIENT_TERMS
from interop.libraries import SWAPS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnkernels.testing import assert_within_budget

ALL = pytest.mark.parametrize("case", SWAPS.values(), ids=SWAPS)


def one_batch(case: SwapCase, dtype: torch.dtype = F32) -> tuple[Tensor, Tensor]:
    memory, states, *_ = batches(case, dtype).values()
    return memory, states


def gradients(module: nn.Module, total: Tensor) -> dict[str, Tensor]:
    """Return the gradients of the parameters that get one."""
    module.zero_grad()
    total.backward()
    return {name: x.grad for name, x in module.named_parameters() if x.grad is not None}


@ALL
@pytest.mark.parametrize(
    "of", [slice(0, 1), slice(1, None), slice(None)], ids=["first", "rest", "all"]
)
@pytest.mark.parametrize("frozen", [False, True], ids=["", "only biases learn"])
def test_the_same_parameters_get_gradients(case: SwapCase, of: slice, frozen: bool) -> None:
    """From the first result of each call, from the others, and from all.

    Projected values also get a gradient, of zeros, from weights alone.
    """
    module = swapped(case, torch.float64)
    for name, x in module.named_parameters():
        x.requires_grad_(not frozen or name.endswith("bias"))
    inputs, found = one_batch(case, torch.float64), []
    for each in module, plain(module):
        for x in inputs:
            x.grad = None
        calls = case.run(each, *inputs, LENGTHS, keep)
        chosen = tensors([list(tensors(call))[of] for call in calls])
        if not any(x.requires_grad for x in chosen):
            pytest.skip("nothing of the module learns")
        made = gradients(each, sum(x.square().sum() for x in chosen))
        of_inputs = {str(i): x.grad for i, x in enumerate(inputs) if x.grad is not None}
        found.append(made | of_inputs)
    more = found[0].keys() - found[1].keys()
    assert not found[1].keys() - found[0].keys() and (not more or of == slice(1, None))
    assert not any(found[0][name].any() for name in more)
    for name, x in found[1].items():
        torch.testing.assert_close(found[0][name], x)


def test_data_parallel_training(tmp_path: Path) -> None:
    """Two processes take three steps with every module, and stay equal."""
    first, second = ranks.spawned(interop_distributed.worker, tmp_path)
    for name in SWAPS:
        assert isinstance(first[name], list), first[name]
        found, own = first[name]
        for parameter, x in own.items():
            torch.testing.assert_close(found[parameter], x)
            assert torch.equal(found[parameter], second[name][0][parameter])


class Checkpointed:
    """A method of which the first call is not checkpointed, and every so many calls after it."""

    def __init__(self, method: Any, every: int) -> None:
        self.method, self.every, self.calls = method, every, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if (self.calls - 1) % self.every == 0:
            return self.method(*args, **options)
        return checkpoint(self.method, *args, use_reentrant=False, **options)


@ALL
@pytest.mark.parametrize("every", [2, 3, 99])
def test_steps_are_checkpointed(case: SwapCase, every: int) -> None:
    """Keys are cached before the steps whose activations are computed again."""
    module = swapped(case)
    modules = {"found": module, "plain": plain(copy.deepcopy(module))}
    modules["exact"] = plain(copy.deepcopy(module)).double()
    inputs = one_batch(case)
    totals: dict[str, dict[str, Tensor]] = {}
    for name, each in modules.items():
        dtype = torch.float64 if name == "exact" else F32
        given = tuple(x.detach().to(dtype).requires_grad_() for x in inputs)

        each.forward = Checkpointed(each.forward, every)
        found = tensors(case.run(each, *given, LENGTHS, keep))
        made = gradients(each, sum(x.square().sum() for x in found))
        totals[name] = made | {f"input {i}": x.grad for i, x in enumerate(given)}
    for name, z in totals["exact"].items():
        size = GRADIENT_TERMS * max(1.0, z.abs().max().item())
        assert_within_budget(
            totals["found"][name], totals["plain"][name], z, magnitude=size, name=name
        )
