"""Attention of layers over a graph: sorted, or a mask if the graph is dense, and once if it stays.

A layer is given its edges at every call, mostly the same. On a CPU the last few graphs are kept
while their tensors live, and are used again after a comparison of all edges.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..ops.codes import OVER_EDGES
from .attention import additive_attention
from .edges import Edges, check_ends, prepare_edges
from .sparse import additive_attention_sparse

# Measured with two threads, 1 x 16, 8 x 8 and 8 x 32, 30 to 2,048 nodes: over all pairs takes half
# the time at one edge in two pairs, the same at one in four, twice the time at one in eight.
SPARSEST = 4  # pairs per edge for which all pairs are computed

_MOST = 8  # graphs kept


def is_dense(count: int, n: int, m: int) -> bool:
    """Return True if at least one pair of nodes in `SPARSEST` is an edge, by the sizes.

    What is exported serves all sizes: return True only if all of them are dense.
    """
    if torch.compiler.is_exporting():
        from torch.fx.experimental.symbolic_shapes import statically_known_true  # takes 0.6 s

        return statically_known_true(count * SPARSEST > n * m)
    return count * SPARSEST > n * m


class Graph:
    """Edges between m sources and n targets, prepared when they are first needed.

    Attributes:
        n: number of targets.
        m: number of sources.
        dense: `is_dense`.
        single: True if no edge is known to occur twice, False if one may.
    """

    def __init__(self, source: Tensor, target: Tensor, n: int, m: int, *, dense: bool) -> None:
        self.n, self.m, self.dense, self.single = n, m, dense, False
        self._ends = source.detach(), target.detach()  # a view would keep its base alive
        self._edges: Edges | None = None
        self._masks: dict[torch.dtype, Tensor | None] = {}
        self._readable = _is_readable(source)
        if self._readable:
            check_ends(source, target, n, m)
            if dense:
                self._masks[torch.float32] = self._made(torch.float32)

    @classmethod
    def sorted(cls, edges: Edges) -> Graph:
        """Return a graph that is sorted already."""
        graph: Graph = cls.__new__(cls)
        graph.n, graph.m, graph.dense, graph.single = edges.n, edges.m, False, False
        graph._edges = edges
        return graph

    @property
    def edges(self) -> Edges:
        """Return the edges, sorted."""
        if self._edges is None:
            self._edges = prepare_edges(torch.stack(self._ends), self.n, self.m)
        return self._edges

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to the score of each pair, (n, m); None for nothing.

        It is the logarithm of the number of the pair's edges.
        """
        if dtype not in self._masks:
            self._masks[dtype] = self._made(dtype)
        return self._masks[dtype]

    def _made(self, dtype: torch.dtype) -> Tensor | None:
        source, target = self._ends
        # A source that is no node must not become another pair: the scatter refuses -1.
        there = (source >= 0) & (source < self.m)
        pair = torch.where(there, target * self.m + source, -1)
        counts = torch.zeros(self.n * self.m, dtype=dtype, device=source.device)
        counts = counts.scatter_add(0, pair, torch.ones_like(source, dtype=dtype))
        if self._readable:
            low, high = counts.aminmax()
            self.single = bool(high <= 1)
            if self.single and low == 1:
                return None
        return counts.log().view(self.n, self.m)


def attend(
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    graph: Graph,
    *,
    edge_key: Tensor | None = None,
    dropout_p: float = 0.0,
    negative_slope: float = 0.2,
    return_weights: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return contexts (..., n, d), and weights (..., E) or None; the keys are the values.

    Tensors of several dtypes are promoted, as by ``+``. Autocast changes nothing.
    """
    kind = key.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return attend(
                query, key, weight, graph, edge_key=edge_key, dropout_p=dropout_p,
                negative_slope=negative_slope, return_weights=return_weights, backend=backend,
            )  # fmt: skip
    dtype = key.dtype
    for x in (query, weight, edge_key):
        if x is not None and x.dtype != dtype:
            dtype = torch.promote_types(dtype, x.dtype)
    options: dict[str, Any] = {
        "dropout_p": dropout_p,
        "activation": OVER_EDGES,
        "negative_slope": negative_slope,
        "backend": backend,
    }
    # Dropout takes edges one by one, not pairs.
    if graph.dense and edge_key is None and not return_weights and (graph.single or not dropout_p):
        # The logarithm of a count must not be rounded to half precision.
        wide = dtype if dtype is torch.float64 else torch.float32
        query, key, weight = query.to(wide), key.to(wide), weight.to(wide)
        context = additive_attention(query, key, key, weight, attn_mask=graph.mask(wide), **options)
        return context.to(dtype), None
    query, key, weight = query.to(dtype), key.to(dtype), weight.to(dtype)
    edge_key = None if edge_key is None else edge_key.to(dtype)
    result: Any = additive_attention_sparse(
        query, key, key, weight, graph.edges, edge_key=edge_key, return_weights=return_weights,
        **options,
    )  # fmt: skip
    return result if return_weights else (result, None)


class _Kept(NamedTuple):
    """A graph, with the tensor it was made of and a copy of that tensor's values."""

    of: ref[Tensor]
    values: Tensor
    graph: Graph


_kept: dict[tuple[object, ...], _Kept] = {}
_lock = threading.Lock()


def kept(given: Tensor, how: tuple[object, ...], make: Callable[[], Graph]) -> Graph:
    """Return ``make()``, or what it returned before for the same tensor with the same values.

    Args:
        given: the tensor of edges that the caller was given; it may be a subclass.
        how: what else the graph depends on.
        make: makes the graph, without a reference to ``given``.
    """
    values = given if type(given) is Tensor else getattr(given, "_data", None)
    if values is None or not _is_readable(values):
        return make()
    # What inference mode makes cannot be saved for a backward pass.
    name = (id(given), torch.is_inference_mode_enabled(), *how)
    found = _kept.get(name)
    if found is not None and found.of() is given and torch.equal(found.values, values):
        return found.graph
    graph = make()

    def forget(dead: ref[Tensor], graphs: dict[tuple[object, ...], _Kept] = _kept) -> None:
        found = graphs.get(name)
        if found is not None and found.of is dead:
            graphs.pop(name, None)

    with _lock:
        _kept.pop(name, None)
        while len(_kept) >= _MOST:
            _kept.pop(next(iter(_kept)), None)
        _kept[name] = _Kept(ref(given, forget), values.clone(), graph)
    return graph


def _is_readable(x: Tensor) -> bool:
    """Return True if values can be read without waiting for a device or breaking a trace."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.is_cpu
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and _get_current_dispatch_mode() is None
    )
