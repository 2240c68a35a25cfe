"""PyTorch Geometric's own GATv2Conv, swapped: fused on dense graphs, unless it is watched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.inputs import F32, F64
from helpers.interop_swap import plain, same, tensors
from helpers.nn_twins import COPIES, check_twin
from torch import Tensor, nn

from attnkernels.interop import load_state_dict_from, replace_attention
from attnkernels.nn import AdditiveAttention
from benchmarks.suite import peers

try:
    geometric = peers.geometric()
except ImportError as error:
    pytest.skip(f"PyTorch Geometric cannot be imported: {error}", allow_module_level=True)

SOURCES, TARGETS, FEATURES = 12, 9, 5


def graph(*, sources: int = SOURCES, targets: int = SOURCES, density: float = 0.4) -> Tensor:
    """Return random edges (2, E), with loops, in random order. Node 1 has no edge."""
    generator = torch.Generator().manual_seed(5)
    there = torch.rand(sources, targets, generator=generator) < density
    there[1], there[:, 1] = False, False
    edges = there.nonzero().t()
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


def check(module: Any, inputs: dict[str, Tensor], edges: Tensor) -> None:
    """Assert that results and gradients are the library's, without a message passing."""

    def call(module: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        x = inputs[0] if len(inputs) == 1 else inputs
        out = module(x, edges)
        again, (found, weights) = module(x, edges, return_attention_weights=True)
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


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("edges", [complete(), graph()], ids=["complete", "dense"])
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


def test_the_same_nodes_twice() -> None:
    """A tuple of the same nodes, with shared layers."""
    module, x = convolution(share_weights=True), torch.randn(SOURCES, FEATURES)
    same(module((x, x), graph()), plain(module)((x, x), graph()))


OWN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # options of the module, arguments of the call
    "an edge that is there twice": ({}, {"edge_index": torch.cat([complete(), graph()], 1)}),
    "few edges": ({}, {"edge_index": torch.tensor([[0, 3, 4], [2, 2, 1]])}),
    "no edges": ({"add_self_loops": False}, {"edge_index": torch.empty(2, 0, dtype=torch.int64)}),
    "weights that are not wanted": ({}, {"return_attention_weights": False}),
}


@pytest.mark.parametrize("options, arguments", OWN.values(), ids=OWN)
def test_what_stays_the_librarys_own_matter(options: Any, arguments: Any) -> None:
    module, x = convolution(**options), torch.randn(SOURCES, FEATURES)
    arguments = {"edge_index": complete(), **arguments}
    wanted = plain(module)(x, **arguments)
    calls = calls_of_its_own(module)
    found = module(x, **arguments)
    assert calls == ["propagate"] and type(found) is type(wanted)
    assert all(torch.equal(a, b) for a, b in zip(tensors(found), tensors(wanted), strict=True))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_sparse_adjacency() -> None:
    module, x = convolution(add_self_loops=False), torch.randn(SOURCES, FEATURES)
    wanted, calls = module(x, complete()), calls_of_its_own(module)
    adjacency = torch.ones(SOURCES, SOURCES)
    for sparse in (adjacency.to_sparse_coo(), adjacency.to_sparse_csr()):
        torch.testing.assert_close(module(x, sparse), wanted)
    assert len(calls) == 2


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
        (FEATURES, {"edge_dim": 2}, "edge_dim is set: features of edges enter each score"),
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
    for duplicate in COPIES:
        assert torch.equal(duplicate(model)(x, edges), model(x, edges))
    assert repr(model.convs[1]) == "GATv2Conv(8, 3, heads=1)"


def test_the_tables_names_are_those_of_the_library() -> None:
    module = convolution(residual=True)
    x = torch.randn(SOURCES, FEATURES)
    ours = AdditiveAttention(FEATURES, FEATURES, 6, num_heads=2, activation="leaky_relu")
    load_state_dict_from(ours, module.state_dict(), convention="pyg-gatv2")
    found = ours(x[None], x[None], module.lin_l(x)[None])[0] + module.res(x) + module.bias
    torch.testing.assert_close(found, module(x, complete()))
