"""Scoring layers that do more than multiply by their weight: the library's own forward computes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.interop_swap import batches, drive, keep, plain, same, swapped, tensors
from interop.libraries import SWAPS, speechbrain
from torch import Tensor, nn

from attnkernels.interop import replace_attention

# The path to the scoring layer of each module.
LAYERS = {
    "speechbrain": "mlp_attn",
    "speechbrain-location": "mlp_attn",
    "espnet-add": "gvec",
    "espnet-loc": "gvec",
    "espnet-cov": "gvec",
    "espnet-heads": "gvec.1",
    "opennmt": "v",
    "fairseq": "to_scores",
    "fairseq-location": "proj_out.1",
    "captioning": "full_att",
    "joeynmt": "energy_layer",
    "tacotron2, NVIDIA": "v",
    "tacotron2, torchaudio": "v",
}
LAYERS = {name: path for name, path in LAYERS.items() if name in SWAPS}


class Adapter(nn.Module):
    """A layer plus a product of two small matrices, as LoRA adds them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        width = next(layer.parameters()).shape[-1]
        self.low = nn.Parameter(torch.randn(width, 2))
        self.high = nn.Parameter(torch.randn(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.low @ self.high


def adapt(module: nn.Module, path: str) -> None:
    module.set_submodule(path, Adapter(module.get_submodule(path)))


def hook(module: nn.Module, path: str) -> None:
    module.get_submodule(path).register_forward_hook(lambda layer, given, found: 3 * found)


def replace_forward(module: nn.Module, path: str) -> None:
    layer: Any = module.get_submodule(path)
    layer.forward = lambda x, own=layer.forward: 3 * own(x)


def weight_norm_by_hook(module: nn.Module, path: str) -> None:
    layer = module.get_submodule(path)
    layer = layer if isinstance(layer, nn.Linear) else layer.linear_layer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        nn.utils.weight_norm(layer)
    with torch.no_grad():
        layer.weight_g.mul_(3.0)


def parametrise(module: nn.Module, path: str) -> None:
    layer = module.get_submodule(path)
    layer = layer if isinstance(layer, nn.Linear) else layer.linear_layer
    nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(3.0)


CHANGES = [adapt, hook, replace_forward, weight_norm_by_hook, parametrise]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", LAYERS)
def test_what_the_layer_adds_counts(name: str, change: Callable[..., None]) -> None:
    """Results and gradients, also of what was added, are those of the library's own forward."""
    case = SWAPS[name]
    module = swapped(case, torch.float64)
    run, inputs = drive(case, keep), batches(case, torch.float64)
    before = tensors(run(module, *inputs.values()))
    change(module, LAYERS[name])
    module.double()
    found = tensors(run(module, *inputs.values()))
    wanted = tensors(run(plain(module), *inputs.values()))
    assert any(not torch.allclose(x, y) for x, y in zip(before, found, strict=True))
    same(found, wanted)
    at = [x for x in module.parameters() if x.requires_grad]
    gradients = [
        torch.autograd.grad(sum(x.square().sum() for x in y), at, allow_unused=True)
        for y in (found, wanted)
    ]
    for x, y in zip(*gradients, strict=True):
        if x is not None and y is not None:
            torch.testing.assert_close(x, y)
    if change is adapt:
        adapter = module.get_submodule(LAYERS[name])
        low = [x is adapter.low for x in at].index(True)
        assert gradients[0][low] is not None and gradients[0][low].any()


@pytest.mark.parametrize("change", [adapt, hook, replace_forward, weight_norm_by_hook])
def test_before_the_swap_such_a_module_is_left(change: Callable[..., None]) -> None:
    module = SWAPS["speechbrain"].make()
    change(module, "mlp_attn")
    report = replace_attention(module)
    assert not report.swapped
    assert report.left[""].startswith("its scoring layer mlp_attn ")
    assert type(module) is speechbrain.ContentBasedAttention


def test_a_quantised_scoring_layer() -> None:
    case = SWAPS["speechbrain"]
    module = swapped(case).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        quantised = torch.ao.quantization.quantize_dynamic(module, {nn.Linear})
    inputs = batches(case, torch.float32, grad=False).values()
    run = partial(drive(case), quantised)
    same(run(*inputs), drive(case)(plain(quantised), *inputs))


def test_removing_what_was_added_returns_to_the_operator() -> None:
    case = SWAPS["speechbrain"]
    module = swapped(case)
    calls: list[str] = []
    handle = module.mlp_attn.register_forward_hook(lambda *_: calls.append("own"))
    inputs = batches(case, torch.float32).values()
    drive(case)(module, *inputs)
    assert calls
    handle.remove()
    calls.clear()
    same(drive(case)(module, *inputs), drive(case)(plain(module), *inputs))
