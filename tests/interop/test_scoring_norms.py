"""Swapped modules train with a normalised scoring layer, by hooks or as a parametrisation."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from helpers.inputs import F32
from helpers.interop_swap import SwapCase, batches, drive, plain, swapped, tensors
from interop.libraries import SWAPS
from torch import nn
from torch.nn.utils import parametrizations

from attnkernels.testing import assert_within_budget

LAYERED = {name: case for name, case in SWAPS.items() if type(x := swapped(case)).scoring(x)}
EACH = pytest.mark.parametrize("case", LAYERED.values(), ids=LAYERED)


def paths(module: Any) -> tuple[str, ...]:
    """Return the names of the layers that the swapped module reads."""
    layers = list(type(module).scoring(module))
    return tuple(name for name, x in module.named_modules() if any(x is each for each in layers))


def test_every_library_that_reads_a_layer_names_it() -> None:
    assert len(LAYERED) >= 10


@EACH
@pytest.mark.parametrize("hooks", [False, True], ids=["parametrisation", "hooks"])
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_a_normalised_layer(case: SwapCase, norm: str, hooks: bool) -> None:
    """Two steps of training, with the normalisation put on after the swap.

    The error of the library's own training in float32 is part of the budget.
    """
    module = swapped(case)
    own, exact = (plain(copy.deepcopy(module)) for _ in range(2))
    modules, names = (module, own, exact), paths(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # hooks are deprecated
        for each in modules:
            torch.manual_seed(0)  # spectral_norm starts from random vectors
            for name in names:
                getattr(nn.utils if hooks else parametrizations, norm)(each.get_submodule(name))
    exact.double()
    inputs = [batches(case, F32, grad=False).values()] * 2
    inputs.append([x.double() for x in inputs[0]])
    for step in range(2):
        results = [
            tensors(drive(case)(each, *given)) for each, given in zip(modules, inputs, strict=True)
        ]
        for each, found in zip(modules, results, strict=True):
            each.zero_grad()
            sum((x * x).sum() for x in found).backward()
            with torch.no_grad():
                for parameter in each.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad
        for each in zip(*results, strict=True):  # a step of training rounds once more
            magnitude = (1 + step) * (1 + each[-1].abs().max().item())
            assert_within_budget(*each, magnitude=magnitude)
