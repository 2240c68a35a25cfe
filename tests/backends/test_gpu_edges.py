"""Attention over edges on a GPU, where emulator and interpreter cannot stand in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backends.test_gpu_runtime import captured
from helpers.edges import check_sparse, graph, operands
from helpers.gpu import EVERYTHING, GPU, MARKS, on_gpu
from helpers.inputs import BF16, F16, F32
from torch import Tensor

from attnkernels import Edges, additive_attention_sparse, prepare_edges

pytestmark = MARKS


def large() -> Edges:
    """Return a graph of more edges than the programs of a launch share at the least."""
    return graph(3000, 2000, 200_000).to(GPU)


def star() -> Edges:
    """Return a graph in which one node has every edge, as their target or their source."""
    many = torch.arange(100_000) % 500
    hub = torch.full_like(many, 3)
    ends = torch.cat([torch.stack([many, hub]), torch.stack([hub, many])], -1)
    return prepare_edges(ends, 500, 500).to(GPU)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize(("lead", "d", "dv"), [((8,), 32, None), ((2, 3), 7, 19), ((), 130, None)])
def test_large_graphs(
    name: str, lead: tuple[int, ...], d: int, dv: int | None, dtype: torch.dtype
) -> None:
    check_sparse(**on_gpu(operands, large(), lead, d, dv, dtype), backend=name, **EVERYTHING)


@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "tanh", "sigmoid"])
def test_everything_at_once(name: str, activation: str) -> None:
    given = on_gpu(operands, large(), (4,), 16, 8, edge_key=True, edge_bias=True)
    with torch.no_grad():
        given["edge_bias"][:, ::5] = -torch.inf
    given["edge_bias"].requires_grad_(False)
    options = {"activation": activation, "dropout_p": 0.3, "scale": 0.5}
    check_sparse(**given, backend=name, **options, **EVERYTHING)


def test_a_node_with_most_edges(name: str) -> None:
    check_sparse(**on_gpu(operands, star(), (8,), 32, None), backend=name, **EVERYTHING)


def test_no_edge(name: str) -> None:
    edges = graph(5, 6, 0).to(GPU)
    check_sparse(**on_gpu(operands, edges, (2,), 8, 4), backend=name, **EVERYTHING)


def gradients(name: str, given: dict[str, Any]) -> list[Tensor]:
    tensors = [x for x in given.values() if isinstance(x, Tensor)]
    context = additive_attention_sparse(**given, backend=name)
    return [context, *torch.autograd.grad(context.square().sum(), tensors)]


def test_the_same_bits_in_every_run(name: str) -> None:
    given = on_gpu(operands, large(), (8,), 32, 32)
    assert all(map(torch.equal, gradients(name, given), gradients(name, given)))


def test_cuda_graphs(name: str) -> None:
    """Nothing is read from the device: a replay works on other numbers and other edges."""
    edges, others = large(), graph(3000, 2000, 200_000, seed=1).to(GPU)
    given = on_gpu(operands, edges, (8,), 32, 32)
    replayed, found = captured(lambda: gradients(name, given))
    with torch.no_grad():
        for x, new in zip(edges, others, strict=True):
            x.copy_(new)
        given["query"].mul_(-0.5)
    replayed.replay()
    assert all(map(torch.equal, found, gradients(name, given)))
