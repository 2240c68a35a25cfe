"""The overload of the forward for small calls, which has few arguments.

An argument of an operator takes 0.1 us to pass, and there are eighteen: more than a step over some
keys takes to compute.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch.compiler import is_dynamo_compiling

from .codes import ACTIVATIONS
from .schema import implement_by_others
from .signature import Operator

_TANH = ACTIVATIONS["tanh"].code


def shortened(op: Any) -> Operator:
    """Return the forward `op`, by its overload `unmasked` where that has all arguments.

    Only the usual overload is traced or seen by a dispatch mode. An `op` without the other is
    returned as it is.
    """
    if "unmasked" not in op.overloadpacket.overloads():
        return op
    unmasked = op.overloadpacket.unmasked

    def by_usual(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        weight: Tensor,
        packed_key: Tensor | None,
        seed: Tensor | None,
        dropout_p: float,
    ) -> Any:
        return op(
            query, key, value, weight, None, None, None, None, None, packed_key, seed, dropout_p,
            None, None, _TANH, 0.2, 1.0, False,
        )  # fmt: skip

    implement_by_others(unmasked, by_usual)
    # without the Python function of an OpOverload, which adds 0.1 us
    by_few, by_all = unmasked._op, op._op

    def forward(
        query: Tensor, key: Tensor, value: Tensor, weight: Tensor, attn_mask: Any, key_lengths: Any,
        key_starts: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, packed_key: Any, seed: Any,
        dropout_p: float, window_left: Any, window_right: Any, activation: int,
        negative_slope: float, scale: float, return_weights: bool,
    ) -> Any:  # fmt: skip
        watched = is_dynamo_compiling() or _len_torch_dispatch_stack()
        if (
            attn_mask is key_lengths is key_starts is cu_seqlens_q is window_left is window_right is
            None and activation == _TANH and scale == 1.0 and not return_weights and not watched
        ):  # fmt: skip
            return by_few(query, key, value, weight, packed_key, seed, dropout_p)
        return (op if watched else by_all)(
            query, key, value, weight, attn_mask, key_lengths, key_starts, cu_seqlens_q,
            cu_seqlens_k, packed_key, seed, dropout_p, window_left, window_right, activation,
            negative_slope, scale, return_weights,
        )  # fmt: skip

    return forward
