"""DGL: GATv2Conv."""

from __future__ import annotations

from helpers.interop_load import B, H, K, LoadCase, M, N, Q, Shapes, State, layer, softmax
from torch import Tensor
from torch.nn import functional


def formula(s: State, queries: Tensor, keys: Tensor) -> Tensor:
    _, heads, d = s["attn"].shape
    x_i, x_j = layer(s, "fc_dst", queries).unsqueeze(2), layer(s, "fc_src", keys).unsqueeze(1)
    hidden = functional.leaky_relu(x_i + x_j, 0.2).view(B, N, M, heads, d)
    return softmax((hidden * s["attn"]).sum(-1).movedim(-1, 1))


def values(s: State, keys: Tensor) -> Tensor:
    return layer(s, "fc_src", keys)


ENTRIES: Shapes = {
    "fc_dst.weight": (H, Q),
    "fc_src.weight": (H, K),
    "attn": (1, 2, H // 2),
    "fc_dst.bias": (H,),
    "fc_src.bias": (H,),
    "res_fc.weight": (H, Q),
}
OPTIONS = {"num_heads": 2, "activation": "leaky_relu"}
LOADS = {
    "dgl-gatv2": LoadCase(
        "dgl-gatv2", OPTIONS, ENTRIES, formula, left=("res_fc.weight",), values=values
    )
}
