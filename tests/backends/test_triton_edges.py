"""The Triton kernels over edges: cut nodes, blocks of heads and columns, the same bits again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.edges import check_sparse, graph, operands
from helpers.inputs import F32
from helpers.philox import keep_mask, next_seed
from torch import Tensor

from attnkernels import Edges, additive_attention_sparse, prepare_edges

pytest.importorskip("triton", reason="the package triton is not installed")

from attnkernels.backends.triton.host import configs, edges
from attnkernels.backends.triton.host.launch import Target
from attnkernels.ops.signature import EdgeOptions

# `backend` skips where kernels are not interpreted.
interpreted = pytest.mark.parametrize("backend", ["triton"], indirect=True)
EVERYTHING: dict[str, Any] = {"return_weights": True, "return_lse": True}


def shares(monkeypatch: pytest.MonkeyPatch, units: int) -> None:
    """Give every program `units` edges and nodes."""
    monkeypatch.setattr(configs, "EDGE_SHARE", units)
    monkeypatch.setattr(configs, "EDGE_SHARES", 1 << 20)


def star(n: int, m: int, count: int, hub: int) -> Edges:
    """Return a graph whose edges all lead to the target `hub`, from all sources in turn."""
    source = torch.arange(count) % m
    return prepare_edges(torch.stack([source, torch.full((count,), hub)]), n, m)


@interpreted
@pytest.mark.parametrize("units", [1, 2, 5])
@pytest.mark.parametrize(
    "edges",
    [graph(4, 3, 14), star(3, 2, 11, 1), star(1, 1, 6, 0), star(5, 4, 3, 4), graph(3, 4, 0)],
    ids=["random", "star", "one pair", "last target", "no edge"],
)
def test_nodes_are_cut_anywhere(
    backend: str, edges: Edges, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, inside and after the edges of a node; through many programs; at empty nodes."""
    shares(monkeypatch, units)
    given = operands(edges, (3,), 3, None, edge_bias=True)
    check_sparse(**given, backend=backend, dropout_p=0.2, **EVERYTHING)


@interpreted
@pytest.mark.parametrize(
    ("row", "d", "dv", "activation"),
    [(2, 7, None, "tanh"), (4, 3, 9, "sigmoid"), (4, 9, 2, "relu"), (8, 19, None, "leaky_relu")],
)
def test_blocks_of_columns(
    backend: str, row: int, d: int, dv: int | None, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which the last is not full; signs of q + k are kept from eight columns on."""
    shares(monkeypatch, 12)
    monkeypatch.setattr(configs, "EDGE_ROW", row)
    given = operands(graph(4, 5, 16), (2,), d, dv, edge_key=True)
    check_sparse(**given, backend=backend, activation=activation, **EVERYTHING)


@interpreted
@pytest.mark.parametrize("columns", [4, 8])
def test_blocks_of_heads(backend: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two leading dimensions, and with blocks that are not full."""
    shares(monkeypatch, 12)
    monkeypatch.setattr(configs, "EDGE_COLUMNS", columns)
    given = operands(graph(3, 4, 9), (3, 3), 4, 2, edge_key=True, edge_bias=True)
    check_sparse(**given, backend=backend, dropout_p=0.2, **EVERYTHING)


@interpreted
@pytest.mark.parametrize("places", [1, 2, 16])
def test_blocks_of_edges(backend: str, places: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "EDGES", places)
    given = operands(graph(3, 5, 40), (2,), 4, None, edge_bias=True)
    with torch.no_grad():
        given["edge_bias"][:, ::3] = -torch.inf
    given["edge_bias"].requires_grad_(False)
    check_sparse(**given, backend=backend, **EVERYTHING)


@interpreted
def test_the_same_bits_in_every_run(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shares(monkeypatch, 5)
    given = operands(graph(6, 5, 30), (2,), 4, 3)
    edges = given.pop("edges")

    def run() -> list[Tensor]:
        context = additive_attention_sparse(**given, edges=edges, backend=backend)
        return [context, *torch.autograd.grad(context.square().sum(), list(given.values()))]

    assert all(torch.equal(x, y) for x, y in zip(run(), run(), strict=True))


@interpreted
def test_dropout_counts_edges_by_target(backend: str) -> None:
    """The bits are those of (seed, leading index, 0, place by target)."""
    edges, p = graph(4, 5, 30), 0.4
    given = operands(edges, (2, 2), 4, None)
    seed = next_seed(7)
    _, dropped = additive_attention_sparse(
        given["query"], given["key"], given["key"], given["weight"], edges,
        dropout_p=p, return_weights=True, backend=backend,
    )  # fmt: skip
    kept = keep_mask(seed, p, 4, 1, edges.num_edges).view(2, 2, -1)
    assert torch.equal(dropped[..., edges.order] > 0, kept)


@interpreted
def test_gradients_that_are_expanded(backend: str) -> None:
    """sum() hands back a gradient with strides of 0; the results lie by row all the same."""
    given = operands(graph(4, 5, 20), (2,), 3, None, dtype=F32)
    found = {}
    for name in ("reference", backend):
        context, weights, lse = additive_attention_sparse(
            given["query"], given["key"], given["key"], given["weight"], given["edges"],
            backend=name, **EVERYTHING,
        )  # fmt: skip
        outputs = context.sum() + weights.sum() + lse.where(lse.isfinite(), 0).sum()
        found[name] = torch.autograd.grad(outputs, [given["query"], given["key"]])
    torch.testing.assert_close(found[backend], found["reference"])


@interpreted
def test_a_gradient_of_what_broadcasts_is_refused(backend: str) -> None:
    """Through torch.ops: the functions expand what wants a gradient."""
    edges, row = graph(3, 4, 9), torch.ones(2, 3, 5)
    forward = torch.ops.attnkernels.triton_sparse_forward
    backward = torch.ops.attnkernels.triton_sparse_backward
    of_edges = (getattr(edges, name) for name in EdgeOptions._fields if name in edges._fields)
    inputs = row, torch.ones(4, 5), None, torch.ones(5), None, None, *of_edges, None
    context, lse, weights = forward(*inputs, 0.0, 3, 0.2, 1.0, False)
    with pytest.raises(ValueError, match="key must have all leading dimensions of the call"):
        backward(context, None, None, *inputs, context, lse, weights, 0.0, 3, 0.2, 1.0, 2)


@pytest.mark.parametrize(
    ("heads", "d", "dv", "tile"),
    [
        (8, 32, 32, (8, 1, 1)),
        (8, 8, 8, (8, 4, 1)),
        (3, 7, 7, (4, 8, 1)),
        (1, 1, 1, (1, 16, 1)),
        (64, 8, 64, (4, 1, 1)),
        (2, 1000, 3, (1, 1, 4)),
        (1, 3000, 3, (1, 1, 4)),
    ],
)
def test_the_tile_follows_from_the_sizes(
    heads: int, d: int, dv: int, tile: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edges.pairs, "target", lambda device: Target("cuda", 32, 132))
    call = made(heads, d, dv, 1000, 7000)
    assert (call.BH, call.arguments["BE"], call.warps) == tile


def test_work_is_shared_by_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large graph fills the device a few times; a small one is not cut to pieces."""
    monkeypatch.setattr(edges.pairs, "target", lambda device: Target("cuda", 32, 132))
    large, small = made(8, 32, 32, 169_343, 1_166_243), made(8, 32, 32, 10, 90)
    many = large.shares(large.target_begin)
    assert many.programs == pytest.approx(configs.EDGE_SHARES * large.gpu.room(1), rel=0.01)
    assert many.share * many.programs >= 169_343 + 1_166_243 > many.share * (many.programs - 1)
    assert small.shares(small.target_begin).share == configs.EDGE_SHARE


def made(heads: int, d: int, dv: int, nodes: int, count: int) -> Any:
    """Return a call of these sizes without data."""
    with torch.device("meta"):
        ends = {name: torch.empty(count) for name in ("source", "order", "target", "place")}
        begins = {name: torch.empty(nodes + 1) for name in ("target_begin", "source_begin")}
        rows = torch.empty(nodes, heads, d).transpose(0, 1)
        value = torch.empty(nodes, heads, dv).transpose(0, 1)
        weight = torch.empty(heads, d)
    options = {"edge_key": None, "edge_bias": None, "seed": None, "dropout_p": 0.0}
    numbers = {"activation": 3, "negative_slope": 0.2, "scale": 1.0}
    return edges.EdgeCall(rows, rows, value, weight, **ends, **begins, **options, **numbers)
