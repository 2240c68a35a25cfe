"""Edges of a graph, sorted once for every layer and step that attends over them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from . import checks


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges from keys (sources) to queries (targets), sorted by both ends; immutable.

    Made by `prepare_edges`. All tensors are int64, on one device.

    Attributes:
        n: number of targets, the rows of query.
        m: number of sources, the rows of key and value.
        target_begin: (n + 1,), the edges of target i are target_begin[i] to target_begin[i + 1]
            (exclusive) in the order by target.
        source: (E,), the sources in the order by target.
        order: (E,), the place of each of these edges among the edges as they were given.
        source_begin: (m + 1,), the same by source.
        target: (E,), the targets in the order by source.
        place: (E,), the place of each of these edges in the order by target.
    """

    n: int
    m: int
    target_begin: Tensor
    source: Tensor
    order: Tensor
    source_begin: Tensor
    target: Tensor
    place: Tensor

    @property
    def count(self) -> int:
        """E, the number of edges."""
        return self.source.shape[0]

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.source.device

    def to(self, device: torch.device | str) -> Edges:
        """Return these edges on another device."""
        moved = {
            each.name: x.to(device)
            for each in fields(self)
            if isinstance(x := getattr(self, each.name), Tensor)
        }
        return replace(self, **moved)

    @staticmethod
    def from_pyg(edge_index: Any) -> Edges:
        """Return the edges of a `torch_geometric.EdgeIndex`, with the orders that it has cached.

        Its first row has the sources. Its `sparse_size()` must be known.

        Raises:
            TypeError: edge_index is not an EdgeIndex.
            ValueError: it does not know its number of sources and targets.
        """
        if not hasattr(edge_index, "sparse_size"):
            raise TypeError(
                f"edge_index must be a torch_geometric.EdgeIndex, got {type(edge_index).__name__}"
            )
        m, n = edge_index.sparse_size()
        if m is None or n is None:
            raise ValueError(f"edge_index must know its sparse_size(), got {(m, n)}")
        if edge_index.is_sorted_by_col:
            (begin, source), order = edge_index.get_csc()
            return _by_both_ends(begin, source, order, n, m)
        return prepare_edges(edge_index.as_tensor(), n, m)


def prepare_edges(edges: Tensor, n: int | None = None, m: int | None = None) -> Edges:
    """Check and sort edges for `additive_attention_sparse`.

    Args:
        edges: one of

            - (2, E), int32 or int64: sources in the first row, targets in the second, as the
              ``edge_index`` of PyTorch Geometric;
            - a sparse tensor (n, m) with a row per target and a column per source, in the layout
              COO, CSR or CSC. Its values count for nothing.

            An edge that occurs twice counts twice.
        n: number of targets; by default that of the sparse tensor, or one more than the largest.
        m: number of sources, likewise.

    Returns:
        The edges, on the device of `edges`.

    Raises:
        TypeError: edges is not such a tensor, or n or m is not an int.
        ValueError: edges has the wrong shape, or a target or source is out of range.
    """
    checks.instance("edges", edges, Tensor, "a tensor")
    if edges.layout is torch.strided:
        checks.integers("edges", edges, "(2, E)", (2, None))
        source, target = edges[0].long(), edges[1].long()
    else:
        checks_layout = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)
        if edges.layout not in checks_layout or edges.ndim != 2:
            raise TypeError(
                "edges must be (2, E) or a 2-D sparse tensor in the layout COO, CSR or CSC, got "
                f"{edges.layout} of shape {tuple(edges.shape)}"
            )
        target, source = _indices(edges)
        n, m = edges.shape[0] if n is None else n, edges.shape[1] if m is None else m
    n, m = _size("n", n, target), _size("m", m, source)
    checks.within("the targets of edges", target, 0, n - 1, f"n = {n}")
    checks.within("the sources of edges", source, 0, m - 1, f"m = {m}")
    _, order = torch.sort(target, stable=True)
    return _by_both_ends(_begin(target, n), source[order], order, n, m)


def _indices(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and the columns of a sparse tensor."""
    if edges.layout is torch.sparse_coo:
        rows, columns = edges._indices()
        return rows.long(), columns.long()
    if edges.layout is torch.sparse_csr:
        return _expanded(edges.crow_indices()), edges.col_indices().long()
    return edges.row_indices().long(), _expanded(edges.ccol_indices())


def _expanded(begin: Tensor) -> Tensor:
    """Return the row of every element of a compressed tensor."""
    return torch.arange(begin.shape[0] - 1, device=begin.device).repeat_interleave(begin.diff())


def _size(name: str, given: int | None, ends: Tensor) -> int:
    if given is None:
        return int(ends.max()) + 1 if ends.numel() else 0
    if isinstance(given, bool) or not isinstance(given, (int, torch.SymInt)) or given < 0:
        raise TypeError(f"{name} must be an int of at least 0, got {given!r}")
    return given


def _begin(ends: Tensor, nodes: int) -> Tensor:
    """Return where the edges of each node begin, (nodes + 1,), in the order by node."""
    counts = torch.zeros(nodes + 1, dtype=torch.int64, device=ends.device)
    return counts.index_add_(0, ends + 1, torch.ones_like(ends)).cumsum(0)


def _by_both_ends(begin: Tensor, source: Tensor, order: Tensor, n: int, m: int) -> Edges:
    """Add the order by source to the one by target."""
    _, place = torch.sort(source, stable=True)
    target = _expanded(begin)[place]
    return Edges(n, m, begin.long(), source, order, _begin(source, m), target, place)
