"""PyTorch Geometric's GATv2Conv on dense graphs: additive attention with LeakyReLU.

    alpha_ij = softmax_j(att . LeakyReLU(lin_r x_i + lin_l x_j)),    x'_i = sum_j alpha_ij lin_l x_j

(Brody et al., 2105.14491, equation 7). PyG's message passing writes tensors of [edges, heads,
channels]. The operator writes none of them but looks at every pair of nodes. It therefore takes the
graphs in which at least one pair in `SPARSEST` is an edge; PyG computes the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..functional.attention import additive_attention
from ..nn import AdditiveAttention
from .core.convention import ROW, Convention, Entry
from .core.live import Draw, Fused, Live, Results

SPARSEST = 16  # on a CPU the operator is three times as fast at 20, with 512 nodes

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
    )
}


class GatV2(Fused):
    """GATv2Conv: node features, with the edges and their weights if they are asked for."""

    def forward(
        self,
        x: Any,
        edge_index: Any,
        edge_attr: Any = None,
        return_attention_weights: bool | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        sources, targets = (x, x) if isinstance(x, Tensor) else x
        edges = None
        if (  # releases differ in the meaning of False
            edge_attr is None
            and return_attention_weights is not False
            and targets is not None
            and not _watched(self)
        ):
            edges = _adjacency(self, edge_index, sources.shape[0], targets.shape[0])
        if edges is None:
            return super().forward(x, edge_index, edge_attr, return_attention_weights)
        wanted = return_attention_weights is not None
        context, weights = _attend(self, sources, targets, edges, return_weights=wanted)
        out = context.flatten(1) if self.concat else context.mean(1)
        if self.res is not None:
            out = out + self.res(targets)
        if self.bias is not None:
            out = out + self.bias
        if weights is None:
            return out
        edge_index = _edges(self, edge_index, min(sources.shape[0], targets.shape[0]))
        source, target = _ends(self, edge_index)
        return out, (edge_index, weights[:, target, source].t())


def _attend(
    module: Any, sources: Tensor, targets: Tensor, edges: Tensor, *, return_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Return contexts (targets, heads, channels), and weights (heads, targets, sources) or None."""
    shape = (-1, module.heads, module.out_channels)
    key = module.lin_l(sources).view(shape).transpose(0, 1)
    shared = module.share_weights and sources is targets
    query = key if shared else module.lin_r(targets).view(shape).transpose(0, 1)
    result = additive_attention(
        query,
        key,
        key,
        module.att[0],
        attn_mask=None if edges.all() else edges,
        dropout_p=module.dropout if module.training else 0.0,
        activation="leaky_relu",
        negative_slope=module.negative_slope,
        return_weights=return_weights,
    )
    context, *weights = result if isinstance(result, tuple) else (result,)
    return context.transpose(0, 1), weights[0] if weights else None


def _ends(module: Any, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sources and the targets of the edges."""
    first, second = edge_index
    return (first, second) if module.flow == "source_to_target" else (second, first)


def _adjacency(module: Any, edge_index: Any, sources: int, targets: int) -> Tensor | None:
    """Return bool (targets, sources), or None if the graph is sparse or has an edge twice."""
    if not isinstance(edge_index, Tensor) or edge_index.layout is not torch.strided:
        return None
    if SPARSEST * edge_index.shape[1] < sources * targets:
        return None
    source, target = _ends(module, edge_index)
    adjacency = torch.zeros(targets, sources, dtype=torch.bool, device=edge_index.device)
    adjacency[target, source] = True
    count = edge_index.shape[1]
    if module.add_self_loops:  # PyG removes the given loops first
        adjacency.fill_diagonal_(False)
        count -= int((source == target).sum())
    if int(adjacency.sum()) != count:
        return None
    return adjacency.fill_diagonal_(True) if module.add_self_loops else adjacency


def _edges(module: Any, edge_index: Tensor, nodes: int) -> Tensor:
    """Return the edges in the order in which PyG returns their weights."""
    if not module.add_self_loops:
        return edge_index
    source, target = edge_index
    loops = torch.arange(nodes, device=edge_index.device).expand(2, nodes)
    return torch.cat([edge_index[:, source != target], loops], 1)


def _watched(module: Any) -> bool:
    """Return True if an explanation or a hook looks into the message passing."""
    stages = ("_propagate_", "_message_", "_aggregate_", "_edge_update_")
    return bool(module.explain) or any(
        hooks
        for name, hooks in vars(module).items()
        if name.endswith("_hooks") and name.startswith(stages)
    )


def _trial(module: Any, draw: Draw) -> Results:
    module.dropout = 0.0  # the two classes would drop different weights
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


_ARGUMENTS = ("x", "edge_index", "edge_attr", "return_attention_weights")
LIVE = (Live("pyg-gatv2", ("GATv2Conv",), _ARGUMENTS, GatV2, _trial, _why_not),)
