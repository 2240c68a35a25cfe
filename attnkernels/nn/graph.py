"""Attention over the edges of a graph, with its projections: GATv2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor, nn

from ..functional import checks
from ..functional.edges import Edges, prepare_edges
from ..functional.graphs import Graph, attend, is_dense, kept
from . import inputs

# ONNX has no mean over edges: a mean is a sum, divided.
_REDUCTIONS = {"add": "sum", "mean": "sum", "min": "amin", "max": "amax", "mul": "prod"}
Nodes = Tensor | tuple[Tensor, Tensor]
WithWeights = tuple[Tensor, tuple[Tensor, Tensor]]


class GraphAttention(nn.Module):
    """Attention of every node to its neighbours: GATv2 (Brody, Alon and Yahav, 2105.14491).

        a_ij = softmax_j(w . LeakyReLU(W_q x_i + W_k x_j + W_e e_ij)),    y_i = sum_j a_ij W_k x_j

    It computes what GATv2Conv of PyTorch Geometric does, and makes no tensor of [edges, heads,
    channels] except for the projected features of edges, if there are any.

    Args:
        in_channels: features of a node, or of (a source, a target) where they differ in kind.
        out_channels: features of each head.
        num_heads: heads; the contexts of all are concatenated, or averaged without ``concat``.
        concat: return num_heads * out_channels features instead of out_channels.
        negative_slope: in [0, 1], of the LeakyReLU.
        dropout: in [0, 1], the probability that a weight is dropped; in training only.
        add_self_loops: replace the self-loops that are given by one for each node. With two kinds
            of nodes, each of the first min(m, n) sources is joined to the target of its number.
        edge_dim: features of an edge, or None.
        fill_value: features of an added self-loop: a number, a tensor (edge_dim,), or the name of
            a reduction over the edges that end in the node, "add", "mean", "min", "max" or "mul".
        bias: give the projections of nodes, and the result, a bias.
        residual: add a projection of the targets to the result.
        share_weights: project sources and targets by the same layer.
        backend: as in `additive_attention_sparse`.
        device, dtype: device and dtype of the parameters.

    Attributes:
        query_proj: Linear to num_heads * out_channels, of targets.
        key_proj: the same of sources; with ``share_weights`` it is ``query_proj``.
        weight: (num_heads, out_channels), w.
        edge_proj: Linear without a bias, or None without ``edge_dim``.
        residual_proj: Linear without a bias, or None without ``residual``.
        bias: of the result, or None.

    Raises:
        TypeError: a number or flag has the wrong type.
        ValueError: a size, a number or a name is out of range.
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        num_heads: int = 1,
        *,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        edge_dim: int | None = None,
        fill_value: float | str | Tensor = "mean",
        bias: bool = True,
        residual: bool = False,
        share_weights: bool = False,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        both = in_channels if isinstance(in_channels, tuple) else (in_channels, in_channels)
        if len(both) != 2:
            raise ValueError(f"in_channels must be an int or two, got {in_channels!r}")
        of_sources, of_targets, out_channels, num_heads = inputs.sizes(
            in_channels=both[0],
            **{"in_channels[1]": both[1]},
            out_channels=out_channels,
            num_heads=num_heads,
        )
        checks.flags(
            concat=concat, add_self_loops=add_self_loops, bias=bias, residual=residual,
            share_weights=share_weights,
        )  # fmt: skip
        if share_weights and of_sources != of_targets:
            raise ValueError(f"in_channels must be two equal sizes to be shared, got {in_channels}")
        if isinstance(fill_value, str):
            checks.choice("fill_value", fill_value, _REDUCTIONS)
        elif not isinstance(fill_value, Tensor):
            fill_value = float(checks.number("fill_value", fill_value))
        inputs.backend_name(backend)
        self.in_channels, self.out_channels, self.num_heads = in_channels, out_channels, num_heads
        self.concat, self.add_self_loops, self.share_weights = concat, add_self_loops, share_weights
        self.negative_slope = checks.number("negative_slope", negative_slope, 0, 1)
        self.dropout = checks.number("dropout", dropout, 0, 1)
        self.fill_value, self.backend = fill_value, backend
        self.edge_dim = None if edge_dim is None else checks.positive_int("edge_dim", edge_dim)
        if isinstance(fill_value, Tensor) and fill_value.shape not in ((), (1,), (edge_dim,)):
            raise ValueError(
                f"fill_value must be a number, a name or a tensor (edge_dim,) = ({edge_dim},), got "
                f"a tensor {tuple(fill_value.shape)}"
            )

        def linear(size: int, out: int, bias: bool) -> nn.Linear:
            return nn.Linear(size, out, bias=bias, device=device, dtype=dtype)

        width, result = num_heads * out_channels, out_channels * (num_heads if concat else 1)
        self.query_proj = linear(of_targets, width, bias)
        self.key_proj = self.query_proj if share_weights else linear(of_sources, width, bias)
        self.weight = nn.Parameter(torch.empty(num_heads, out_channels, device=device, dtype=dtype))
        self.edge_proj = None if self.edge_dim is None else linear(self.edge_dim, width, False)
        self.residual_proj = linear(of_targets, result, False) if residual else None
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(result, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset all parameters: Xavier's rule for matrices and ``weight``, 0 for ``bias``."""
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()  # the bias
                nn.init.xavier_uniform_(layer.weight)
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @overload
    def forward(
        self,
        x: Nodes,
        edges: Edges | Tensor,
        edge_attr: Tensor | None = ...,
        *,
        return_weights: Literal[False] = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x: Nodes,
        edges: Edges | Tensor,
        edge_attr: Tensor | None = ...,
        *,
        return_weights: Literal[True],
    ) -> WithWeights: ...
    @overload
    def forward(
        self,
        x: Nodes,
        edges: Edges | Tensor,
        edge_attr: Tensor | None = ...,
        *,
        return_weights: bool,
    ) -> Tensor | WithWeights: ...
    def forward(
        self,
        x: Nodes,
        edges: Edges | Tensor,
        edge_attr: Tensor | None = None,
        *,
        return_weights: bool = False,
    ) -> Tensor | WithWeights:
        """Return the new features of the targets.

        A graph that is given again, as the same tensor or the same `Edges`, is sorted once.

        Args:
            x: (n, in_channels), or a tuple of sources (m, in_channels[0]) and targets
                (n, in_channels[1]); of the dtype of the parameters.
            edges: what `prepare_edges` takes or returns: (2, E) with sources in the first row, or
                a sparse tensor (n, m), or `Edges`.
            edge_attr: (E, edge_dim), in the order of the edges; (E,) for an edge_dim of 1.
            return_weights: also return the weights, after dropout.

        Returns:
            (n, num_heads * out_channels), without ``concat`` (n, out_channels). With
            ``return_weights`` a tuple of it and of the tuple of edges (2, E') and their weights
            (E', num_heads): those that were given, and then the added self-loops.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        sources, targets = self._nodes(x)
        m, n = sources.shape[0], targets.shape[0]
        checks.flags(return_weights=return_weights)
        if not isinstance(edges, Edges):
            checks.instance("edges", edges, Tensor, "Edges or a tensor")
            if edges.layout is not torch.strided:
                edges = prepare_edges(edges, n, m)
        features = self._features(edge_attr, edges)
        graph, index, features = self._graph(edges, features, n, m, return_weights)
        heads = self.num_heads, self.out_channels
        key = self.key_proj(sources).unflatten(-1, heads)
        same = self.share_weights and sources is targets
        query = key if same else self.query_proj(targets).unflatten(-1, heads)
        if features is not None and self.edge_proj is not None:
            features = self.edge_proj(features).unflatten(-1, heads).transpose(0, 1)
        context, weights = attend(
            query.transpose(0, 1),
            key.transpose(0, 1),
            self.weight,
            graph,
            edge_key=features,
            dropout_p=self.dropout if self.training else 0.0,
            negative_slope=self.negative_slope,
            return_weights=return_weights,
            backend=self.backend,
        )
        context = context.transpose(0, 1)
        out = context.flatten(1) if self.concat else context.mean(1)
        if self.residual_proj is not None:
            out = out + self.residual_proj(targets)
        if self.bias is not None:
            out = out + self.bias
        return out if weights is None or index is None else (out, (index, weights.t()))

    def _nodes(self, x: Nodes) -> tuple[Tensor, Tensor]:
        if isinstance(x, Tensor):
            if isinstance(self.in_channels, tuple) and len(set(self.in_channels)) > 1:
                raise TypeError("x must be a tuple of sources and targets, got a tensor")
            inputs.rows(self, "x", x, "(n, in_channels)", self.query_proj.in_features, "query_proj")
            return x, x
        if not isinstance(x, tuple) or len(x) != 2:
            raise TypeError(f"x must be a tensor or a tuple of two, got {checks.type_name(x)}")
        sizes = self.key_proj.in_features, self.query_proj.in_features
        inputs.rows(self, "x[0]", x[0], "(m, in_channels[0])", sizes[0], "key_proj")
        inputs.rows(self, "x[1]", x[1], "(n, in_channels[1])", sizes[1], "query_proj")
        checks.same_device("x[1]", x[1], x[0])
        return x

    def _features(self, edge_attr: Tensor | None, edges: Edges | Tensor) -> Tensor | None:
        """Return the features of edges, (E, edge_dim)."""
        if edge_attr is None:
            return None
        if self.edge_dim is None:
            raise ValueError("edge_attr must be None for a module without edge_dim, got a tensor")
        checks.tensor("edge_attr", edge_attr)
        if edge_attr.ndim == 1 and self.edge_dim == 1:
            edge_attr = edge_attr.unsqueeze(1)
        count = edges.num_edges if isinstance(edges, Edges) else edges.shape[-1]
        checks.tensor("edge_attr", edge_attr, "(E, edge_dim)", (count, self.edge_dim))
        inputs.rows(self, "edge_attr", edge_attr, "(E, edge_dim)", self.edge_dim, "edge_proj")
        return edge_attr

    def _graph(
        self, edges: Edges | Tensor, features: Tensor | None, n: int, m: int, wanted: bool
    ) -> tuple[Graph, Tensor | None, Tensor | None]:
        """Return the graph, and the edges and their features with loops if they are needed."""
        if isinstance(edges, Edges):
            given, count = edges.source, edges.num_edges
            if (edges.n, edges.m) != (n, m):
                raise ValueError(
                    f"x must have a row per node of edges, m = {edges.m} and n = {edges.n}, "
                    f"got {m} and {n} rows"
                )
        else:
            checks.integers("edges", edges, "(2, E)", (2, None))
            given, count = edges, edges.shape[1]
        checks.same_device("edges", given, self.weight)
        loops, dense = self.add_self_loops, is_dense(count, n, m)
        made: list[tuple[Tensor, Tensor | None]] = []

        def whole() -> tuple[Tensor, Tensor | None]:
            if not made:
                index = edges.edge_index() if isinstance(edges, Edges) else edges.long()
                pair = index, features
                made.append(_with_loops(*pair, min(n, m), n, self.fill_value) if loops else pair)
            return made[0]

        def make() -> Graph:
            if isinstance(edges, Edges) and not loops and not dense:
                return Graph.sorted(edges)
            source, target = whole()[0]
            return Graph(source, target, n, m, dense=dense)

        graph = kept(given, (n, m, loops, type(edges)), make)
        return (graph, *whole()) if wanted or features is not None else (graph, None, None)

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, concat={self.concat}, dropout={self.dropout}, "
            f"add_self_loops={self.add_self_loops}"
        )

    if TYPE_CHECKING:
        __call__ = forward


def _with_loops(
    index: Tensor, features: Tensor | None, nodes: int, n: int, fill: float | str | Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return edges, and their features, with one loop at the end for each of the first nodes."""
    there = index[0] != index[1]
    index = index[:, there]
    loops = torch.arange(nodes, device=index.device).expand(2, nodes)
    if features is not None:
        features = features[there]
        shape = nodes, features.shape[1]
        if isinstance(fill, str):
            start = features.new_full((n, shape[1]), 1.0 if fill == "mul" else 0.0)
            ends = index[1].unsqueeze(1).expand_as(features)
            of_loops = start.scatter_reduce(
                0, ends, features, _REDUCTIONS[fill], include_self=fill == "mul"
            )[:nodes]
            if fill == "mean":
                counts = torch.zeros(n, 1, dtype=torch.int64, device=index.device)
                counts = counts.scatter_add(0, ends[:, :1], torch.ones_like(ends[:, :1]))
                of_loops = of_loops / counts[:nodes].clamp(min=1)
        elif isinstance(fill, Tensor):
            of_loops = fill.to(features).expand(shape)
        else:
            of_loops = features.new_full(shape, fill)
        features = torch.cat([features, of_loops])
    return torch.cat([index, loops], 1), features
