"""A swapped module computes with its scoring layer as it is: adapted, hooked or quantised."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.inputs import F32
from helpers.interop_swap import SwapCase, batches, drive, plain, same, swapped, tensors
from interop.libraries import SWAPS
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from attnkernels.interop import replace_attention

LAYERED = {name: case for name, case in SWAPS.items() if type(x := swapped(case)).scoring(x)}
EACH = pytest.mark.parametrize("case", LAYERED.values(), ids=LAYERED)


class Adapter(nn.Linear):
    """A Linear with an addition of rank 1, as LoRA makes it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.load_state_dict(layer.state_dict())
        self.a = nn.Parameter(torch.randn(layer.in_features, 1))
        self.b = nn.Parameter(torch.full((1, layer.out_features), 2.0))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input @ self.a @ self.b


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
def test_an_adapter_is_called(case: SwapCase) -> None:
    module = swapped(case)
    for holder, name, layer in list(linears(module, paths(module))):
        setattr(holder, name, Adapter(layer))
    report = replace_attention(plain(module))
    assert not report.swapped and "must be a plain torch.nn.Linear" in report.left[""]
    inputs = batches(case, F32).values()
    found = drive(case)(module, *inputs)
    same(found, drive(case)(plain(module), *inputs))
    sum(x.sum() for x in tensors(found)).backward()
    for name, parameter in module.named_parameters():
        if name.endswith((".a", ".b")):
            assert parameter.grad is not None, name


@EACH
def test_hooks_are_called(case: SwapCase) -> None:
    module = swapped(case)
    calls: list[nn.Module] = []
    layers = [layer for _, _, layer in linears(module, paths(module))]
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: calls.append(layer))
    inputs = batches(case, F32).values()
    same(drive(case)(module, *inputs), drive(case)(plain(module), *inputs))
    assert set(calls) == set(layers)


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


@EACH
def test_dynamic_quantisation(case: SwapCase) -> None:
    module = swapped(case).eval()
    own = plain(copy.deepcopy(module))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and in use
        quantised, expected = (
            torch.ao.quantization.quantize_dynamic(each, {nn.Linear}) for each in (module, own)
        )
    inputs = [x.detach() for x in batches(case, F32).values()]
    same(drive(case)(quantised, *inputs), drive(case)(expected, *inputs))
