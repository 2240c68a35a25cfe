"""PyTorch Geometric's own GATv2Conv, swapped: fused on every graph, unless it is watched."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from helpers.inputs import F32, F64
from helpers.interop_swap import plain, same
from helpers.nn_twins import check_twin
from torch import Tensor, nn

from attnkernels.functional import graphs
from attnkernels.interop import load_state_dict_from, replace_attention, restore_attention
from attnkernels.nn import AdditiveAttention
from benchmarks.suite import peers

try:
    geometric = peers.geometric()
except ImportError as error:
    pytest.skip(f"PyTorch Geometric cannot be imported: {error}", allow_module_level=True)

SOURCES, TARGETS, FEATURES = 12, 9, 5


def graph(
    *, sources: int = SOURCES, targets: int = SOURCES, density: float = 0.4, twice: int = 0
) -> Tensor:
    """Return random edges (2, E), with loops, in random order, the first of them twice.

    Node 1 has no edge.
    """
    generator = torch.Generator().manual_seed(5)
    there = torch.rand(sources, targets, generator=generator) < density
    there[1], there[:, 1] = False, False
    edges = there.nonzero().t()
    edges = torch.cat([edges, edges[:, :twice]], 1)
    return edges[:, torch.randperm(edges.shape[1], generator=generator)]


def complete(nodes: int = SOURCES) -> Tensor:
    return torch.ones(nodes, nodes).nonzero().t()


def convolution(dtype: torch.dtype = F32, **options: Any) -> Any:
    """Return a swapped GATv2Conv, by default of two heads."""
    size = options.pop("in_channels", FEATURES)
    module = geometric.GATv2Conv(size, 3, **{"heads": 2, **options}).to(dtype)
    if module.bias is not None:
        nn.init.normal_(module.bias)
    report = replace_attention(module)
    assert report.swapped == {"": "PyTorch Geometric, GATv2Conv"} and not report.left
    return module


def calls_of_its_own(module: Any) -> list[str]:
    """Return a list that grows by one with each message passing of the library."""
    calls, own = [], module.propagate

    def propagate(*args: Any, **options: Any) -> Any:
        calls.append("propagate")
        return own(*args, **options)

    vars(module)["propagate"] = propagate
    return calls


def check(
    module: Any, inputs: dict[str, Tensor], edges: Tensor, features: Tensor | None = None
) -> None:
    """Assert that results and gradients are the library's, without a message passing."""
    if features is not None:
        inputs = {**inputs, "features": features}

    def call(module: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        rest = () if features is None else inputs[-1:]
        nodes = inputs[: len(inputs) - len(rest)]
        x = nodes[0] if len(nodes) == 1 else nodes
        out = module(x, edges, *rest)
        again, (found, weights) = module(x, edges, *rest, return_attention_weights=True)
        orders.append(found)
        return out, again, weights

    orders: list[Tensor] = []
    check_twin(module, lambda module, *x: call(plain(module), *x), inputs, call=call)
    assert all(torch.equal(x, orders[0]) for x in orders)  # the same edges in the same order
    calls = calls_of_its_own(module)
    call(module, *inputs.values())
    assert not calls


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


def both(module: Any, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """Return what the swapped module and the library's own return, or the errors they raise."""
    results: list[Any] = []
    for each in module, plain(module):
        try:
            results.append(each(*arguments, **options))
        except Exception as error:
            results.append(error)
    return results[0], results[1]


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
    calls = calls_of_its_own(module)
    found = module(x, layout(adjacency), return_attention_weights=True)
    assert not calls
    wanted = plain(module)(x, layout(adjacency), return_attention_weights=True)
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
    of = sys.modules["torch_geometric"].EdgeIndex
    edges = SORTED[order](graph(density=density)).contiguous()
    own = plain(module)
    calls = calls_of_its_own(module)
    for size in (None, None), (SOURCES, SOURCES):
        given = of(edges, sparse_size=size, sort_order=order)
        for options in {}, {"return_attention_weights": True}:
            same(module(x, given, **options), own(x, given, **options))
    assert not calls


@pytest.mark.parametrize("edges", [complete(), graph(density=0.1)], ids=["dense", "sparse"])
@pytest.mark.parametrize("where", [(0, 3), (1, 3)], ids=["source", "target"])
@pytest.mark.parametrize("end", [-1, SOURCES])
@pytest.mark.parametrize("loops", [True, False])
def test_an_end_that_is_no_node(edges: Tensor, where: Any, end: int, loops: bool) -> None:
    """The error is the library's own."""
    edges = edges.clone()
    edges[where] = end
    module = convolution(add_self_loops=loops)
    found, wanted = both(module, torch.randn(SOURCES, FEATURES), edges)
    assert isinstance(found, IndexError) and str(found) == str(wanted)
    of = sys.modules["torch_geometric"].EdgeIndex
    order = edges[:, edges[1].argsort(stable=True)].contiguous()
    given = of(order, sparse_size=(SOURCES, SOURCES), sort_order="col")
    found, wanted = both(module, torch.randn(SOURCES, FEATURES), given)
    assert isinstance(found, IndexError) and str(found) == str(wanted)


X = torch.randn(SOURCES, FEATURES)
REFUSED: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    # options of the module, arguments of the call
    "edges of floating-point numbers": ({"add_self_loops": False}, (X, complete().float())),
    "three rows of edges": ({"add_self_loops": False}, (X, torch.zeros(3, 4).long())),
    "features without a layer": ({}, (X, complete(), torch.randn(SOURCES**2, 2))),
    "too few features": ({"edge_dim": 2}, (X, complete(), torch.randn(9, 2))),
    "a batch": ({}, (X[None], complete())),
    "no targets": ({}, ((X, None), complete())),
    "a missing target": ({"flow": "target_to_source"}, ((X[:9], X), complete())),
    "an EdgeIndex of another size": ({}, (X, None)),
}


@pytest.mark.parametrize("options, arguments", REFUSED.values(), ids=REFUSED)
def test_what_the_library_refuses(options: Any, arguments: Any) -> None:
    if arguments[1] is None:
        of = sys.modules["torch_geometric"].EdgeIndex
        arguments = X, of(complete(), sparse_size=(SOURCES + 1, SOURCES + 1))
    found, wanted = both(convolution(**options), *arguments)
    assert isinstance(wanted, Exception)
    assert type(found) is type(wanted) and str(found) == str(wanted)


OWN: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "one row of features for all edges": (
        {"edge_dim": 2, "add_self_loops": False},
        (X, complete(), torch.ones(1, 2)),
    ),
    "more sources than targets, from targets": (
        {"flow": "target_to_source"},
        ((X, X[:9]), graph(sources=9)),
    ),
}


@pytest.mark.parametrize("options, arguments", OWN.values(), ids=OWN)
def test_what_stays_the_librarys_own_matter(options: Any, arguments: Any) -> None:
    module = convolution(**options)
    wanted, calls = plain(module)(*arguments), calls_of_its_own(module)
    assert torch.equal(module(*arguments), wanted) and calls == ["propagate"]


@pytest.mark.parametrize("asked", [None, True, False])
def test_weights_are_returned_as_the_release_does(asked: bool | None) -> None:
    for edges in complete(), graph(density=0.1):
        module = convolution()
        same(*both(module, X, edges, return_attention_weights=asked))


@pytest.mark.parametrize("edges", [complete(), graph(density=0.1)], ids=["dense", "sparse"])
@pytest.mark.parametrize("bias", [True, False])
def test_dtypes_under_autocast(edges: Tensor, bias: bool) -> None:
    module = convolution(bias=bias, edge_dim=2)
    for features in None, torch.randn(edges.shape[1], 2):
        with torch.autocast("cpu", torch.bfloat16):
            found, (_, weights) = module(X, edges, features, True)
            alone = module(X, edges, features)
            wanted, (_, own) = plain(module)(X, edges, features, True)
        assert found.dtype is alone.dtype is wanted.dtype and weights.dtype is own.dtype
        for one, other in (found, wanted), (alone, wanted), (weights, own):
            torch.testing.assert_close(one, other, rtol=2**-6, atol=2**-6)  # bfloat16's sums


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """The number of times that an edge is there is not rounded."""
    module = convolution(dtype)
    edges = torch.cat([complete(), *[graph()] * 30], 1)
    exact = plain(copy.deepcopy(module).double())(X.to(dtype).double(), edges)
    found = module(X.to(dtype), edges)
    assert found.dtype is dtype
    close = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), exact, rtol=close, atol=close)


def test_hooks_and_explanations_see_the_messages() -> None:
    module, x = convolution(), torch.randn(SOURCES, FEATURES)
    fused, seen = module(x, complete()), []
    handle = module.register_message_forward_hook(lambda *_: seen.append("message"))
    torch.testing.assert_close(module(x, complete()), fused)
    assert seen == ["message"]
    handle.remove()
    module(x, complete())
    assert seen == ["message"]
    module.explain = True
    module._edge_mask = nn.Parameter(torch.zeros(SOURCES * SOURCES))
    module._loop_mask, module._apply_sigmoid = torch.ones(SOURCES * SOURCES) == 1, True
    calls = calls_of_its_own(module)
    assert not torch.allclose(module(x, complete()), fused) and calls == ["propagate"]


def test_dropout_in_training() -> None:
    """The given share is dropped, also of the weights that are returned."""
    module, nodes = convolution(heads=4, dropout=0.4), 40
    x, edges = torch.randn(nodes, FEATURES), complete(nodes)
    _, (_, weights) = module(x, edges, return_attention_weights=True)
    _, (_, whole) = module.eval()(x, edges, return_attention_weights=True)
    dropped = weights == 0
    assert abs(dropped.double().mean() - 0.4) < 0.02 and (whole > 0).all()  # 3 sigma of 6400
    torch.testing.assert_close(weights[~dropped], whole[~dropped] / 0.6)


@pytest.mark.parametrize(
    "size, options, why",
    [
        (FEATURES, {"aggr": "mean"}, "aggr is 'mean': attention adds"),
        (-1, {}, "it has no sizes yet: call it once before"),
    ],
)
def test_left(size: int, options: dict[str, Any], why: str) -> None:
    module = geometric.GATv2Conv(size, 3, **options)
    assert replace_attention(module).left == {"": why}


def test_a_lazy_module_after_its_first_call() -> None:
    module, x = geometric.GATv2Conv(-1, 3, heads=2), torch.randn(SOURCES, FEATURES)
    before = module(x, complete())
    assert replace_attention(module).swapped
    torch.testing.assert_close(module(x, complete()), before)


def test_in_a_model_and_in_copies() -> None:
    model = geometric.GAT(FEATURES, 8, 2, 3, v2=True)
    x, edges = torch.randn(SOURCES, FEATURES), graph()
    before = model(x, edges)
    report = replace_attention(model)
    assert list(report.swapped) == ["convs.0", "convs.1"]
    torch.testing.assert_close(model(x, edges), before)
    for duplicate in copy.deepcopy, copy.copy:
        assert torch.equal(duplicate(model)(x, edges), model(x, edges))
        assert type(duplicate(model.convs[0])) is type(model.convs[0])
    assert repr(model.convs[1]) == "GATv2Conv(8, 3, heads=1)"


def test_pickles_are_the_librarys() -> None:
    module = convolution(edge_dim=2)
    data = pickle.dumps(module)
    assert b"attnkernels" not in data
    again = pickle.loads(data)
    assert type(again) is geometric.GATv2Conv
    assert torch.equal(again(X, graph()), plain(module)(X, graph()))


def test_restored() -> None:
    model = geometric.GAT(FEATURES, 8, 2, 3, v2=True)
    replace_attention(model)
    assert restore_attention(model) == ("convs.0", "convs.1")
    assert {type(each) for each in model.convs} == {geometric.GATv2Conv}
    assert restore_attention(model) == ()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*")
@pytest.mark.parametrize("loops", [True, False])
def test_a_trace_is_the_librarys(loops: bool) -> None:
    module = convolution(add_self_loops=loops).eval()
    traced = torch.jit.trace(module, (X, complete()), check_trace=False)
    for edges in complete(), graph(density=0.1):
        assert torch.equal(traced(X, edges), plain(module)(X, edges))


def test_a_graph_that_changes() -> None:
    """In place, behind the version counter, and under another name."""
    module = convolution()
    for edges in complete().contiguous(), graph(density=0.1).contiguous():
        array = edges.numpy()

        def by_version(edges: Tensor = edges) -> None:
            edges[0, :3] = 9

        def by_data(edges: Tensor = edges) -> None:
            edges.data[1, :3] = 5

        def by_numpy(array: Any = array) -> None:
            array[0, :5] = 7

        for change in by_version, by_data, by_numpy:
            before = module(X, edges)
            change()
            found = module(X, edges)
            same(found, plain(module)(X, edges))
            assert not torch.equal(found, before)


def test_a_graph_is_kept_while_its_tensor_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    made, own = [], graphs.Graph.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        made.append(self)
        own(self, *args, **options)

    model = geometric.GAT(FEATURES, 8, 2, 3, v2=True)
    replace_attention(model)
    monkeypatch.setattr(graphs.Graph, "__init__", init)
    monkeypatch.setattr(graphs, "_kept", {})
    edges = graph(density=0.1)
    for _ in range(3):
        model(X, edges)
    assert len(made) == 1
    for module in model.convs:
        module.flow = "target_to_source"
    model(X, edges)
    assert len(made) == 2
    many = [graph(density=0.1) for _ in range(20)]
    for each in many:
        model(X, each)
    assert len(graphs._kept) == 8
    del many, each, edges
    gc.collect()
    assert not graphs._kept


def test_inference_and_then_training() -> None:
    module, edges = convolution(), graph(density=0.1)
    with torch.inference_mode():
        module(X, edges)
    module(X, edges).sum().backward()
    assert module.att.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"add_self_loops": False}, {"edge_dim": 2}])
def test_compiled_as_the_librarys(options: dict[str, Any]) -> None:
    """In one graph, which changing numbers of nodes and edges do not compile anew for ever."""
    counts, nodes = [], 60
    module = convolution(**options)
    for each in plain(module), module:
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(each, fullgraph=True, backend=counter)
        for more in range(8):
            n = nodes + 7 * max(0, more - 4)
            edges = torch.randint(n, (2, 100 + 13 * more))
            x = torch.randn(n, FEATURES, requires_grad=True)
            features = () if "edge_dim" not in options else (torch.randn(edges.shape[1], 2),)
            found = compiled(x, edges, *features)
            same(found, each(x, edges, *features))
            found.sum().backward()
        counts.append(counter.frame_count)
    assert counts[1] <= counts[0]


def test_the_tables_names_are_those_of_the_library() -> None:
    module = convolution(residual=True)
    x = torch.randn(SOURCES, FEATURES)
    ours = AdditiveAttention(FEATURES, FEATURES, 6, num_heads=2, activation="leaky_relu")
    load_state_dict_from(ours, module.state_dict(), convention="pyg-gatv2")
    found = ours(x[None], x[None], module.lin_l(x)[None])[0] + module.res(x) + module.bias
    torch.testing.assert_close(found, module(x, complete()))
