"""GraphAttention against its formula, in plain operations."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from helpers.nn_twins import check_twin
from torch import Tensor
from torch.export import Dim
from torch.nn import functional

from attnkernels import prepare_edges
from attnkernels.nn import GraphAttention

N, M, FEATURES, D = 11, 14, 5, 3


def graph(density: float, sources: int = N, targets: int = N) -> Tensor:
    """Return random edges (2, E), with loops, some twice, in random order; node 1 has none."""
    generator = torch.Generator().manual_seed(2)
    there = torch.rand(sources, targets, generator=generator) < density
    there[1], there[:, 1] = False, False
    edges = there.nonzero().t()
    edges = torch.cat([edges, edges[:, :4]], 1)
    return edges[:, torch.randperm(edges.shape[1], generator=generator)]


def of_loop(module: GraphAttention, features: Tensor) -> Tensor:
    """Return the features of a loop from those of the other edges of the node."""
    fill = module.fill_value
    if isinstance(fill, float):
        return features.new_full(features.shape[1:], fill)
    if isinstance(fill, Tensor):
        return fill.to(features)
    if len(features) == 0:
        return features.new_full(features.shape[1:], 1.0 if fill == "mul" else 0.0)
    reduce = {
        "add": lambda x: x.sum(0),
        "mean": lambda x: x.mean(0),
        "min": lambda x: x.amin(0),
        "max": lambda x: x.amax(0),
        "mul": lambda x: x.prod(0),
    }
    return reduce[fill](features)


def formula(
    module: GraphAttention, x: Any, edges: Tensor, features: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result, the edges (2, E') and the weights (E', H), by one target at a time."""
    sources, targets = (x, x) if isinstance(x, Tensor) else x
    heads = module.num_heads, module.out_channels
    key = module.key_proj(sources).unflatten(-1, heads)
    query = module.query_proj(targets).unflatten(-1, heads)
    if module.add_self_loops:
        there, nodes = edges[0] != edges[1], min(len(sources), len(targets))
        edges = edges[:, there]
        if features is not None:
            loops = [of_loop(module, features[there][edges[1] == i]) for i in range(nodes)]
            features = torch.cat([features[there], torch.stack(loops)])
        edges = torch.cat([edges, torch.arange(nodes).expand(2, nodes)], 1)
    hidden = query[edges[1]] + key[edges[0]]
    if features is not None:
        hidden = hidden + module.edge_proj(features).unflatten(-1, heads)
    weight = module.weight.unflatten(0, heads[:1])
    scores = (functional.leaky_relu(hidden, module.negative_slope) * weight).sum(-1)
    weights, rows = torch.zeros_like(scores), []
    for i in range(len(targets)):
        of_target = (edges[1] == i).nonzero().squeeze(1)
        shares = scores[of_target].softmax(0)
        weights = weights.index_copy(0, of_target, shares)
        rows.append((shares.unsqueeze(-1) * key[edges[0, of_target]]).sum(0))
    context = torch.stack(rows)
    out = context.flatten(1) if module.concat else context.mean(1)
    if module.residual_proj is not None:
        out = out + module.residual_proj(targets)
    return out if module.bias is None else out + module.bias, edges, weights


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one head": {"num_heads": 1},
    "the mean of three heads": {"num_heads": 3, "concat": False},
    "residual": {"residual": True},
    "shared": {"share_weights": True},
    "no biases": {"bias": False},
    "another slope": {"negative_slope": 0.5},
    "no loops are added": {"add_self_loops": False},
    "features of edges": {"edge_dim": 2},
    "their sum for loops": {"edge_dim": 2, "fill_value": "add"},
    "their least": {"edge_dim": 2, "fill_value": "min"},
    "their largest": {"edge_dim": 2, "fill_value": "max"},
    "their product": {"edge_dim": 2, "fill_value": "mul"},
    "a number": {"edge_dim": 2, "fill_value": 3},
    "a vector": {"edge_dim": 2, "fill_value": torch.tensor([1.0, -2.0])},
    "features of edges, no loops": {"edge_dim": 2, "add_self_loops": False},
}


def check(module: GraphAttention, inputs: dict[str, Tensor], edges: Tensor, given: Any) -> None:
    """Assert that results and gradients are the formula's, however the edges are given."""
    has_features = "features" in inputs

    def split(inputs: tuple[Tensor, ...]) -> tuple[Any, Tensor | None]:
        nodes = inputs[:-1] if has_features else inputs
        return nodes[0] if len(nodes) == 1 else nodes, inputs[-1] if has_features else None

    def call(module: GraphAttention, *inputs: Tensor) -> tuple[Tensor, ...]:
        x, features = split(inputs)
        out, (found, weights) = module(x, given, features, return_weights=True)
        assert torch.equal(found, formula(module, x, edges, features)[1])
        return module(x, given, features), out, weights

    def plain(module: GraphAttention, *inputs: Tensor) -> tuple[Tensor, ...]:
        out, _, weights = formula(module, *split(inputs)[:1], edges, split(inputs)[1])
        return out, out, weights

    check_twin(module, plain, inputs, call=call)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("density", [0.1, 0.6], ids=["sparse", "dense"])
def test_nodes(options: dict[str, Any], density: float) -> None:
    module = GraphAttention(FEATURES, D, **{"num_heads": 2, **options})
    edges = graph(density)
    inputs = {"x": torch.randn(N, FEATURES, requires_grad=True)}
    if module.edge_dim is not None:
        inputs["features"] = torch.randn(edges.shape[1], 2, requires_grad=True)
    for given in edges, edges.int(), prepare_edges(edges, N, N):
        check(module, inputs, edges, given)


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("sizes", [(M, N), (N, M)])
@pytest.mark.parametrize("edge_dim", [None, 2])
def test_two_kinds_of_nodes(loops: bool, sizes: tuple[int, int], edge_dim: int | None) -> None:
    sources, targets = sizes
    module = GraphAttention((FEATURES, 4), D, 2, add_self_loops=loops, edge_dim=edge_dim)
    edges = graph(0.15, *sizes)
    inputs = {
        "sources": torch.randn(sources, FEATURES, requires_grad=True),
        "targets": torch.randn(targets, 4, requires_grad=True),
    }
    if edge_dim:
        inputs["features"] = torch.randn(edges.shape[1], 2, requires_grad=True)
    check(module, inputs, edges, edges)
    check(module, inputs, edges, prepare_edges(edges, targets, sources))


def test_one_feature_of_an_edge_may_be_flat() -> None:
    module, edges, x = GraphAttention(FEATURES, D, edge_dim=1), graph(0.2), torch.randn(N, FEATURES)
    features = torch.randn(edges.shape[1])
    assert torch.equal(module(x, edges, features), module(x, edges, features.unsqueeze(1)))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_sparse_tensor() -> None:
    module, x = GraphAttention(FEATURES, D, 2), torch.randn(N, FEATURES)
    adjacency = torch.zeros(N, N)
    adjacency[tuple(graph(0.2).flip(0))] = 1
    wanted = module(x, adjacency.nonzero().t().flip(0))
    for sparse in adjacency.to_sparse_coo(), adjacency.to_sparse_csr(), adjacency.to_sparse_csc():
        torch.testing.assert_close(module(x, sparse), wanted)


def test_dropout() -> None:
    """The given share of edges is dropped, in training only."""
    module, x = GraphAttention(FEATURES, D, 4, dropout=0.4), torch.randn(60, FEATURES)
    edges = torch.ones(60, 60).nonzero().t()
    _, (_, weights) = module(x, edges, return_weights=True)
    _, (_, whole) = module.eval()(x, edges, return_weights=True)
    dropped = weights == 0
    assert abs(dropped.double().mean() - 0.4) < 0.02  # 4 sigma of 14,400
    torch.testing.assert_close(weights[~dropped], whole[~dropped] / 0.6)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(duplicate: Any) -> None:
    module = GraphAttention(FEATURES, D, 2, share_weights=True)
    twin, x = duplicate(module), torch.randn(N, FEATURES)
    assert twin.key_proj is twin.query_proj
    assert torch.equal(twin(x, graph(0.2)), module(x, graph(0.2)))


def test_initial_parameters() -> None:
    torch.manual_seed(0)
    module = GraphAttention(400, 50, 8, residual=True, edge_dim=100)
    for x in (p for name, p in module.named_parameters() if name.endswith("weight")):
        bound = (6 / sum(x.shape)) ** 0.5
        assert 0.95 * bound < x.abs().max() <= bound
    assert module.bias is not None and not module.bias.any()
    assert module.query_proj.bias.abs().max() <= 400**-0.5


def test_repr() -> None:
    first, *_ = repr(GraphAttention(5, 3, 2)).splitlines()
    assert first == "GraphAttention("
    text = "num_heads=2, concat=True, dropout=0.0, add_self_loops=True"
    assert GraphAttention(5, 3, 2).extra_repr() == text


EDGES = graph(0.2)
WRONG: dict[str, tuple[dict[str, Any], tuple[Any, ...], type[Exception], str]] = {
    "a batch": ({}, (torch.zeros(1, N, 5), EDGES), ValueError, r"x must have shape \(n, in_cha"),
    "features": ({}, (torch.zeros(N, 4), EDGES), ValueError, r"x must have shape \(n, in_chan"),
    "dtype": ({}, (torch.zeros(N, 5).double(), EDGES), TypeError, "x must have the dtype of the"),
    "a list": ({}, ([torch.zeros(N, 5)], EDGES), TypeError, "x must be a tensor or a tuple"),
    "two kinds": ({"in_channels": (5, 4)}, (torch.zeros(N, 5), EDGES), TypeError, "x must be a tu"),
    "edges": ({}, (torch.zeros(N, 5), [[0], [1]]), TypeError, "edges must be Edges or a tensor"),
    "rows": ({}, (torch.zeros(N, 5), EDGES.T), ValueError, r"edges must have shape \(2, E\)"),
    "no node": ({}, (torch.zeros(3, 5), EDGES), ValueError, r"edges must lie in \[0, 2\]"),
    "other sizes": (
        {},
        (torch.zeros(N, 5), prepare_edges(EDGES, N + 1, N)),
        ValueError,
        "x must have a row per node of edges",
    ),
    "no edge_dim": ({}, (torch.zeros(N, 5), EDGES, EDGES.T.float()), ValueError, "edge_attr must"),
    "few features": (
        {"edge_dim": 2},
        (torch.zeros(N, 5), EDGES, torch.zeros(3, 2)),
        ValueError,
        r"edge_attr must have shape \(E, edge_dim\)",
    ),
}


@pytest.mark.parametrize("options, arguments, error, text", WRONG.values(), ids=WRONG)
def test_wrong_calls(options: Any, arguments: Any, error: Any, text: str) -> None:
    module = GraphAttention(**{"in_channels": 5, "out_channels": 3, **options})
    with pytest.raises(error, match=text):
        module(*arguments)


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"in_channels": 0}, ValueError, "in_channels must be an int of at least 1, got 0"),
        ({"in_channels": (5, 4, 3)}, ValueError, "in_channels must be an int or two"),
        ({"in_channels": (5, 4), "share_weights": True}, ValueError, "must be two equal sizes"),
        ({"out_channels": 0}, ValueError, "out_channels must be an int of at least 1"),
        ({"num_heads": 0}, ValueError, "num_heads must be an int of at least 1"),
        ({"concat": 1}, TypeError, "concat must be a bool"),
        ({"dropout": 2.0}, ValueError, r"dropout must lie in \[0, 1\]"),
        ({"negative_slope": -1.0}, ValueError, r"negative_slope must lie in \[0, 1\]"),
        ({"edge_dim": 0}, ValueError, "edge_dim must be an int of at least 1"),
        ({"fill_value": "median"}, ValueError, "fill_value must be one of"),
        ({"fill_value": None}, TypeError, "fill_value must be a number"),
        ({"fill_value": torch.ones(3), "edge_dim": 2}, ValueError, r"\(2,\), got a tensor \(3,\)"),
        ({"backend": "fast"}, ValueError, "backend must be one of"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        GraphAttention(**{"in_channels": 5, "out_channels": 3, **options})


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("nodes", [3, 90], ids=["dense", "sparse"])
def test_a_graph_is_kept_while_its_tensor_lives(loops: bool, nodes: int) -> None:
    edges = torch.randint(nodes, (2, 20))
    GraphAttention(5, 3, add_self_loops=loops)(torch.randn(nodes, 5), edges)
    alive = weakref.ref(edges)
    del edges
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_exported_at_every_size(strict: bool) -> None:
    """One program for graphs that are sparse and dense."""
    module = GraphAttention(5, 3, 2, edge_dim=2 if strict else None).eval()

    def inputs(nodes: int, count: int) -> tuple[Tensor, ...]:
        features = (torch.randn(count, 2),) if strict else ()
        return torch.randn(nodes, 5), torch.randint(nodes, (2, count)), *features

    sizes = {0: Dim.DYNAMIC}, {1: Dim.DYNAMIC}, {0: Dim.DYNAMIC}
    example = inputs(30, 50)
    program = torch.export.export(
        module, example, dynamic_shapes=sizes[: len(example)], strict=strict
    )
    for given in (30, 50), (5, 60), (1, 1), (4, 0):
        x = inputs(*given)
        torch.testing.assert_close(program.module()(*x), module(*x))


@pytest.mark.slow
def test_compiled_in_one_graph() -> None:
    module = GraphAttention(FEATURES, D, 2, edge_dim=2)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for more in range(6):
        x, edges = torch.randn(60, FEATURES), torch.randint(60, (2, 100 + 13 * more))
        features = torch.randn(edges.shape[1], 2)
        torch.testing.assert_close(compiled(x, edges, features), module(x, edges, features))
    assert counter.frame_count <= 2
