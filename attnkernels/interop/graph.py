"""PyTorch Geometric's GATv2Conv where its graph is dense: additive attention by LeakyReLU.

    alpha_ij = softmax_j(att . LeakyReLU(lin_r x_i + lin_l x_j)),    x'_i = sum_j alpha_ij lin_l x_j

(Brody et al., 2105.14491, equation 7). The message passing of PyG makes [edges, heads, channels];
the operator makes none of it, but looks at every pair of nodes. So it takes the graphs that have
at least one pair in `SPARSEST`, and leaves the others to PyG.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..functional.attention import additive_attention
from .core.live import Draw, Fused, Live

SPARSEST = 16  # on a CPU the operator is three times as fast at 20, with 512 nodes
_STAGES = ("_propagate_", "_message_", "_aggregate_", "_edge_update_")


class GatV2(Fused):
    """Results as GATv2Conv: node features, with edges and their weights where asked for."""

    def forward(
        self: Any,
        x: Any,
        edge_index: Any,
        edge_attr: Any = None,
        return_attention_weights: Any = None,
    ) -> Any:
        sources, targets = (x, x) if isinstance(x, Tensor) else x
        edges = None
        if (  # what False means has changed between versions
            edge_attr is None
            and return_attention_weights is not False
            and targets is not None
            and not _watched(self)
        ):
            edges = _adjacency(self, edge_index, sources.shape[0], targets.shape[0])
        if edges is None:
            return super().forward(  # type: ignore[misc]
                x, edge_index, edge_attr, return_attention_weights
            )
        shape = (-1, self.heads, self.out_channels)
        key = self.lin_l(sources).view(shape).transpose(0, 1)
        shared = self.share_weights and sources is targets
        query = key if shared else self.lin_r(targets).view(shape).transpose(0, 1)
        result = additive_attention(
            query,
            key,
            key,
            self.att[0],
            attn_mask=None if edges.all() else edges,
            dropout_p=self.dropout if self.training else 0.0,
            activation="leaky_relu",
            negative_slope=self.negative_slope,
            return_weights=return_attention_weights is not None,
        )
        context, *weights = result if isinstance(result, tuple) else (result,)
        out = context.transpose(0, 1)
        out = out.flatten(1) if self.concat else out.mean(1)
        if self.res is not None:
            out = out + self.res(targets)
        if self.bias is not None:
            out = out + self.bias
        if not weights:
            return out
        edge_index = _edges(self, edge_index, min(sources.shape[0], targets.shape[0]))
        source, target = _ends(self, edge_index)
        return out, (edge_index, weights[0][:, target, source].t())


def _ends(self: Any, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """Sources and targets of the edges."""
    first, second = edge_index
    return (first, second) if self.flow == "source_to_target" else (second, first)


def _adjacency(self: Any, edge_index: Any, sources: int, targets: int) -> Tensor | None:
    """bool (targets, sources), where the graph is dense and no edge is there twice."""
    if not isinstance(edge_index, Tensor) or edge_index.layout is not torch.strided:
        return None
    if SPARSEST * edge_index.shape[1] < sources * targets:
        return None
    source, target = _ends(self, edge_index)
    adjacency = torch.zeros(targets, sources, dtype=torch.bool, device=edge_index.device)
    adjacency[target, source] = True
    count = edge_index.shape[1]
    if self.add_self_loops:  # which are removed first
        adjacency.fill_diagonal_(False)
        count -= int((source == target).sum())
    if int(adjacency.sum()) != count:
        return None
    return adjacency.fill_diagonal_(True) if self.add_self_loops else adjacency


def _edges(self: Any, edge_index: Tensor, nodes: int) -> Tensor:
    """The edges in the order in which PyG gives their weights back."""
    if not self.add_self_loops:
        return edge_index
    source, target = edge_index
    loops = torch.arange(nodes, device=edge_index.device).expand(2, nodes)
    return torch.cat([edge_index[:, source != target], loops], 1)


def _watched(self: Any) -> bool:
    """Whether someone looks into the message passing, which must then take place."""
    return bool(self.explain) or any(
        hooks
        for name, hooks in vars(self).items()
        if name.endswith("_hooks") and name.startswith(_STAGES)
    )


def _trial(module: Any, draw: Draw) -> Any:
    module.dropout = 0.0  # the weights that are dropped are others
    x: Any = draw(4, module.lin_l.weight.shape[1])
    if isinstance(module.in_channels, tuple):
        x = x, draw(4, module.lin_r.weight.shape[1])
    pairs = torch.arange(15, device=module.att.device)  # all but one of the 16
    edges = torch.stack([pairs // 4, pairs % 4])
    return module.forward(x, edges), module.forward(x, edges, None, True)


def _why_not(module: Any) -> str | None:
    if module.edge_dim is not None:
        return "edge_dim is set: features of edges enter each score"
    if module.aggr not in ("add", "sum"):
        return f"aggr is {module.aggr!r}: attention adds"
    if any(isinstance(x, torch.nn.UninitializedParameter) for x in module.parameters()):
        return "it has no sizes yet: call it once before"
    return None


LIVE = (
    Live(
        "pyg-gatv2",
        ("GATv2Conv",),
        ("x", "edge_index", "edge_attr", "return_attention_weights"),
        GatV2,
        _trial,
        _why_not,
    ),
)
