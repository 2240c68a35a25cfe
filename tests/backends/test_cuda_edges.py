"""The CUDA kernels over edges where they differ from others: cut rows, widths, addresses, heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.edges import check_sparse, graph, operands
from helpers.inputs import BF16, F16, F32
from torch import Tensor

from attnkernels import Edges, additive_attention_sparse, prepare_edges
from attnkernels.backends import native

EMULATED = native.build_info().get("instruction set") == "emulated CUDA"
CSRC = Path(__file__).resolve().parents[2] / "csrc/cuda"
SHARE = 64  # kLeastShare of csrc/cuda/edge_team.h
EVERYTHING: dict[str, Any] = {"return_weights": True, "return_lse": True, "scale": 0.7}
ALONE = ("native",)

pytestmark = [
    pytest.mark.parametrize("backend", ALONE),
    pytest.mark.skipif(not EMULATED, reason="the emulator runs these kernels"),
]


def with_degrees(degrees: list[int], sources: int, seed: int = 0) -> Edges:
    """Return a graph whose targets have these numbers of edges, in a shuffled order."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(len(degrees)).repeat_interleave(torch.tensor(degrees))
    target = target[torch.randperm(len(target), generator=generator)]
    source = torch.randint(0, sources, target.shape, generator=generator)
    return prepare_edges(torch.stack([source, target]), len(degrees), sources)


def flipped(edges: Edges) -> Edges:
    return prepare_edges(edges.edge_index().flip(0), edges.m, edges.n)


@pytest.mark.parametrize(
    "degrees",
    [
        [SHARE - 1, SHARE, SHARE + 1],
        [0, 2 * SHARE - 1, 0, 0, 2 * SHARE, 3, 2 * SHARE + 1, 0],
        [SHARE - 2, 0, 0, SHARE, SHARE, SHARE, 0],
        [1] * (SHARE // 2 - 1) + [SHARE] + [1] * 5 + [5 * SHARE + 3, 7, 2 * SHARE],
        [0] * (SHARE + 1) + [4] * 3 + [0] * (2 * SHARE),
        [9 * SHARE],
    ],
    ids=["around a share", "among empty", "at seams", "at odd places", "empty shares", "alone"],
)
@pytest.mark.parametrize(("d", "dv"), [(8, None), (5, 3)], ids=["wide", "loose"])
def test_rows_that_are_cut(backend: str, degrees: list[int], d: int, dv: int | None) -> None:
    edges = with_degrees(degrees, 11)
    for each in (edges, flipped(edges)):
        given = operands(each, (2,), d, dv, edge_bias=True)
        check_sparse(**given, backend=backend, dropout_p=0.2, **EVERYTHING)


@pytest.mark.parametrize("seed", range(8))
def test_random_degrees(backend: str, seed: int) -> None:
    """Degrees as power laws have them, so that rows are cut at any place of a share."""
    generator = torch.Generator().manual_seed(seed)
    degrees = torch.rand(30, generator=generator).pow(-1.2).sub(1).clamp(max=300).int().tolist()
    edges = with_degrees(degrees, 13, seed)
    for each in (edges, flipped(edges)):
        check_sparse(**operands(each, (), 4, None), backend=backend, **EVERYTHING)


@pytest.mark.parametrize(
    ("dtype", "d", "dv"),
    [
        (F32, 4, 16),
        (F32, 20, None),
        (F32, 128, 4),
        (F32, 132, None),
        (F32, 256, 252),
        (F32, 260, None),
        (F32, 516, 6),
        (BF16, 8, 40),
        (BF16, 256, None),
        (BF16, 264, None),
        (F16, 72, None),
        (F16, 12, 20),
        (F16, 256, 248),
    ],
    ids=str,
)
def test_widths(backend: str, dtype: torch.dtype, d: int, dv: int | None) -> None:
    """Every number of lanes and of loads that a row takes, and what is past the last of them."""
    given = operands(graph(5, 6, 90), (3,), d, dv, dtype)
    check_sparse(**given, backend=backend, **EVERYTHING)
    given = operands(graph(5, 6, 90), (3,), d, dv, dtype, edge_key=True)
    check_sparse(**given, backend=backend, activation="tanh", **EVERYTHING)


def _later(x: Tensor) -> Tensor:
    """Return x in memory that begins one element later than that of torch."""
    moved = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)
    return moved.copy_(x.detach()).requires_grad_()


def _padded(x: Tensor) -> Tensor:
    """Return x with rows that are three elements apart."""
    padded = torch.empty(*x.shape[:-1], x.shape[-1] + 3, dtype=x.dtype)[..., : x.shape[-1]]
    return padded.copy_(x.detach()).requires_grad_()


@pytest.mark.parametrize("moved", ["query", "key", "value", "edge_key"])
@pytest.mark.parametrize("lay", [_later, _padded], ids=["address", "stride"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_rows_that_are_not_aligned(backend: str, moved: str, lay: Any, dtype: torch.dtype) -> None:
    given = operands(graph(5, 6, 90), (2,), 16, 8, dtype, edge_key=True)
    given[moved] = lay(given[moved])
    check_sparse(**given, backend=backend, **EVERYTHING)


def test_a_gradient_of_the_context_that_is_not_aligned(backend: str) -> None:
    given = operands(graph(5, 6, 90), (), 8, None)
    edges, key = given["edges"], given["key"]
    inputs = given["query"], key, given["weight"]

    def gradients(grad: Tensor) -> tuple[Tensor, ...]:
        args = inputs[0], key, key, inputs[2], edges
        context = additive_attention_sparse(*args, backend=backend)
        return torch.autograd.grad(context, inputs, grad)

    grad = torch.randn(5, 8)
    for found, expected in zip(gradients(_later(grad)), gradients(grad), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("lead", [(70,), (3, 5, 2), (1, 33, 1), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("d", [8, 3])
def test_many_heads(backend: str, lead: tuple[int, ...], d: int) -> None:
    """More heads than a warp has teams, and numbers of them that no warp divides."""
    given = operands(graph(4, 5, 80), lead, d, None)
    check_sparse(**given, backend=backend, **EVERYTHING)


def test_leading_dimensions_that_do_not_merge(backend: str) -> None:
    given = operands(graph(4, 5, 80), (2, 3, 2), 8, 4, edge_key=True)
    for name in ("query", "edge_key"):
        x = given[name].detach()
        given[name] = x.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    check_sparse(**given, backend=backend, **EVERYTHING)


@pytest.mark.parametrize("d", [8, 5])
def test_without_edges(backend: str, d: int) -> None:
    edges = prepare_edges(torch.empty(2, 0, dtype=torch.long), 3, 200)
    given = operands(edges, (2,), d, None)
    key = given["key"]
    context = additive_attention_sparse(
        given["query"], key, key, given["weight"], edges, backend=backend
    )
    context.sum().backward()
    assert (context == 0).all()
    for name in ("query", "key", "weight"):
        assert (given[name].grad == 0).all(), name


def test_no_sum_is_atomic(backend: str) -> None:
    """A fixed order of every sum makes results the same in every run."""
    sources = sorted(CSRC.glob("edge_*"))
    assert len(sources) >= 6
    assert not [path.name for path in sources if "atomic" in path.read_text(encoding="utf-8")]
