"""DGL's own GATv2Conv, swapped."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.interop_swap import plain, same
from helpers.nn_twins import check_twin
from torch import Tensor

from attnkernels.interop import replace_attention
from benchmarks.suite import peers

try:
    dgl = peers.dgl()
except ImportError as error:
    pytest.skip(f"DGL cannot be imported: {error}", allow_module_level=True)
GATv2Conv = dgl.nn.GATv2Conv

N, M, FEATURES = 12, 15, 5


def ends(density: float, targets: int = N, sources: int = N) -> tuple[Tensor, Tensor]:
    """Return sources and targets in random order, one at least for each target."""
    generator = torch.Generator().manual_seed(3)
    there = torch.rand(targets, sources, generator=generator) < density
    there[torch.arange(targets), torch.arange(targets)] = True
    pairs = there.nonzero()
    target, source = pairs[torch.randperm(len(pairs), generator=generator)].t()
    return source, target


def convolution(size: Any = FEATURES, **options: Any) -> Any:
    module = GATv2Conv(size, 3, 2, **options)
    report = replace_attention(module)
    assert report.swapped == {"": "DGL, GATv2Conv"} and not report.left
    return module


def check(module: Any, graph: Any, inputs: dict[str, Tensor]) -> None:
    """Assert that results and gradients are the library's, without its own computation."""

    def call(module: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        x = inputs[0] if len(inputs) == 1 else inputs
        return module(graph, x), *module(graph, x, get_attention=True)

    check_twin(module, lambda module, *x: call(plain(module), *x), inputs, call=call)
    own, calls = GATv2Conv.forward, []
    GATv2Conv.forward = lambda *args, **options: calls.append(args)
    try:
        call(module, *inputs.values())
    finally:
        GATv2Conv.forward = own
    assert not calls


@pytest.mark.parametrize("density", [0.1, 0.6], ids=["sparse", "dense"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"residual": True},
        {"share_weights": True},
        {"bias": False, "activation": torch.tanh, "negative_slope": 0.5},
    ],
)
def test_nodes(density: float, options: dict[str, Any]) -> None:
    graph = dgl.graph(ends(density), num_nodes=N)
    check(convolution(**options), graph, {"x": torch.randn(N, FEATURES, requires_grad=True)})


@pytest.mark.parametrize("density", [0.1, 0.6], ids=["sparse", "dense"])
def test_two_kinds_of_nodes(density: float) -> None:
    numbers = {"sources": M, "targets": N}
    graph = dgl.heterograph({("sources", "to", "targets"): ends(density, N, M)}, numbers)
    inputs = {
        "sources": torch.randn(M, FEATURES, requires_grad=True),
        "targets": torch.randn(N, 4, requires_grad=True),
    }
    check(convolution((FEATURES, 4), residual=True), graph, inputs)


def test_a_block() -> None:
    block = dgl.to_block(dgl.graph(ends(0.1, N, M), num_nodes=M))
    x = torch.randn(block.number_of_src_nodes(), FEATURES, requires_grad=True)
    check(convolution(residual=True), block, {"x": x})


def test_nodes_without_edges() -> None:
    graph, x = dgl.graph(([0], [1]), num_nodes=3), torch.randn(3, FEATURES)
    module = convolution()
    for each in module, plain(module):
        with pytest.raises(dgl.DGLError, match="0-in-degree"):
            each(graph, x)
    module.set_allow_zero_in_degree(True)
    same(module(graph, x), plain(module)(graph, x))


def test_dropout_in_training() -> None:
    module = convolution(attn_drop=0.4)
    graph, x = dgl.graph(ends(1.0, 50, 50), num_nodes=50), torch.randn(50, FEATURES)
    _, weights = module(graph, x, get_attention=True)
    _, whole = module.eval()(graph, x, get_attention=True)
    dropped = weights == 0
    assert abs(dropped.double().mean() - 0.4) < 0.03  # 4 sigma of 5,000
    torch.testing.assert_close(weights[~dropped], whole[~dropped] / 0.6)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(duplicate: Callable[[Any], Any]) -> None:
    module, graph = convolution(), dgl.graph(ends(0.1), num_nodes=N)
    x = torch.randn(N, FEATURES)
    same(duplicate(module)(graph, x), module(graph, x))
