"""Attention over edges: within the budget for every option, shape, layout and graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.edges import check_sparse, graph, operands
from helpers.inputs import ACTIVATIONS, BF16, F16, F32, F64, batch_last, sliced, transposed
from torch import Tensor

from attnkernels import Edges, additive_attention, additive_attention_sparse, prepare_edges
from attnkernels.measure.device import find

HEADS = (2,)
GRAPH = graph(7, 9, 60)
EVERYTHING: dict[str, Any] = {"return_weights": True, "return_lse": True, "scale": 0.7}
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dv", [None, 5], ids=["values are keys", "values"])
def test_activations(backend: str, activation: str, dv: int | None) -> None:
    given = operands(GRAPH, HEADS, 6, dv)
    check_sparse(**given, backend=backend, activation=activation, **EVERYTHING)


@pytest.mark.parametrize("dtype", [BF16, F16, F64])
@pytest.mark.parametrize("dv", [None, 5], ids=["values are keys", "values"])
def test_dtypes(backend: str, dtype: torch.dtype, dv: int | None) -> None:
    given = operands(GRAPH, HEADS, 20, dv, dtype, edge_key=True, edge_bias=True)
    check_sparse(**given, backend=backend, **EVERYTHING)


@pytest.mark.parametrize(
    ("lead", "d", "dv"),
    [
        ((), 1, 1),
        ((), 33, None),
        ((1,), 16, 48),
        ((3,), 19, 65),
        ((8,), 32, None),
        ((2, 3), 7, 2),
        ((2, 1, 2), 4, 3),
        ((5,), 130, 17),
        ((2,), 3, 0),
        ((0,), 3, 2),
    ],
    ids=str,
)
def test_shapes(backend: str, lead: tuple[int, ...], d: int, dv: int | None) -> None:
    given = operands(GRAPH, lead, d, dv, edge_key=True)
    check_sparse(**given, backend=backend, **EVERYTHING)


@pytest.mark.parametrize(
    "edges",
    [graph(1, 1, 1), graph(5, 3, 0), graph(1, 40, 70), graph(40, 1, 70), graph(60, 50, 5)],
    ids=["one edge", "no edge", "one target", "one source", "few edges"],
)
def test_graphs(backend: str, edges: Edges) -> None:
    for dv in (None, 3):
        check_sparse(**operands(edges, HEADS, 5, dv), backend=backend, **EVERYTHING)


@pytest.mark.parametrize("nodes", [(0, 4), (4, 0), (0, 0)], ids=str)
def test_no_nodes(backend: str, nodes: tuple[int, int]) -> None:
    edges = prepare_edges(torch.empty(2, 0, dtype=torch.long), *nodes)
    check_sparse(**operands(edges, HEADS, 5, 3, edge_bias=True), backend=backend, **EVERYTHING)


@pytest.mark.parametrize("dropout_p", [0.3, 0.9, 1.0])
def test_dropout(backend: str, dropout_p: float) -> None:
    given = operands(GRAPH, (2, 3), 6, None, edge_bias=True)
    check_sparse(**given, backend=backend, dropout_p=dropout_p, **EVERYTHING)


@pytest.mark.parametrize("through", [("context",), ("weights",), ("lse",)], ids=str)
def test_gradients_through_each_output(backend: str, through: tuple[str, ...]) -> None:
    given = operands(GRAPH, HEADS, 6, 4, edge_key=True, edge_bias=True)
    check_sparse(**given, backend=backend, through=through, **EVERYTHING)


@pytest.mark.parametrize("wanted", ["query", "key", "value", "weight", "edge_key", "edge_bias"])
def test_one_gradient(backend: str, wanted: str) -> None:
    given = operands(GRAPH, HEADS, 6, 4, edge_key=True, edge_bias=True)
    for name, x in given.items():
        if isinstance(x, Tensor):
            x.requires_grad_(name == wanted)
    check_sparse(**given, backend=backend, **EVERYTHING)


@pytest.mark.parametrize("laid", [transposed, sliced, batch_last], ids=lambda f: f.__name__)
def test_layouts(backend: str, laid: Any) -> None:
    given = operands(GRAPH, HEADS, 6, 4, edge_key=True)
    for name in ("query", "key", "value", "edge_key"):
        given[name] = laid(given[name])
    check_sparse(**given, backend=backend, **EVERYTHING)


def test_layout_of_graph_libraries(backend: str) -> None:
    """(nodes, heads, channels) is taken as it lies, and so lie the results and the gradients."""
    k, q = (torch.randn(rows, 3, 8, requires_grad=True) for rows in (GRAPH.m, GRAPH.n))
    key, weight = k.transpose(0, 1), torch.randn(3, 8)
    context, weights = additive_attention_sparse(
        q.transpose(0, 1), key, key, weight, GRAPH, return_weights=True, backend=backend
    )
    if backend != "reference":
        assert context.transpose(0, 1).is_contiguous() and weights.t().is_contiguous()
    context.sum().backward()
    assert k.grad is not None and k.grad.is_contiguous()


def test_operands_that_broadcast(backend: str) -> None:
    """One query for all heads, one edge_key for all, a weight for each."""
    given = operands(GRAPH, (2, 3), 6, None, edge_key=True, edge_bias=True)
    given["query"] = torch.randn(1, GRAPH.n, 6, requires_grad=True)
    given["edge_key"] = torch.randn(GRAPH.num_edges, 6, requires_grad=True)
    given["edge_bias"] = torch.randn(2, 1, GRAPH.num_edges, requires_grad=True)
    given["weight"] = torch.randn(3, 6, requires_grad=True)
    check_sparse(**given, backend=backend, **EVERYTHING)


@pytest.mark.parametrize("size", [1e-20, 30.0, 1e4])
@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
def test_ranges(backend: str, activation: str, size: float) -> None:
    given = operands(GRAPH, HEADS, 6, 4, scale=size)
    given["value"] = torch.randn_like(given["value"]).requires_grad_()
    given["weight"] = torch.randn(6, requires_grad=True)
    check_sparse(**given, backend=backend, activation=activation, **EVERYTHING)


def test_edges_that_occur_twice_count_twice(backend: str) -> None:
    given = operands(GRAPH, HEADS, 6, 4)
    del given["edges"]
    doubled = prepare_edges(GRAPH.edge_index().repeat(1, 2), GRAPH.n, GRAPH.m)
    once, lse = additive_attention_sparse(**given, edges=GRAPH, return_lse=True, backend=backend)
    twice, larger = additive_attention_sparse(
        **given, edges=doubled, return_lse=True, backend=backend
    )
    torch.testing.assert_close(twice, once)
    torch.testing.assert_close(larger, lse + torch.tensor(2.0).log())


def test_a_complete_graph_is_the_dense_operator(backend: str) -> None:
    n, m = 6, 5
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(m)).flip(1).t()
    given = operands(prepare_edges(pairs, n, m), (2,), 4, 3)
    edges = given.pop("edges")
    context, weights = additive_attention_sparse(
        **given, edges=edges, activation="tanh", return_weights=True, backend=backend
    )
    weight = given.pop("weight")
    dense, all_weights = additive_attention(*given.values(), weight, return_weights=True)
    torch.testing.assert_close(context, dense)
    torch.testing.assert_close(weights.view(2, n, m), all_weights)


def test_targets_without_edges_are_zero(backend: str) -> None:
    edges = prepare_edges(torch.tensor([[0, 1, 1], [1, 1, 3]]), 5, 4)
    given = operands(edges, HEADS, 6, None)
    context, lse = additive_attention_sparse(
        given["query"], given["key"], given["key"], given["weight"], edges, return_lse=True,
        backend=backend,
    )  # fmt: skip
    context.square().sum().backward()
    without = torch.tensor([True, False, True, False, True])
    assert (context[:, without] == 0).all() and (lse[:, without] == -INF).all()
    assert (given["query"].grad[:, without] == 0).all()
    assert (given["key"].grad[:, 2:] == 0).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_bias_of_minus_infinity_excludes(backend: str, activation: str) -> None:
    """The rows of an excluded edge may be NaN; a target with no other edge is empty."""
    edges = prepare_edges(torch.tensor([[0, 1, 2, 2, 3], [0, 0, 0, 1, 2]]), 3, 4)
    given = operands(edges, HEADS, 6, 4, edge_key=True, edge_bias=True)
    with torch.no_grad():
        for name in ("key", "value"):
            given[name][:, 2] = NAN
        given["edge_key"][:, 2] = NAN
        given["edge_bias"][:, 2:4] = -INF
    found = additive_attention_sparse(
        **given, activation=activation, return_weights=True, return_lse=True, backend=backend
    )
    context, weights, lse = found
    assert context.isfinite().all() and (context[:, 1] == 0).all()
    assert (weights[:, 2:4] == 0).all() and (lse[:, 1] == -INF).all()
    through = context.square().sum() + weights.square().sum() + lse[:, [0, 2]].sum()
    through.backward()
    for name, x in given.items():
        if isinstance(x, Tensor):
            assert x.grad is not None and x.grad.isfinite().all(), name
    assert (given["key"].grad[:, 2] == 0).all() and (given["value"].grad[:, 2] == 0).all()
    assert (given["edge_key"].grad[:, 2:4] == 0).all()
    kept = prepare_edges(torch.tensor([[0, 1, 3], [0, 0, 2]]), 3, 4)
    rest = {**given, "edges": kept}
    for name, dim in (("edge_key", -2), ("edge_bias", -1)):
        rest[name] = given[name].detach().index_select(dim, torch.tensor([0, 1, 4]))
    torch.testing.assert_close(
        additive_attention_sparse(**rest, activation=activation, backend=backend), context
    )


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
def test_nan_reaches_its_own_rows_only(backend: str, activation: str) -> None:
    edges = graph(12, 10, 40, seed=3)
    source, target = edges.edge_index()
    given = operands(edges, HEADS, 6, None)
    with torch.no_grad():
        given["key"][1, 4, 2] = NAN
    reached = torch.zeros(12, dtype=torch.bool).index_fill(0, target[source == 4], True)
    context = additive_attention_sparse(
        given["query"], given["key"], given["key"], given["weight"], edges,
        activation=activation, backend=backend,
    )  # fmt: skip
    assert context[0].isfinite().all()
    assert (context[1].isnan().all(-1) == reached).all()
    context.sum().backward()
    grad = given["query"].grad
    assert grad[0].isfinite().all() and (grad[1].isnan().any(-1) == reached).all()
    beside = torch.ones(10, dtype=torch.bool).index_fill(0, source[reached[target]], False)
    assert given["key"].grad[1][beside].isfinite().all()


def test_nan_in_the_weight_leaves_nodes_without_edges(backend: str) -> None:
    edges = prepare_edges(torch.tensor([[0, 1, 1], [1, 1, 3]]), 5, 4)
    given = operands(edges, HEADS, 6, 3)
    with torch.no_grad():
        given["weight"][0, 2] = NAN
    additive_attention_sparse(**given, backend=backend).square().sum().backward()
    assert (given["query"].grad[:, [0, 2, 4]] == 0).all()
    assert (given["key"].grad[:, 2:] == 0).all() and given["query"].grad[1].isfinite().all()
    assert given["query"].grad[0, 1].isnan().any()


def test_one_edge_moves_nothing(backend: str) -> None:
    """The gradients of query and weight of a target with one edge are exactly 0."""
    edges = prepare_edges(torch.tensor([[3, 1, 0], [0, 1, 2]]), 3, 4)
    given = operands(edges, HEADS, 6, 5)
    additive_attention_sparse(**given, backend=backend).square().sum().backward()
    assert (given["query"].grad == 0).all() and (given["weight"].grad == 0).all()


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
def test_long_rows(fused: str, activation: str) -> None:
    """Rows of more edges than a task has are cut and merged, by target and by source."""
    many = 60 if fused == "triton" else 5000
    for edges in (graph(3, 50, many), graph(50, 3, many)):
        given = operands(edges, HEADS, 5, None, edge_bias=True)
        check_sparse(**given, backend=fused, activation=activation, dropout_p=0.2, **EVERYTHING)


def test_the_same_bits_at_any_number_of_threads() -> None:
    given = operands(graph(40, 30, 6000), HEADS, 8, None)
    args = given["query"], given["key"], given["key"], given["weight"], given["edges"]
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        context, lse = additive_attention_sparse(*args, return_lse=True)
        grads = torch.autograd.grad(context.square().sum(), [args[0], args[1], args[3]])
        found.append((context, lse, *grads))
    torch.set_num_threads(2)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", [F64])
@pytest.mark.parametrize("of_edges", [["edge_key", "edge_bias"], ["edge_bias"]])
@pytest.mark.parametrize("dv", [2, None])
def test_gradcheck(backend: str, dtype: torch.dtype, of_edges: list[str], dv: int | None) -> None:
    more = dict.fromkeys(of_edges, True)
    given = operands(graph(4, 5, 12), HEADS, 3, dv, dtype, **more)
    if dv is None:
        del given["value"]
    edges, names = given.pop("edges"), list(given)

    def call(*tensors: Tensor) -> Any:
        found = dict(zip(names, tensors, strict=True))
        found.setdefault("value", found["key"])
        return additive_attention_sparse(
            **found, edges=edges, activation="tanh", return_weights=True, return_lse=True,
            backend=backend,
        )  # fmt: skip

    if not edges.target_begin.diff().all():  # lse of a target without edges is not finite
        call = _without_lse(call)
    assert torch.autograd.gradcheck(call, list(given.values()))
    assert torch.autograd.gradgradcheck(call, list(given.values()))


def test_without_edges_the_features_of_edges_have_gradients(backend: str) -> None:
    edges = prepare_edges(torch.empty(2, 0, dtype=torch.int64), 3, 4)
    given = operands(edges, (), 6, 5, edge_key=True, edge_bias=True)
    additive_attention_sparse(**given, backend=backend).sum().backward()
    for name in "weight", "edge_key", "edge_bias":
        assert given[name].grad.shape == given[name].shape and not given[name].grad.any()


def _without_lse(call: Any) -> Any:
    return lambda *tensors: call(*tensors)[:2]


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_autocast(backend: str, dtype: torch.dtype) -> None:
    given = operands(GRAPH, HEADS, 6, 4, dtype, edge_key=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert additive_attention_sparse(**given, backend=backend).dtype == torch.bfloat16


def test_memory_of_edges_and_heads_alone() -> None:
    """Forward: nothing but results. Backward: gradients, and two numbers and d bits per head."""
    n, count, heads, d = 2_000, 200_000, 8, 32
    edges = graph(n, n, count)
    query, key = (torch.randn(n, heads, d).transpose(0, 1).requires_grad_() for _ in range(2))
    weight = torch.randn(heads, d, requires_grad=True)

    def both() -> None:
        additive_attention_sparse(query, key, key, weight, edges).sum().backward()

    both()  # loads what a first call loads
    peak = find("cpu").measure(both).peak_bytes
    rows, records = n * heads * d * 4, count * heads * (2 * 4 + d / 8)
    assert peak < 1.2 * records + 8 * rows  # a tensor of [edges, heads, d] has 204,800,000 bytes
