"""The face of a backend with operators of its own: named arguments become places in a schema."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from ..ops.autograd import differentiable
from ..ops.codes import ACTIVATIONS


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
        *,
        attn_mask: Tensor | None,
        key_lengths: Tensor | None,
        is_causal: bool,
        dropout_p: float,
        seed: Tensor | None,
        activation: str,
        negative_slope: float,
        scale: float,
        return_weights: bool,
        packed_key: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """(E1)-(E3) in one pass; see `Backend.attention`."""
        context, lse, weights = self._forward(
            query,
            key,
            value,
            weight,
            attn_mask,
            key_lengths,
            None,
            None,
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
        *,
        is_causal: bool,
        dropout_p: float,
        seed: Tensor | None,
        activation: str,
        negative_slope: float,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """The same for packed sequences; see `Backend.attention_varlen`."""
        context, lse, _ = self._forward(
            query,
            key,
            value,
            weight,
            None,
            None,
            cu_seqlens_q,
            cu_seqlens_k,
            None,
            seed,
            dropout_p,
            is_causal,
            ACTIVATIONS[activation].code,
            negative_slope,
            scale,
            False,
        )
        return _rounded(context, query), lse

    def scores(
        self,
        query: Tensor,
        key: Tensor,
        weight: Tensor,
        *,
        activation: str,
        negative_slope: float,
        scale: float,
    ) -> Tensor:
        """(E1); see `Backend.scores`."""
        code = ACTIVATIONS[activation].code
        return _rounded(self._scores(query, key, weight, code, negative_slope, scale), query)


def _rounded(result: Tensor, like: Tensor) -> Tensor:
    # a dtype by name is understood half a microsecond sooner
    return result if result.dtype == like.dtype else result.to(dtype=like.dtype)
