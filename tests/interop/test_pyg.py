"""Numbers of PyTorch Geometric's own GATv2Conv, swapped: fused on every graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.inputs import F32, F64
from helpers.interop_swap import plain, same
from helpers.pyg import (
    FEATURES,
    SOURCES,
    TARGETS,
    calls_of_its_own,
    check,
    complete,
    convolution,
    edge_index,
    graph,
)
from torch import Tensor

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one head": {"heads": 1},
    "three heads, their mean": {"heads": 3, "concat": False},
    "residual": {"residual": True},
    "shared": {"share_weights": True},
    "no biases": {"bias": False},
    "another slope": {"negative_slope": 0.05},
    "no loops are added": {"add_self_loops": False},
    "from targets": {"flow": "target_to_source"},
    "from targets, no loops": {"flow": "target_to_source", "add_self_loops": False},
    "dropout, in evaluation": {"dropout": 0.6},
}


GRAPHS = {
    "complete": complete(),
    "dense": graph(),
    "dense, edges that are there twice": graph(twice=9),
    "sparse": graph(density=0.1),
    "sparse, edges that are there twice": graph(density=0.1, twice=3),
    "no edges": torch.empty(2, 0, dtype=torch.int64),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("edges", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_nodes(options: dict[str, Any], edges: Tensor, dtype: torch.dtype) -> None:
    """Without added loops node 1 has no edge, so that its attention is 0."""
    x = torch.randn(SOURCES, FEATURES, dtype=dtype, requires_grad=True)
    check(convolution(dtype, **options).eval(), {"x": x}, edges)


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("more", [{}, {"residual": True}, {"bias": False, "concat": False}])
@pytest.mark.parametrize("sizes", [(SOURCES, TARGETS), (TARGETS, SOURCES)])
def test_two_kinds_of_nodes(loops: bool, more: dict[str, Any], sizes: tuple[int, int]) -> None:
    """Sources and targets differ in number and in features."""
    sources, targets = sizes
    module = convolution(in_channels=(FEATURES, 4), add_self_loops=loops, **more)
    inputs = {
        "sources": torch.randn(sources, FEATURES, requires_grad=True),
        "targets": torch.randn(targets, 4, requires_grad=True),
    }
    check(module, inputs, graph(sources=sources, targets=targets, density=0.7))


FEATURES_OF_EDGES: dict[str, dict[str, Any]] = {
    "their mean for loops": {},
    "their sum": {"fill_value": "add"},
    "the least": {"fill_value": "min", "share_weights": True},
    "the largest": {"fill_value": "max", "concat": False, "heads": 3},
    "their product": {"fill_value": "mul"},
    "a number": {"fill_value": 0.5, "residual": True},
    "a tensor": {"fill_value": torch.tensor([1.0, -2.0])},
    "no loops": {"add_self_loops": False, "bias": False},
    "from targets": {"flow": "target_to_source"},
    "one feature, 1-D": {"edge_dim": 1},
}


@pytest.mark.parametrize("options", FEATURES_OF_EDGES.values(), ids=FEATURES_OF_EDGES)
@pytest.mark.parametrize("edges", [graph(), graph(density=0.1, twice=3)], ids=["dense", "sparse"])
def test_features_of_edges(options: dict[str, Any], edges: Tensor) -> None:
    module = convolution(**{"edge_dim": 2, **options})
    size = (edges.shape[1], 2) if module.edge_dim == 2 else edges.shape[1:]
    features = torch.randn(size, requires_grad=True)
    check(module, {"x": torch.randn(SOURCES, FEATURES, requires_grad=True)}, edges, features)


@pytest.mark.parametrize("loops", [True, False])
def test_two_kinds_of_nodes_with_features_of_edges(loops: bool) -> None:
    module = convolution(in_channels=(FEATURES, 4), edge_dim=2, add_self_loops=loops, fill_value=1)
    inputs = {
        "sources": torch.randn(SOURCES, FEATURES, requires_grad=True),
        "targets": torch.randn(TARGETS, 4, requires_grad=True),
    }
    edges = graph(targets=TARGETS, density=0.15)
    check(module, inputs, edges, torch.randn(edges.shape[1], 2, requires_grad=True))


def test_the_same_nodes_twice() -> None:
    """A tuple of the same nodes, with shared layers."""
    module, x = convolution(share_weights=True), torch.randn(SOURCES, FEATURES)
    same(module((x, x), graph()), plain(module)((x, x), graph()))


ADJACENCIES: dict[str, Callable[[Tensor], Tensor]] = {
    "COO": lambda x: x.to_sparse_coo(),
    "CSR": lambda x: x.to_sparse_csr(),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ADJACENCIES.values(), ids=ADJACENCIES)
@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("targets", [SOURCES, TARGETS])
def test_a_sparse_adjacency(layout: Callable[[Tensor], Tensor], loops: bool, targets: int) -> None:
    module = convolution(add_self_loops=loops)
    x: Any = torch.randn(SOURCES, FEATURES)
    x = x if targets == SOURCES else (x, torch.randn(targets, FEATURES))
    adjacency = torch.zeros(targets, SOURCES)
    adjacency[tuple(graph(targets=targets, density=0.2).flip(0))] = 1
    wanted = plain(module)(x, layout(adjacency), return_attention_weights=True)
    calls = calls_of_its_own(module)
    found = module(x, layout(adjacency), return_attention_weights=True)
    assert not calls
    (out, (edges, weights)), (own, (its, own_weights)) = found, wanted
    same((out, weights), (own, own_weights))
    assert edges.layout is its.layout and edges.shape == its.shape
    same(edges.to_dense(), its.to_dense())


SORTED: dict[str | None, Callable[[Tensor], Tensor]] = {
    "row": lambda x: x[:, x[0].argsort(stable=True)],
    "col": lambda x: x[:, x[1].argsort(stable=True)],
    None: lambda x: x,
}


@pytest.mark.parametrize("order", SORTED)
@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("density", [0.1, 0.4])
def test_an_edge_index(order: str | None, loops: bool, density: float) -> None:
    """The edges that are returned have the type of those that were given."""
    module, x = convolution(add_self_loops=loops), torch.randn(SOURCES, FEATURES)
    edges = SORTED[order](graph(density=density)).contiguous()
    own = plain(module)
    calls = calls_of_its_own(module)
    wanted, (its, own_weights) = own(x, edges, return_attention_weights=True)
    for size in (None, None), (SOURCES, SOURCES):
        given = edge_index(edges, sparse_size=size, sort_order=order)
        same(module(x, given), wanted)
        out, (found, weights) = module(x, given, return_attention_weights=True)
        same((out, weights), (wanted, own_weights))
        assert type(found) is type(given) and found.sparse_size()[0] in (None, SOURCES)
        assert torch.equal(found.as_tensor(), its)
    assert not calls
