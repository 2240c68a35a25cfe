"""Edges of a graph, sorted once for every layer and step that attends over them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.onnx import is_in_onnx_export

from ..backends import native
from . import checks

_LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


class Edges(NamedTuple):
    """Edges from sources (keys) to targets (queries), sorted by both ends.

    Made by `prepare_edges` or `from_pyg`. All tensors are int64 and on one device.

    Attributes:
        target_begin: (n + 1,). In the order by target, the edges of target i are target_begin[i] to
            target_begin[i + 1] (exclusive).
        source_begin: (m + 1,), as target_begin in the order by source.
        source: (E,), the sources in the order by target.
        order: (E,), the place of each of these edges among the edges as they were given.
        target: (E,), the targets in the order by source.
        place: (E,), the place of each of these edges in the order by target.
    """

    # source_begin before source: torch.export replaces names in its guards one by one.
    target_begin: Tensor
    source_begin: Tensor
    source: Tensor
    order: Tensor
    target: Tensor
    place: Tensor

    @property
    def n(self) -> int:
        """Return the number of targets, the rows of query."""
        return self.target_begin.shape[0] - 1

    @property
    def m(self) -> int:
        """Return the number of sources, the rows of key and value."""
        return self.source_begin.shape[0] - 1

    @property
    def num_edges(self) -> int:
        """Return E, the number of edges."""
        return self.source.shape[0]

    @property
    def device(self) -> torch.device:
        """Return the device of the tensors."""
        return self.source.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Edges:
        """Return these edges on another device."""
        return Edges(*(x.to(device, non_blocking=non_blocking) for x in self))

    def edge_index(self) -> Tensor:
        """Return the edges as they were given, (2, E): sources in the first row, then targets."""
        target = torch.empty_like(self.target).index_copy(0, self.place, self.target)
        ends = torch.stack([self.source, target])
        return torch.empty_like(ends).index_copy(1, self.order, ends)

    def __repr__(self) -> str:
        return f"Edges(n={self.n}, m={self.m}, num_edges={self.num_edges}, device='{self.device}')"

    @staticmethod
    def from_pyg(edge_index: Any, n: int | None = None, m: int | None = None) -> Edges:
        """Return the edges of a `torch_geometric.EdgeIndex`, with the orders that it has cached.

        Args:
            edge_index: sources in its first row. Its size is (m, n).
            n: number of targets; by default the size that edge_index knows.
            m: number of sources, likewise.

        Raises:
            TypeError: edge_index is not an EdgeIndex.
            ValueError: it does not know its size and n or m is missing, or n or m is another.
        """
        if not hasattr(edge_index, "sparse_size"):
            given = checks.type_name(edge_index)
            raise TypeError(f"edge_index must be a torch_geometric.EdgeIndex, got {given}")
        known = edge_index.sparse_size()
        m, n = (
            _known(name, given, size)
            for name, given, size in (("m", m, known[0]), ("n", n, known[1]))
        )
        plain = edge_index.as_tensor()
        if edge_index.is_sorted_by_col and known[1] is not None:  # or it would keep a guess of n
            check_ends(plain[0], plain[1], n, m)  # the cache is not checked
            (begin, source), _ = edge_index.get_csc()
            order = torch.arange(source.shape[0], device=source.device)
            return _by_both_ends(begin.long(), source.long(), order, plain, m)
        return prepare_edges(plain, n, m)


def prepare_edges(edges: Tensor, n: int | None = None, m: int | None = None) -> Edges:
    """Check and sort edges for `additive_attention_sparse`.

    The result serves any number of layers and steps over the same graph.

    Args:
        edges: one of

            - (2, E), int32 or int64: sources in the first row and targets in the second, as the
              ``edge_index`` of PyTorch Geometric;
            - a sparse tensor (n, m) in the layout COO, CSR or CSC, with a row per target and a
              column per source. Its edges are given in the order of its elements; their values do
              not matter.

            An edge that occurs twice counts twice.
        n: number of targets; by default that of the sparse tensor, or one more than the largest.
        m: number of sources, likewise. On a GPU, the default reads a value from the device.

    Returns:
        The edges, on the device of `edges`.

    Raises:
        TypeError: edges is not such a tensor, or n or m is not an int.
        ValueError: edges has the wrong shape, n or m is not that of the sparse tensor, or a target
            or source is out of range (checked on a CPU only).
    """
    checks.instance("edges", edges, Tensor, "a tensor")
    if edges.layout is torch.strided:
        checks.integers("edges", edges, "(2, E)", (2, None))
        source, target = edges[0].long(), edges[1].long()
        n, m = _size("n", n, target), _size("m", m, source)
    else:
        if edges.layout not in _LAYOUTS or edges.ndim != 2:
            raise TypeError(
                "edges must be (2, E) or a 2-D sparse tensor in the layout COO, CSR or CSC, got "
                f"{edges.layout} of shape {tuple(edges.shape)}"
            )
        n, m = _known("n", n, edges.shape[0]), _known("m", m, edges.shape[1])
        target, source = _indices(edges)
    check_ends(source, target, n, m)
    begin, order = _sorted(target, n)
    return _by_both_ends(begin, source[order], order, torch.stack([source, target]), m)


def check_ends(source: Tensor, target: Tensor, n: int, m: int) -> None:
    """Raise ValueError for ends that are no nodes; check on a CPU only."""
    _within("targets", target, n, "n")
    _within("sources", source, m, "m")


def _by_both_ends(begin: Tensor, source: Tensor, order: Tensor, given: Tensor, m: int) -> Edges:
    """Add the order by source to the one by target; `given` has both ends as they were given."""
    source_begin, place = _sorted(source, m)
    target = given[1].long()[order[place]]
    return Edges(begin, source_begin, source, order, target, place)


def _sorted(ends: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Return where the edges of each node begin, (nodes + 1,), and the stable order by node."""
    if is_in_onnx_export():  # it has no stable sort
        count = ends.shape[0]
        order = torch.sort(ends * count + torch.arange(count, device=ends.device)).indices
    elif native.sorts(ends):
        return native.sort_edges(ends.contiguous(), nodes)
    else:
        order = torch.sort(ends, stable=True).indices
    counts = torch.zeros(nodes + 1, dtype=torch.int64, device=ends.device)
    return counts.index_add(0, ends + 1, torch.ones_like(ends)).cumsum(0), order


def _indices(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and the columns of a sparse tensor."""
    if edges.layout is torch.sparse_coo:
        rows, columns = edges._indices()
        return rows.long(), columns.long()
    if edges.layout is torch.sparse_csr:
        return _expanded(edges.crow_indices(), edges.col_indices()), edges.col_indices().long()
    return edges.row_indices().long(), _expanded(edges.ccol_indices(), edges.row_indices())


def _expanded(begin: Tensor, like: Tensor) -> Tensor:
    """Return the row of every element of a compressed tensor."""
    rows = torch.arange(begin.shape[0] - 1, device=begin.device)
    return rows.repeat_interleave(begin.diff(), output_size=like.shape[0])


def _size(name: str, given: int | None, ends: Tensor) -> int:
    if given is None:
        return int(ends.max()) + 1 if ends.shape[0] else 0
    if not isinstance(given, torch.SymInt):
        given = checks.integer(name, given)
        if given >= 1 << 63:
            raise ValueError(f"{name} must be less than 2**63, got {given}")
    if given < 0:
        raise ValueError(f"{name} must be at least 0, got {given}")
    return given


def _known(name: str, given: int | None, size: int | None) -> int:
    """Return the size that is given or known; raise if there is none, or two."""
    if given is None:
        if size is None:
            raise ValueError(f"{name} must be given, since edges do not know it, got None")
        return size
    given = _size(name, given, torch.empty(0))
    if size is not None and size != given:
        raise ValueError(f"{name} must be the size that edges have, {size}, got {given}")
    return given


def _within(which: str, ends: Tensor, nodes: int, symbol: str) -> None:
    """Raise ValueError for ends that are no nodes, where reading them costs nothing."""
    if torch.compiler.is_compiling() or type(ends) is not Tensor or not ends.is_cpu:
        return
    if not ends.shape[0]:
        return
    try:
        low, high = (int(x) for x in ends.aminmax())
    except RuntimeError:  # recorded by make_fx
        return
    if low < 0 or high >= nodes:
        raise ValueError(
            f"the {which} of edges must lie in [0, {nodes - 1}] ({symbol} = {nodes}), got values "
            f"from {low} to {high}"
        )
