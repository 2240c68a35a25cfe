"""Layers of swapped modules that do more than their matrix: the numbers are the library's own."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.inputs import F32
from helpers.interop_swap import LENGTHS, SwapCase, batches, keep, plain, same, swapped, tensors
from helpers.nn_twins import GRADIENT_TERMS
from interop.libraries import SWAPS
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized

from attnkernels.interop import replace_attention, restore_attention
from attnkernels.interop.core.live import Fused
from attnkernels.testing import assert_within_budget

STEPS = 2  # of training: what a layer computes from its parameters must follow them


class Adapter(nn.Module):
    """A layer plus a product of two small matrices, as LoRA adds them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.in_features = layer, layer.in_features
        self.low = nn.Parameter(torch.randn(layer.in_features, 2))
        self.high = nn.Parameter(torch.randn(2, layer.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.low @ self.high


def adapt(module: nn.Module, path: str) -> None:
    module.set_submodule(path, Adapter(module.get_submodule(path)))


def adapt_by_peft(module: nn.Module, path: str) -> None:
    peft = pytest.importorskip("peft", reason="the package peft is not installed")
    config = peft.LoraConfig(target_modules=[path], r=2, init_lora_weights=False)
    peft.inject_adapter_in_model(config, module)


def hook(module: nn.Module, path: str) -> None:
    module.get_submodule(path).register_forward_hook(lambda layer, given, found: 3 * found)


def replace_forward(module: nn.Module, path: str) -> None:
    layer: Any = module.get_submodule(path)
    layer.forward = lambda x, own=layer.forward: 3 * own(x)


def freeze(module: nn.Module, path: str) -> None:
    module.get_submodule(path).requires_grad_(False)


def tie(module: nn.Module, path: str) -> None:
    """Give the layer's parameters to another layer, and use it in what is differentiated."""
    layer: Any = module.get_submodule(path)
    module.other = nn.Linear(layer.in_features, layer.out_features)
    module.other.weight, module.other.bias = layer.weight, layer.bias


def normalise(norm: Callable[[nn.Module], nn.Module], module: nn.Module, path: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # hooks are deprecated
        norm(module.get_submodule(path))


WRAPPERS: dict[str, Callable[[nn.Module, str], None]] = {
    "an adapter": adapt,
    "LoRA": adapt_by_peft,
    "a hook": hook,
    "another forward": replace_forward,
    "weight_norm by hooks": partial(normalise, nn.utils.weight_norm),
    "spectral_norm by hooks": partial(normalise, nn.utils.spectral_norm),
    "weight_norm": partial(normalise, parametrizations.weight_norm),
    "spectral_norm": partial(normalise, parametrizations.spectral_norm),
    "frozen": freeze,
    "tied": tie,
}
LEFT = ("an adapter", "LoRA", "a hook", "another forward")  # if they are there before the swap
LEFT += ("weight_norm by hooks", "spectral_norm by hooks")


def scoring(module: Any) -> list[str]:
    """Return the paths of the layers that a swapped module reads instead of calling them."""
    layers = list(type(module).scoring(module))
    return [name for name, x in module.named_modules() if any(x is each for each in layers)]


def others(module: nn.Module) -> list[str]:
    """Return the paths of all other linear layers."""
    read = scoring(module)
    found = [name for name, x in module.named_modules() if isinstance(x, nn.Linear)]
    return [name for name in found if name not in read]


LAYERED = {name: case for name, case in SWAPS.items() if scoring(swapped(case))}
EACH = pytest.mark.parametrize("case", LAYERED.values(), ids=LAYERED)
WRAPPED = pytest.mark.parametrize("wrapper", WRAPPERS)


def test_every_library_that_reads_a_layer_names_it() -> None:
    assert len(LAYERED) >= 10


def wrapped(case: SwapCase, wrapper: str, paths: list[str]) -> Any:
    """Return the library's module with these layers wrapped, the same at every call."""
    torch.manual_seed(0)
    module: Any = case.make()
    for path in paths:
        WRAPPERS[wrapper](module, path)
    return module


def trained(case: SwapCase, module: Any, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Return results and gradients of each step."""
    torch.manual_seed(1)
    memory, states, *_ = batches(case, dtype).values()
    found: dict[str, Tensor | None] = {}
    for step in range(STEPS):
        results = list(tensors(case.run(module.to(dtype), memory, states[:2], LENGTHS, keep)))
        if hasattr(module, "other"):
            results.append(module.other(torch.ones(module.other.in_features, dtype=dtype)))
        leaves = {"memory": memory, "states": states, **dict(module.named_parameters())}
        for x in leaves.values():
            x.grad = None
        sum((x.square().sum() for x in results), torch.zeros(())).backward()
        found |= {f"output {i} of step {step}": x.detach() for i, x in enumerate(results)}
        found |= {f"gradient of {name} in step {step}": x.grad for name, x in leaves.items()}
        with torch.no_grad():
            for x in module.parameters():
                if x.grad is not None:
                    x -= 0.05 * x.grad / (1 + x.grad.norm())
    return found


def check(case: SwapCase, wrapper: str, paths: list[str], module: Any) -> None:
    """Assert that a module trains as the library's wrapped in the same way."""
    found = trained(case, module, F32)
    own = trained(case, wrapped(case, wrapper, paths), F32)
    exact = trained(case, wrapped(case, wrapper, paths), torch.float64)
    assert found.keys() == own.keys()
    for name, z in exact.items():
        x, y = found[name], own[name]
        assert (x is None) == (y is None), name
        if z is not None:
            size = (1.0 if name[0] == "o" else GRADIENT_TERMS) * max(1.0, z.abs().max().item())
            assert_within_budget(x, y, z, magnitude=STEPS * size, name=name)


@EACH
@WRAPPED
def test_a_scoring_layer_that_is_wrapped_later(case: SwapCase, wrapper: str) -> None:
    paths = scoring(swapped(case))
    torch.manual_seed(0)
    module = case.make()
    assert replace_attention(module).swapped
    for path in paths:
        WRAPPERS[wrapper](module, path)
    check(case, wrapper, paths, module)


@EACH
@WRAPPED
def test_a_scoring_layer_that_is_wrapped_already(case: SwapCase, wrapper: str) -> None:
    """The module is left with a sentence, or computes the same."""
    paths = scoring(swapped(case))
    module = wrapped(case, wrapper, paths)
    report = replace_attention(module)
    if wrapper in LEFT:
        assert report.left[""].startswith(f"its scoring layer {paths[0]} ")
        return
    assert report.swapped
    check(case, wrapper, paths, module)


@EACH
@WRAPPED
def test_other_layers_that_are_wrapped(case: SwapCase, wrapper: str) -> None:
    paths = others(swapped(case))
    paths = paths[:1] if wrapper == "tied" else paths
    module = wrapped(case, wrapper, paths)
    assert replace_attention(module).swapped
    check(case, wrapper, paths, module)


@EACH
@pytest.mark.parametrize("before", [False, True], ids=["later", "already"])
def test_quantised_layers(case: SwapCase, before: bool) -> None:
    """All linear layers, for inference."""
    module = case.make().eval()
    own = quantised(module)
    inputs = list(batches(case, F32, grad=False).values())[:2]
    wanted = case.run(own, *inputs, LENGTHS, keep)
    if before:
        report = replace_attention(own)
        assert not report.swapped and report.left[""].startswith("its scoring layer ")
        found = own
    else:
        assert replace_attention(module).swapped
        found = quantised(module)
    same(tensors(case.run(found, *inputs, LENGTHS, keep)), tensors(wanted))


def quantised(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        return torch.ao.quantization.quantize_dynamic(module, {nn.Linear})


def test_a_parametrised_scoring_vector() -> None:
    """GNMT's is a parameter of the module itself, which gets another class."""
    case = SWAPS["gnmt"]
    module = swapped(case)
    parametrizations.weight_norm(module, "linear_att", dim=None)
    inputs = list(batches(case, F32).values())[:2]
    found = tensors(case.run(module, *inputs, LENGTHS, keep))
    twin = copy.deepcopy(module)
    same(found, tensors(case.run(twin, *inputs, LENGTHS, keep)))
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(module)
    assert isinstance(twin, Fused) and restore_attention(twin) == ("",)
    assert not isinstance(twin, Fused) and is_parametrized(twin)
    same(found, tensors(case.run(twin, *inputs, LENGTHS, keep)))


def test_a_hook_on_what_is_around_a_scoring_layer() -> None:
    """NVIDIA's Tacotron 2 has each layer inside another module."""
    case = SWAPS["tacotron2, NVIDIA"]
    module = swapped(case)
    inputs = list(batches(case, F32).values())[:2]
    before = tensors(case.run(module, *inputs, LENGTHS, keep))
    hook(module, "v")
    found = tensors(case.run(module, *inputs, LENGTHS, keep))
    assert not torch.allclose(found[1], before[1])
    same(found, tensors(case.run(plain(module), *inputs, LENGTHS, keep)))


def test_removing_what_was_added_returns_to_the_operator() -> None:
    case = SWAPS["speechbrain"]
    module = swapped(case)
    calls: list[str] = []
    handle = module.mlp_attn.register_forward_hook(lambda *_: calls.append("own"))
    inputs = list(batches(case, F32).values())[:2]
    case.run(module, *inputs, LENGTHS, keep)
    assert calls
    handle.remove()
    calls.clear()
    found = tensors(case.run(module, *inputs, LENGTHS, keep))
    same(found, tensors(case.run(plain(module), *inputs, LENGTHS, keep)))
    assert not calls
