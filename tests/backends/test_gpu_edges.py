"""Attention over edges on a GPU, where emulator and interpreter cannot stand in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backends.test_gpu_runtime import captured, same
from helpers.edges import check_sparse, graph, operands
from helpers.gpu import EVERYTHING, GPU, MARKS, on_gpu
from helpers.inputs import ACTIVATIONS, BF16, F16, F32
from torch import Tensor

from attnkernels import Edges, additive_attention_sparse, prepare_edges

pytestmark = MARKS


def on_edges(edges: Edges, *arguments: Any, **options: Any) -> dict[str, Any]:
    return on_gpu(operands, edges.to(GPU), *arguments, **options)


def gradients(name: str, given: dict[str, Any], **options: Any) -> list[Tensor]:
    """Return outputs and gradients of one call whose values are its keys."""
    args = given["query"], given["key"], given["key"], given["weight"], given["edges"]
    outputs = additive_attention_sparse(*args, backend=name, **EVERYTHING, **options)
    loss = outputs[0].float().square().sum() + outputs[1].float().square().sum()
    leaves = args[0], args[1], args[3]
    return [*outputs, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize(("d", "dv"), [(32, None), (136, 8), (7, 5), (264, 264)], ids=str)
def test_widths(name: str, d: int, dv: int | None, dtype: torch.dtype, activation: str) -> None:
    given = on_edges(graph(70, 60, 2000), (3,), d, dv, dtype)
    check_sparse(**given, backend=name, activation=activation, **EVERYTHING)


@pytest.mark.parametrize(("d", "dv"), [(32, None), (7, 5)], ids=str)
def test_everything_at_once(name: str, d: int, dv: int | None) -> None:
    for edges in (graph(5, 300, 9000), graph(300, 5, 9000), graph(9, 4, 0)):
        given = on_edges(edges, (2, 3), d, dv, edge_key=True, edge_bias=True)
        check_sparse(**given, backend=name, dropout_p=0.2, **EVERYTHING)


def test_the_same_bits_every_time(name: str) -> None:
    given = on_edges(graph(500, 400, 60_000), (8,), 32, None)
    first = gradients(name, given)
    assert all(same(first, gradients(name, given)) for _ in range(3))


def test_as_models_use_it(name: str) -> None:
    """Without deterministic algorithms, blocks add to one place in any order."""
    torch.use_deterministic_algorithms(False)
    given = on_edges(graph(500, 400, 60_000), (8,), 32, None)
    for _ in range(3):
        check_sparse(**given, backend=name, **EVERYTHING)


def test_cuda_graphs(name: str) -> None:
    """Edges are read on the device: a replay uses new numbers and new edges."""
    given = on_edges(graph(90, 80, 3000), (4,), 32, None)
    recorded, found = captured(lambda: gradients(name, given))
    with torch.no_grad():
        given["query"].mul_(-0.5)
        for x, other in zip(given["edges"], graph(90, 80, 3000, seed=1), strict=True):
            x.copy_(other)
    recorded.replay()
    assert same(found, gradients(name, given))


def test_memory_has_the_size_of_edges_and_heads(name: str) -> None:
    """Nothing of the size edges x heads x channels is made."""
    edges, heads, d = graph(3000, 3000, 400_000), 4, 64
    given = on_edges(edges, (heads,), d, None)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    context = additive_attention_sparse(
        given["query"], given["key"], given["key"], given["weight"], given["edges"], backend=name
    )
    context.sum().backward()
    used = torch.cuda.max_memory_allocated() - before
    assert used < edges.num_edges * heads * d * 4 / 2


def test_a_node_with_most_edges(name: str) -> None:
    """One node has every edge, as their target or their source."""
    many = torch.arange(100_000) % 500
    hub = torch.full_like(many, 3)
    ends = torch.cat([torch.stack([many, hub]), torch.stack([hub, many])], -1)
    given = on_edges(prepare_edges(ends, 500, 500), (8,), 32, None)
    check_sparse(**given, backend=name, **EVERYTHING)


def test_excluded_edges(name: str) -> None:
    given = on_edges(graph(3000, 2000, 200_000), (4,), 16, 8, edge_bias=True)
    with torch.no_grad():
        given["edge_bias"][:, ::5] = -torch.inf
    given["edge_bias"].requires_grad_(False)
    check_sparse(**given, backend=name, **EVERYTHING)
