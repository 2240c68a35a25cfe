"""The functions of a backend that has operators of its own."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from ..ops import edge_formula
from ..ops.autograd import differentiable, differentiable_over_edges
from ..ops.codes import ACTIVATIONS, activation_code
from ..ops.failures import explain
from ..ops.inference import inference
from ..ops.signature import EdgeOptions, Options


class Fused:
    """attention and scores of `Backend`, made from the operators of `ops.schema.define`."""

    def __init__(self, ops: SimpleNamespace, fast_on_cpu: bool = True) -> None:
        """Take the operators; fast_on_cpu: whether precision="fast" changes those for the CPU."""
        self._forward, self._scores = differentiable(ops)
        self._inference = inference(ops.forward)
        sparse = hasattr(ops, "sparse_forward")
        self._over_edges = differentiable_over_edges(ops) if sparse else None
        self._fast_on_cpu = fast_on_cpu

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, weight: Tensor, options: Options
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return (E1)-(E3) in one pass; see `Backend.attention`."""
        (
            attn_mask, key_lengths, key_starts, cu_seqlens_q, cu_seqlens_k, packed_key, seed,
            dropout_p, window_left, window_right, activation, negative_slope, scale,
            return_weights, precision, return_lse,
        ) = options  # fmt: skip
        exact = precision == "exact"  # at once: a call counts microseconds
        code = ACTIVATIONS[activation].code if exact else self._code(query, options)
        try:
            if (
                attn_mask is key_starts is cu_seqlens_q is seed is window_left is window_right is
                None and activation == "tanh" and exact and scale == 1.0
                and not (return_weights or return_lse)
            ):  # fmt: skip
                context = self._inference(query, key, value, weight, key_lengths, packed_key)
                if context is not None:
                    return context, None, None
            context, lse, weights = self._forward(
                query, key, value, weight, attn_mask, key_lengths, key_starts, cu_seqlens_q,
                cu_seqlens_k, packed_key, seed, dropout_p, window_left, window_right,
                code, negative_slope, scale, return_weights,
            )  # fmt: skip
        except RuntimeError as error:
            explain(error)
        if context.dtype != query.dtype:
            context = context.to(dtype=query.dtype)  # by name saves half a microsecond
        return context, _rounded(weights, query) if return_weights else None, lse

    def scores(self, query: Tensor, key: Tensor, weight: Tensor, options: Options) -> Tensor:
        """Return (E1); see `Backend.scores`."""
        code = self._code(query, options)
        try:
            scores = self._scores(query, key, weight, code, options.negative_slope, options.scale)
        except RuntimeError as error:
            explain(error)
        return _rounded(scores, query)

    def _code(self, query: Tensor, options: Options) -> int:
        """Return the code of the activation and the precision for the device of the query."""
        may_be_fast = self._fast_on_cpu or not query.is_cpu
        return activation_code(options.activation, options.precision if may_be_fast else "exact")

    def attention_over_edges(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        weight: Tensor,
        options: EdgeOptions,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return context, weights and lse, by the formula if there are no operators for it.

        See `Backend.attention_over_edges`.
        """
        if self._over_edges is None:
            return edge_formula.attention(query, key, value, weight, options)
        *tensors, dropout_p, activation, negative_slope, scale, return_weights = options
        try:
            context, lse, weights = self._over_edges(
                query, key, value, weight, *tensors, dropout_p, ACTIVATIONS[activation].code,
                negative_slope, scale, return_weights,
            )  # fmt: skip
        except RuntimeError as error:
            explain(error)
        return _rounded(context, query), _rounded(weights, query) if return_weights else None, lse


def _rounded(result: Tensor, like: Tensor) -> Tensor:
    return result if result.dtype == like.dtype else result.to(dtype=like.dtype)
