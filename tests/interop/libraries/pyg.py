"""PyTorch Geometric: GATv2Conv."""

from __future__ import annotations

from typing import Any

from helpers.interop_load import B, H, K, LoadCase, M, N, Q, Shapes, State, layer, softmax
from torch import Tensor
from torch.nn import functional


def formula(s: State, queries: Tensor, keys: Tensor) -> Tensor:
    _, heads, d = s["att"].shape
    x_i, x_j = layer(s, "lin_r", queries).unsqueeze(2), layer(s, "lin_l", keys).unsqueeze(1)
    hidden = functional.leaky_relu(x_i + x_j, 0.2).view(B, N, M, heads, d)
    weights = softmax((hidden * s["att"]).sum(-1).movedim(-1, 1))
    return weights if heads > 1 else weights.squeeze(1)


def values(s: State, keys: Tensor) -> Tensor:
    return layer(s, "lin_l", keys)


def entries(heads: int, biases: str) -> Shapes:
    made: Shapes = {"lin_r.weight": (H, Q), "lin_l.weight": (H, K), "att": (1, heads, H // heads)}
    made |= {f"{name}.bias": (H,) for name in biases.split()}
    return made | {"bias": (H,), "res.weight": (H, Q)}


def case(heads: int, biases: str, **options: Any) -> LoadCase:
    """Return the case with this many heads and with the biases of these layers."""
    return LoadCase(
        "pyg-gatv2",
        {"num_heads": heads, "activation": "leaky_relu", **options},
        entries(heads, biases),
        formula,
        left=("bias", "res.weight"),
        values=values,
    )


LOADS = {
    "pyg-gatv2": case(2, "lin_r lin_l"),
    "pyg-gatv2, one head, no biases": case(1, "", bias=False),
    "pyg-gatv2, one bias": case(4, "lin_l"),
}
