"""Edges: sorted by both ends, from every form that they come in, and checked."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from attnkernels import Edges, prepare_edges

SOURCE, TARGET = torch.tensor([4, 0, 1, 0, 4, 2, 4]), torch.tensor([1, 0, 1, 3, 1, 0, 0])
INDEX, N, M = torch.stack([SOURCE, TARGET]), 5, 6


def check(edges: Edges, source: Tensor, target: Tensor, n: int, m: int) -> None:
    """Assert that `edges` are these, in this order, sorted by both ends."""
    assert (edges.n, edges.m, edges.num_edges) == (n, m, len(source))
    assert all(x.dtype == torch.int64 and x.is_contiguous() for x in edges)
    by_target = target[edges.order]
    assert (by_target.diff() >= 0).all()
    assert torch.equal(edges.source, source[edges.order])
    assert torch.equal(edges.target_begin.diff(), torch.bincount(target, minlength=n))
    assert torch.equal(edges.source_begin.diff(), torch.bincount(source, minlength=m))
    assert (edges.source[edges.place].diff() >= 0).all()
    assert torch.equal(edges.target, by_target[edges.place])
    assert torch.equal(edges.edge_index(), torch.stack([source, target]))
    for name in ("order", "place"):  # permutations
        assert torch.equal(getattr(edges, name).sort().values, torch.arange(len(source)))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_of_an_edge_index(dtype: torch.dtype) -> None:
    check(prepare_edges(INDEX.to(dtype), N, M), SOURCE, TARGET, N, M)
    check(prepare_edges(INDEX.to(dtype)), SOURCE, TARGET, 4, 5)
    check(prepare_edges(INDEX.t().contiguous().t(), N, M), SOURCE, TARGET, N, M)


@pytest.mark.parametrize("count", [0, 1, 1000, 300_000])
@pytest.mark.parametrize("threads", [1, 3])
def test_sorting_is_stable(count: int, threads: int) -> None:
    torch.set_num_threads(threads)
    ends = torch.randint(0, 50, (2, count))
    edges = prepare_edges(ends, 50, 60)
    check(edges, *ends, 50, 60)
    order = torch.sort(ends[1], stable=True).indices
    assert torch.equal(edges.order, order)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_of_a_sparse_tensor(layout: torch.layout) -> None:
    """A row per target, a column per source, in the order of the elements."""
    matrix = torch.zeros(N, M)
    matrix[TARGET, SOURCE] = 1.0
    sparse = matrix.to_sparse(layout=layout)
    coo = sparse.to_sparse_coo()
    target, source = (
        coo.indices() if layout != torch.sparse_csc else matrix.t().nonzero().t()[[1, 0]]
    )
    check(prepare_edges(sparse), source, target, N, M)
    check(prepare_edges(sparse, N, M), source, target, N, M)


def test_of_a_sparse_tensor_with_elements_that_repeat() -> None:
    coo = torch.sparse_coo_tensor(torch.stack([TARGET, SOURCE]), torch.ones(7), (N, M))
    check(prepare_edges(coo), SOURCE, TARGET, N, M)


def test_moves_copies_and_pickles() -> None:
    edges = prepare_edges(INDEX, N, M)
    for other in (copy.deepcopy(edges), pickle.loads(pickle.dumps(edges)), edges.to("cpu")):
        assert type(other) is Edges
        check(other, SOURCE, TARGET, N, M)
    assert edges.to("meta").device.type == "meta"
    assert repr(edges) == "Edges(n=5, m=6, num_edges=7, device='cpu')"


def test_saves_with_weights_only(tmp_path: Any) -> None:
    path = tmp_path / "edges.pt"
    torch.save(prepare_edges(INDEX, N, M)._asdict(), path)
    check(Edges(**torch.load(path)), SOURCE, TARGET, N, M)


def test_without_values_on_a_device() -> None:
    """Neither the range nor a size is read where the tensors have no values."""
    edges = prepare_edges(INDEX.to("meta"), N, M)
    assert (edges.n, edges.m, edges.num_edges) == (N, M, 7)


BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ([[0], [1]], {}, TypeError, "edges must be a tensor, got list"),
    (INDEX.float(), {}, TypeError, "edges must be int32 or int64"),
    (INDEX[0], {}, ValueError, "edges must have shape (2, E)"),
    (INDEX.t(), {}, ValueError, "edges must have shape (2, E)"),
    (INDEX, {"n": 3}, ValueError, "targets of edges must lie in [0, 2] (n = 3), got values from"),
    (INDEX, {"m": 4}, ValueError, "sources of edges must lie in [0, 3]"),
    (INDEX - 1, {"n": 5, "m": 6}, ValueError, "got values from -1"),
    (INDEX, {"n": 2.0}, TypeError, "n must be an int"),
    (INDEX, {"m": True}, TypeError, "m must be an int"),
    (INDEX, {"n": -1}, ValueError, "n must be at least 0, got -1"),
    (INDEX, {"n": 2**63}, ValueError, "n must be less than"),
    (torch.eye(3).to_sparse(), {"n": 4}, ValueError, "n must be the size that edges have, 3"),
    (torch.eye(4).to_sparse_bsr((2, 2)), {}, TypeError, "COO, CSR or CSC"),
    (torch.ones(2, 2, 2).to_sparse(), {}, TypeError, "edges must be (2, E) or a 2-D"),
]  # fmt: skip


@pytest.mark.parametrize(("edges", "sizes", "error", "message"), BAD, ids=lambda x: str(x)[:40])
def test_bad_input(edges: Any, sizes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        prepare_edges(edges, **sizes)
    assert message in str(caught.value)


def test_bad_orders_are_refused_by_the_kernels() -> None:
    """Edges made by hand cannot lead out of the operands."""
    edges = prepare_edges(INDEX, N, M)
    query, key, weight = torch.randn(N, 4), torch.randn(M, 4), torch.randn(4)
    rest = {"seed": None, "dropout_p": 0.0, "activation": 0, "negative_slope": 0.2, "scale": 1.0}

    def forward(bad: Edges) -> Any:
        inputs = query, key, None, weight, None, None
        options = {**bad._asdict(), **rest, "return_weights": False}
        return torch.ops.attnkernels.native_sparse_forward(*inputs, **options)

    for name in ("source", "order"):
        bad = edges._replace(**{name: getattr(edges, name) + 100})
        with pytest.raises(RuntimeError, match=f"{name} must lie in"):
            forward(bad)
    bad = edges._replace(target_begin=edges.target_begin.flip(0))
    with pytest.raises(RuntimeError, match="target_begin must rise"):
        forward(bad)
    with pytest.raises(RuntimeError, match="ends must lie in"):
        torch.ops.attnkernels.native_sort_edges(torch.tensor([0, 7]), 3)
