"""Swapped modules train with a normalised scoring layer, by hooks or as a parametrisation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.inputs import F32
from helpers.interop_swap import SwapCase, batches, drive, plain, swapped, tensors
from interop.libraries import SWAPS
from torch import nn
from torch.nn.utils import parametrizations

LAYERED = {name: case for name, case in SWAPS.items() if type(x := swapped(case)).scoring(x)}
EACH = pytest.mark.parametrize("case", LAYERED.values(), ids=LAYERED)


def paths(module: Any) -> tuple[str, ...]:
    """Return the names of the layers that the swapped module reads."""
    layers = list(type(module).scoring(module))
    return tuple(name for name, x in module.named_modules() if any(x is each for each in layers))


def linears(module: Any, names: tuple[str, ...]) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Yield the scoring layers, each with the module that holds it and its name there."""
    for name in names:
        for inner, layer in module.get_submodule(name).named_modules():
            if isinstance(layer, nn.Linear):
                *parents, last = f"{name}.{inner}".strip(".").split(".")
                yield module.get_submodule(".".join(parents)), last, layer


def test_every_library_that_reads_a_layer_names_it() -> None:
    assert len(LAYERED) >= 10


@EACH
@pytest.mark.parametrize("hooks", [False, True], ids=["parametrisation", "hooks"])
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_a_normalised_layer(case: SwapCase, norm: str, hooks: bool) -> None:
    """Two steps of training, with the normalisation put on after the swap."""
    module = swapped(case)
    own, names = plain(copy.deepcopy(module)), paths(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # hooks are deprecated
        for each in (module, own):
            torch.manual_seed(0)  # spectral_norm starts from random vectors
            for _, _, layer in list(linears(each, names)):
                getattr(nn.utils if hooks else parametrizations, norm)(layer)
    inputs = [x.detach() for x in batches(case, F32).values()]
    for _ in range(2):
        results = [drive(case)(each, *inputs) for each in (module, own)]
        for each, found in zip((module, own), results, strict=True):
            each.zero_grad()
            sum((x * x).sum() for x in tensors(found)).backward()
            with torch.no_grad():
                for parameter in each.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad
        for found, wanted in zip(*map(tensors, results), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
