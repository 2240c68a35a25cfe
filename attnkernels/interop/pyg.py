"""PyTorch Geometric's GATv2Conv: additive attention with LeakyReLU over the edges of a graph.

    alpha_ij = softmax_j(att . LeakyReLU(lin_r x_i + lin_l x_j + lin_edge e_ij))
    x'_i = sum_j alpha_ij lin_l x_j

(Brody et al., 2105.14491, equation 7.) PyG's message passing writes several tensors of [edges,
heads, channels]; the operator writes none, except for the projected features of edges if there are
any. Self-loops and their features are made by PyG's own functions.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from ..functional.edges import Edges, prepare_edges
from ..functional.graphs import Graph, attend, is_dense, kept
from ..nn import AdditiveAttention, GraphAttention
from .core.convention import ROW, Convention, Entry
from .core.live import Draw, Fused, Live, Results

# The values are `lin_l` of the sources, which the caller makes and passes as `value`.
CONVENTIONS = {
    "pyg-gatv2": Convention(
        "PyTorch Geometric, GATv2Conv",
        AdditiveAttention,
        (
            Entry("query_proj.weight", ("lin_r.weight",)),
            Entry("query_proj.bias", ("lin_r.bias",), optional=True),
            Entry("query_proj.bias", ("lin_l.bias",), optional=True),
            Entry("key_proj.weight", ("lin_l.weight",)),
            Entry("weight", ("att",), ROW),
        ),
        {"activation": "leaky_relu", "normalize": False, "scale": 1.0},
        heads=True,
        left={
            "bias": "is added to the contexts, after attention",
            "res.": "projects what is added to the contexts, after attention",
        },
    ),
    "pyg-gatv2-layer": Convention(
        "PyTorch Geometric, GATv2Conv as a whole",
        GraphAttention,
        (
            Entry("query_proj.weight", ("lin_r.weight",)),
            Entry("query_proj.bias", ("lin_r.bias",), optional=True),
            Entry("key_proj.weight", ("lin_l.weight",)),
            Entry("key_proj.bias", ("lin_l.bias",), optional=True),
            Entry("weight", ("att",), ROW),
            Entry("edge_proj.weight", ("lin_edge.weight",), optional=True),
            Entry("residual_proj.weight", ("res.weight",), optional=True),
            Entry("bias", ("bias",), optional=True),
        ),
    ),
}


_STEPS = ("edge_update", "message", "aggregate", "update")
_HOOKS = tuple(
    f"_{name}_forward_{kind}"
    for name in ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
    for kind in ("pre_hooks", "hooks")
)


class GatV2(Fused):
    """GATv2Conv: node features, with the edges and their weights if they are asked for."""

    def forward(
        self,
        x: Any,
        edge_index: Any,
        edge_attr: Any = None,
        return_attention_weights: bool | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        sources, targets = (x, x) if isinstance(x, Tensor) else _two(x)
        wanted = _wants_weights(return_attention_weights)
        dropout = self.dropout if self.training else 0.0
        call = None
        if not (_is_watched(self) or (wanted and dropout and _returns_undropped(self))):
            call = _graph(self, sources, targets, edge_index, edge_attr, wanted)
        if call is None:
            return super().forward(x, edge_index, edge_attr, return_attention_weights)
        graph, edge_index, edge_attr = call
        shape = -1, self.heads, self.out_channels
        key = self.lin_l(sources).view(shape)
        shared = self.share_weights and sources is targets
        query = key if shared else self.lin_r(targets).view(shape)
        edge_key = None
        if edge_attr is not None:
            edge_attr = edge_attr.view(-1, 1) if edge_attr.dim() == 1 else edge_attr
            edge_key = self.lin_edge(edge_attr).view(shape).transpose(0, 1)
        context, weights = attend(
            query.transpose(0, 1),
            key.transpose(0, 1),
            self.att[0],
            graph,
            edge_key=edge_key,
            dropout_p=dropout,
            negative_slope=self.negative_slope,
            return_weights=wanted,
        )
        context = context.transpose(0, 1)
        out = context.flatten(1) if self.concat else context.mean(1)
        residual = getattr(self, "res", None)  # since 2.6
        if residual is not None:
            out = out + residual(targets)
        if self.bias is not None:
            out = out + self.bias
        if weights is None:
            return out
        weights = weights.t()
        if edge_index.layout is not torch.strided:
            edge_index = _library("utils.sparse").set_sparse_value(edge_index, weights)
        return out, (edge_index, weights)


Call = tuple[Graph, Any, Any]


def _graph(
    module: Any, sources: Any, targets: Any, edge_index: Any, edge_attr: Any, wanted: bool
) -> Call | None:
    """Return the graph, and the edges and their features with loops if they are needed.

    Return None for a call that PyG refuses, in its own words, or gives another meaning.
    """
    if not (
        isinstance(sources, Tensor)
        and isinstance(targets, Tensor)
        and isinstance(edge_index, Tensor)
        and sources.dim() == targets.dim() == edge_index.dim() == 2
    ):
        return None
    m, n, forwards = sources.shape[0], targets.shape[0], module.flow == "source_to_target"
    if not forwards and (sources is not targets or module.decomposed_layers > 1):
        return None  # PyG exchanges the two kinds of nodes in part
    if edge_index.layout is not torch.strided:
        return _of_sparse(module, edge_index, edge_attr, n, m) if forwards else None
    if edge_index.shape[0] != 2 or edge_index.dtype not in (torch.int64, torch.int32):
        return None
    if not _has_features(module, edge_attr, edge_index.shape[1]):
        return None
    sizes = getattr(edge_index, "sparse_size", None)  # of an EdgeIndex
    if sizes is not None and any(a not in (None, b) for a, b in zip(sizes(), (m, n), strict=True)):
        return None
    given, loops = edge_index, module.add_self_loops
    made: list[tuple[Any, Any]] = []

    def with_loops() -> tuple[Any, Any]:
        if not made:
            made.append(
                _with_loops(module, given, edge_attr, min(n, m)) if loops else (given, edge_attr)
            )
        return made[0]

    dense = is_dense(given.shape[1], n, m)

    def make() -> Graph:
        edges = with_loops()[0]
        if sizes is not None:
            if forwards and not loops and not dense and edges.is_sorted_by_col:
                return Graph.sorted(Edges.from_pyg(edges, n, m))
            edges = edges.as_tensor()
        source, target = edges if forwards else edges.flip(0)
        return Graph(source.long(), target.long(), n, m, dense=dense)

    try:
        graph = kept(given, (n, m, loops, forwards), make)
    except ValueError:  # an end of an edge is no node
        return None
    return (graph, *with_loops()) if wanted or edge_attr is not None else (graph, None, None)


def _of_sparse(module: Any, adjacency: Tensor, edge_attr: Any, n: int, m: int) -> Call | None:
    """Return `_graph` of a sparse tensor (targets, sources)."""
    if adjacency.layout not in (torch.sparse_coo, torch.sparse_csr) or adjacency.shape != (n, m):
        return None
    if module.add_self_loops:
        if edge_attr is not None:
            return None
        adjacency, _ = _with_loops(module, adjacency, None, min(n, m))
    if adjacency.layout is torch.sparse_coo and not adjacency.is_coalesced():
        return None
    if not _has_features(module, edge_attr, adjacency._nnz()):
        return None
    return Graph.sorted(prepare_edges(adjacency, n, m)), adjacency, edge_attr


def _has_features(module: Any, edge_attr: Any, count: int) -> bool:
    """Return True if there are no features of edges, or a row for each edge and its layer."""
    if edge_attr is None:
        return True
    rows = isinstance(edge_attr, Tensor) and edge_attr.dim() in (1, 2)
    return rows and edge_attr.shape[0] == count and module.lin_edge is not None


def _with_loops(module: Any, edges: Any, features: Any, nodes: int) -> tuple[Any, Any]:
    """Return edges and their features with one loop for each node, as PyG makes them."""
    library = _library("utils")
    edges, features = library.remove_self_loops(edges, features)
    return library.add_self_loops(edges, features, fill_value=module.fill_value, num_nodes=nodes)


def _two(x: Any) -> tuple[Any, Any]:
    return (x[0], x[1]) if isinstance(x, (tuple, list)) and len(x) == 2 else (None, None)


def _library(name: str) -> Any:
    return sys.modules[f"torch_geometric.{name}"]


def _wants_weights(asked: bool | None) -> bool:
    """Return True if the release at hand returns weights: before 2.8, False asked for them."""
    return bool(asked) if asked is not False else _release() < (2, 8)


def _release() -> tuple[int, ...]:
    version = sys.modules["torch_geometric"].__version__
    return tuple(int(x) for x in version.split(".")[:2])


def _returns_undropped(module: Any) -> bool:
    """Return True for a release that returns the weights as they were before dropout."""
    return "_alpha" in module.__dict__


def _is_watched(module: Any) -> bool:
    """Return True if an explanation or a hook looks into message passing."""
    return (
        bool(module.explain)
        or any(getattr(module, name, None) for name in _HOOKS)
        or any(name in module.__dict__ for name in _STEPS)
    )


def _trial(module: Any, draw: Draw) -> Results:
    module.dropout = 0.0  # the two classes would drop different weights
    x: Any = draw(4, module.lin_l.weight.shape[1])
    if isinstance(module.in_channels, tuple):
        x = x, draw(4, module.lin_r.weight.shape[1])
    results: list[Any] = []
    for given in (*range(15),), (1, 6, 6, 12):  # all but one of the 16; few, one of them twice
        pairs = torch.tensor(given, device=module.att.device)
        edges, features = torch.stack([pairs // 4, pairs % 4]), None
        if module.lin_edge is not None:
            features = draw(len(given), module.lin_edge.weight.shape[1])
        results += [module.forward(x, edges, features), module.forward(x, edges, features, True)]
    return results


def _why_not(module: Any) -> str | None:
    if module.aggr not in ("add", "sum"):
        return f"aggr is {module.aggr!r}: attention adds"
    if module.flow != "source_to_target" and _release() < (2, 5):
        return f"flow is {module.flow!r}: this release exchanges lin_l and lin_r then"
    if any(isinstance(x, torch.nn.UninitializedParameter) for x in module.parameters()):
        return "it has no sizes yet: call it once before"
    return None


_ARGUMENTS = ("x", "edge_index", "edge_attr", "return_attention_weights")
LIVE = (Live("pyg-gatv2", ("GATv2Conv",), _ARGUMENTS, GatV2, _trial, _why_not),)
