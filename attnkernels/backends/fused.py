"""The functions of a backend that has operators of its own."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from ..ops.autograd import differentiable
from ..ops.codes import ACTIVATIONS
from ..ops.signature import Options


class Fused:
    """attention, attention_varlen and scores of `Backend`, by the operators of `ops.define`."""

    def __init__(self, ops: SimpleNamespace) -> None:
        self._forward, self._scores = differentiable(ops)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        weight: Tensor,
        options: Options,
        *,
        attn_mask: Tensor | None = None,
        key_lengths: Tensor | None = None,
        return_weights: bool = False,
        packed_key: Tensor | None = None,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return (E1)-(E3) in one pass; see `Backend.attention`."""
        seed, dropout_p, is_causal, activation, negative_slope, scale = options
        context, lse, weights = self._forward(
            query,
            key,
            value,
            weight,
            attn_mask,
            key_lengths,
            cu_seqlens_q,
            cu_seqlens_k,
            packed_key,
            seed,
            dropout_p,
            is_causal,
            ACTIVATIONS[activation].code,
            negative_slope,
            scale,
            return_weights,
        )
        return _rounded(context, query), _rounded(weights, query) if return_weights else None, lse

    def attention_varlen(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        weight: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        options: Options,
    ) -> tuple[Tensor, Tensor]:
        """Return the same for packed sequences; see `Backend.attention_varlen`."""
        context, _, lse = self.attention(
            query,
            key,
            value,
            weight,
            options,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_k,
        )
        return context, lse

    def scores(self, query: Tensor, key: Tensor, weight: Tensor, options: Options) -> Tensor:
        """Return (E1); see `Backend.scores`."""
        _, _, _, activation, negative_slope, scale = options
        code = ACTIVATIONS[activation].code
        return _rounded(self._scores(query, key, weight, code, negative_slope, scale), query)


def _rounded(result: Tensor, like: Tensor) -> Tensor:
    # a dtype by name is understood half a microsecond sooner
    return result if result.dtype == like.dtype else result.to(dtype=like.dtype)
