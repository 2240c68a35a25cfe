"""Calls of PyTorch Geometric's GATv2Conv, swapped: what it refuses, keeps, compiles and copies."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from helpers.inputs import F64
from helpers.interop_swap import plain, same
from helpers.pyg import (
    FEATURES,
    SOURCES,
    both,
    calls_of_its_own,
    complete,
    convolution,
    edge_index,
    geometric,
    graph,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnkernels.functional import graphs
from attnkernels.interop import load_state_dict_from, replace_attention, restore_attention
from attnkernels.nn import AdditiveAttention, GraphAttention
from attnkernels.testing import assert_within_budget


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
    order = edges[:, edges[1].argsort(stable=True)].contiguous()
    given = edge_index(order, sparse_size=(SOURCES, SOURCES), sort_order="col")
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
        arguments = X, edge_index(complete(), sparse_size=(SOURCES + 1, SOURCES + 1))
    found, wanted = both(convolution(**options), *arguments)
    if not isinstance(wanted, Exception):  # by an earlier release
        same(found, wanted)
    else:
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
    with torch.autocast("cpu", torch.bfloat16):
        module = convolution(bias=bias, edge_dim=2)  # its trial is outside of autocast
    for features in None, torch.randn(edges.shape[1], 2):
        with torch.autocast("cpu", torch.bfloat16):
            found, (_, weights) = module(X, edges, features, True)
            alone = module(X, edges, features)
            wanted, (_, own) = plain(module)(X, edges, features, True)
        assert found.dtype is alone.dtype is wanted.dtype and weights.dtype is own.dtype
        double = plain(copy.deepcopy(module).double())
        wide = None if features is None else features.double()
        exact, (_, in_full) = double(X.double(), edges, wide, True)
        assert_within_budget(found, wanted, exact)
        assert_within_budget(alone, wanted, exact)
        assert_within_budget(weights, own, in_full)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """The number of times that an edge is there is not rounded."""
    module = convolution(dtype)
    edges = torch.cat([complete(), *[graph()] * 30], 1)
    exact = plain(copy.deepcopy(module).double())(X.to(dtype).double(), edges)
    assert_within_budget(module(X.to(dtype), edges), plain(module)(X.to(dtype), edges), exact)


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
    if "_alpha" in vars(module):
        pytest.skip("this release returns the weights before dropout")
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


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False])
def test_an_export_to_onnx_is_the_librarys(tmp_path: Path, dynamo: bool) -> None:
    """The nodes are the same, or the error: old releases do not export by TorchScript."""
    onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
    pytest.importorskip("onnxscript", reason="the package onnxscript is not installed")
    module = convolution().eval()
    path = tmp_path / "layer.onnx"

    def exported(layer: nn.Module) -> list[str] | type[Exception]:
        try:
            torch.onnx.export(layer, (X, graph()), path, dynamo=dynamo, verbose=False)
        except torch.onnx.errors.OnnxExporterError as error:
            return type(error)
        return [node.op_type for node in onnx.load(path).graph.node]

    assert exported(module) == exported(plain(module))


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


@pytest.mark.parametrize("edges", [graph(), graph(density=0.1)], ids=["dense", "sparse"])
def test_transforms(edges: Tensor) -> None:
    """Second derivatives, vmap over parameters and activation checkpointing."""
    module = convolution(F64)
    x = X.double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: module(x, edges), (x,))
    state = {name: torch.stack([p, p + 0.1]) for name, p in module.named_parameters()}

    def call(each: Any, state: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(each, state, (x, edges))

    wanted = torch.stack([call(plain(module), {n: p[i] for n, p in state.items()}) for i in (0, 1)])
    same(torch.vmap(call, (None, 0))(module, state), wanted)
    again = checkpoint(module, x, edges, use_reentrant=False)
    found, own = (torch.autograd.grad(y.sum(), x)[0] for y in (again, plain(module)(x, edges)))
    same(found, own)


@pytest.mark.parametrize("options", [{}, {"share_weights": True}, {"edge_dim": 2, "bias": False}])
@pytest.mark.parametrize("edges", [complete(), graph(density=0.1)], ids=["dense", "sparse"])
def test_the_same_parameters_get_gradients(options: dict[str, Any], edges: Tensor) -> None:
    """From the nodes, and from the weights alone."""
    module = convolution(**options)
    features = torch.randn(edges.shape[1], 2) if "edge_dim" in options else None
    for of in 0, 1:
        names = []
        for each in module, plain(module):
            each.zero_grad()
            nodes, (_, weights) = each(X, edges, features, True)
            (nodes, weights)[of].square().sum().backward()
            names.append([name for name, x in each.named_parameters() if x.grad is not None])
        assert names[0] == names[1]


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


@pytest.mark.parametrize("options", [{}, {"edge_dim": 2, "residual": True}, {"concat": False}])
def test_a_checkpoint_of_the_whole_layer(options: dict[str, Any]) -> None:
    module = convolution(**options)
    ours = GraphAttention(FEATURES, 3, 2, **options)
    load_state_dict_from(ours, module.state_dict(), convention="pyg-gatv2-layer")
    for edges in complete(), graph(density=0.1):
        features = torch.randn(edges.shape[1], 2) if "edge_dim" in options else None
        found, (pairs, weights) = ours(X, edges, features, return_weights=True)
        wanted, (own, own_weights) = plain(module)(X, edges, features, True)
        same((found, weights), (wanted, own_weights))
        assert torch.equal(pairs, own)
