"""Keras: a swapped layer is trained, compiled, checkpointed, traced and copied as its own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from helpers.interop_peers import QUIET, installed
from helpers.interop_swap import plain, same
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnkernels.interop import replace_attention
from attnkernels.interop.core.live import Fused
from benchmarks.suite import peers

pytestmark = QUIET


@pytest.fixture(params=["additive", "concat"])
def layers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Return a swapped layer and Keras's own with the same parameters."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = installed(peers.keras)
    make = {
        "additive": keras.layers.AdditiveAttention,
        "concat": lambda: keras.layers.Attention(score_mode="concat", use_scale=True),
    }[request.param]
    module, own = make(), make()
    for each in module, own:
        each(inputs())
        if request.param == "concat":  # both numbers are 1 at first, which rounds larger scores
            module.set_weights([torch.tensor(0.6), torch.tensor(0.3)])
        each.set_weights(module.get_weights())
    assert replace_attention(module).swapped
    return module, own


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (2, 4, 8), (2, 5, 3), (2, 5, 8)
    return [torch.randn(size, generator=generator, requires_grad=True) for size in sizes]


def trained(layer: Any, call: Any) -> list[Tensor]:
    given = inputs()
    out = call(given)
    out.square().sum().backward()
    variables = [x.value for x in layer.trainable_variables]
    assert all(x.grad is not None for x in variables)
    found = [out, *(x.grad.clone() for x in (*given, *variables))]
    for x in variables:
        x.grad = None
    return found


def test_trained_compiled_and_checkpointed(layers: tuple[Any, Any]) -> None:
    module, own = layers
    wanted, counts = trained(own, own), []
    same(trained(module, module), wanted)
    again = checkpoint(module, inputs(), use_reentrant=False)
    same(again, wanted[0])
    same(trained(module, lambda x: checkpoint(module, x, use_reentrant=False)), wanted)
    for each in own, module:
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounter()
        same(trained(each, torch.compile(each, backend=counter)), wanted)
        counts.append(counter.frame_count)
    assert counts[1] <= counts[0]


class Listing(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.layer(list(inputs))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit")
def test_a_trace_is_kerass(layers: tuple[Any, Any]) -> None:
    kinds = []
    for each in layers:
        traced = torch.jit.trace(Listing(each), inputs(), check_trace=False)
        kinds.append([node.kind() for node in traced.inlined_graph.nodes()])
    assert kinds[0] == kinds[1]


def test_copies_and_pickles(layers: tuple[Any, Any]) -> None:
    module, own = layers
    for duplicate in copy.copy, copy.deepcopy:
        twin = duplicate(module)
        assert isinstance(twin, Fused) and type(twin) is type(module)
        same(twin(inputs()), module(inputs()))
    data = pickle.dumps(module)
    assert b"attnkernels" not in data
    again = pickle.loads(data)
    assert type(again) is type(own)
    same(again(inputs()), own(inputs()))


def test_values_that_are_expanded(layers: tuple[Any, Any]) -> None:
    module, _ = layers
    query, value, key = inputs()
    given = [query, value[:1].expand(2, -1, -1), key[:1].expand(2, -1, -1)]
    with torch.no_grad():
        same(module(given), plain(module)(given))
