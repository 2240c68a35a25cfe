"""The forward operator over edges: context, lse and weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..device.edge_forward import edge_forward_kernel, edge_merge_kernel, edge_weights_kernel
from .edges import EdgeCall
from .launch import launch, on


def sparse_forward(*, return_weights: bool, **arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Implement the operator "sparse_forward" of ops/signature.py."""
    call = EdgeCall(**arguments)
    context, lse = call.by_row(call.n, call.dv, trailing=2), call.by_row(call.n, trailing=1)
    softmax = call.by_row(call.n, 2, trailing=2)
    weights = call.by_row(call.edges, trailing=1) if return_weights else softmax
    shares = call.shares(call.target_begin)
    numbers = {"lse": lse, "scores": weights if return_weights else None}
    given = call.operands({"context": context, "softmax": softmax}, numbers)
    given |= {"part_context": shares.parts(call, call.dv), "part_state": shares.parts(call, 2)}
    with on(call.query):
        call.launch(edge_forward_kernel, shares, given)
        call.merge(edge_merge_kernel, shares, given, BD=given["BV"])
        if return_weights:
            block = max(1024 // call.BH, 1)
            programs = -(-call.edges // block) * call.head_blocks
            launch(edge_weights_kernel, programs, given | {"BE": block}, warps=4)
    return context, lse, weights
