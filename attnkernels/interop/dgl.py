"""DGL's GATv2Conv: additive attention with LeakyReLU over the edges of a graph.

    a_ij = softmax_j(attn . LeakyReLU(fc_dst x_i + fc_src x_j)),    y_i = sum_j a_ij fc_src x_j

(Brody et al., 2105.14491, equation 7.)
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from ..functional.graphs import Graph, attend, is_dense
from ..nn import AdditiveAttention
from .core.convention import ROW, Convention, Entry
from .core.live import Draw, Fused, Live, Results

# The values are `fc_src` of the sources, which the caller makes and passes as `value`.
CONVENTIONS = {
    "dgl-gatv2": Convention(
        "DGL, GATv2Conv",
        AdditiveAttention,
        (
            Entry("query_proj.weight", ("fc_dst.weight",)),
            Entry("query_proj.bias", ("fc_dst.bias",), optional=True),
            Entry("query_proj.bias", ("fc_src.bias",), optional=True),
            Entry("key_proj.weight", ("fc_src.weight",)),
            Entry("weight", ("attn",), ROW),
        ),
        {"activation": "leaky_relu", "normalize": False, "scale": 1.0},
        heads=True,
        left={"res_fc.": "projects what is added to the contexts, after attention"},
    )
}


class GatV2(Fused):
    """GATv2Conv: features of nodes and heads, with the weights if they are asked for."""

    def forward(
        self, graph: Any, feat: Any, get_attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        pair = isinstance(feat, tuple)
        if len(graph.canonical_etypes) != 1:
            return super().forward(graph, feat, get_attention)
        if not self._allow_zero_in_degree and bool((graph.in_degrees() == 0).any()):
            return super().forward(graph, feat, get_attention)  # which raises
        m, n = graph.number_of_src_nodes(), graph.number_of_dst_nodes()
        x = self.feat_drop(feat[0] if pair else feat)
        y = self.feat_drop(feat[1]) if pair else x
        shape = -1, self._num_heads, self._out_feats
        key = self.fc_src(x).view(shape)
        query = key if self.share_weights and not pair else self.fc_dst(y).view(shape)
        if graph.is_block and not pair:
            query, y = query[:n], y[:n]
        if (key.shape[0], query.shape[0]) != (m, n):
            return super().forward(graph, feat, get_attention)  # which raises
        source, target = graph.edges()
        dense = is_dense(source.shape[0], n, m)
        context, weights = attend(
            query.transpose(0, 1),
            key.transpose(0, 1),
            self.attn[0],
            Graph(source.long(), target.long(), n, m, dense=dense),
            dropout_p=self.attn_drop.p if self.attn_drop.training else 0.0,
            negative_slope=self.leaky_relu.negative_slope,
            return_weights=bool(get_attention),
        )
        out = context.transpose(0, 1)
        if self.res_fc is not None:
            out = out + self.res_fc(y).view(y.shape[0], -1, self._out_feats)
        if self.activation:
            out = self.activation(out)
        return out if weights is None else (out, weights.t().unsqueeze(2))


def _trial(module: Any, draw: Draw) -> Results:
    module.feat_drop, module.attn_drop = torch.nn.Dropout(0.0), torch.nn.Dropout(0.0)
    x: Any = draw(4, module.fc_src.weight.shape[1])
    if module._in_src_feats != module._in_dst_feats:
        x = x, draw(4, module.fc_dst.weight.shape[1])
    results: list[Any] = []
    for given in (*range(15),), (1, 4, 6, 6, 12, 15, 11):  # all but one of the 16; few
        pairs = torch.tensor(given, device=module.attn.device)
        graph = sys.modules["dgl"].graph((pairs // 4, pairs % 4), num_nodes=4)
        results += [module.forward(graph, x), module.forward(graph, x, True)]
    return results


_ARGUMENTS = ("graph", "feat", "get_attention")
LIVE = (Live("dgl-gatv2", ("GATv2Conv",), _ARGUMENTS, GatV2, _trial),)
