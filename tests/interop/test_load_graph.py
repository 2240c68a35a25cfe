"""Checkpoints of a whole GATv2Conv, loaded into GraphAttention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnkernels.interop import load_state_dict_from
from attnkernels.nn import GraphAttention

NAMES = {
    "query_proj": "lin_r",
    "key_proj": "lin_l",
    "weight": "att",
    "edge_proj": "lin_edge",
    "residual_proj": "res",
    "bias": "bias",
}
SIZES = (5, 3, 2)


def checkpoint(module: GraphAttention) -> dict[str, Tensor]:
    """Return the module's parameters as PyTorch Geometric names them."""
    state = {}
    for name, x in module.state_dict().items():
        first, dot, last = name.partition(".")
        state[NAMES[first] + dot + last] = x[None].clone() if first == "weight" else x.clone()
    return state


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "features of edges": {"edge_dim": 4},
    "residual": {"residual": True},
    "shared": {"share_weights": True},
    "no biases": {"bias": False},
    "the mean of heads": {"concat": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_loaded(options: dict[str, Any]) -> None:
    wanted, found = (GraphAttention(*SIZES, **options) for _ in range(2))
    torch.nn.init.normal_(wanted.weight)
    report = load_state_dict_from(found, checkpoint(wanted), convention="pyg-gatv2-layer")
    assert set(report.loaded) == set(wanted.state_dict()) and not report.zeroed
    for name, x in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], x)


@pytest.mark.parametrize(
    "given, wanted, why",
    [
        ({"edge_dim": 4}, {}, "lin_edge.weight has no place: module has no edge_proj.weight$"),
        ({}, {"edge_dim": 4}, "lin_edge.weight is missing$"),
        ({}, {"residual": True}, "res.weight is missing$"),
        ({}, {"bias": False}, "bias has no place: module has no bias, construct it with bias=True"),
        ({}, {"share_weights": True}, "lin_r.weight and lin_l.weight must be equal, as the module"),
    ],
)
def test_refused(given: dict[str, Any], wanted: dict[str, Any], why: str) -> None:
    """The module stays unchanged."""
    module = GraphAttention(*SIZES, **wanted)
    before = {name: x.clone() for name, x in module.state_dict().items()}
    state = checkpoint(GraphAttention(*SIZES, **given))
    with pytest.raises(ValueError, match=why):
        load_state_dict_from(module, state, convention="pyg-gatv2-layer")
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
