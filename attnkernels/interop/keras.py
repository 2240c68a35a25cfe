"""Keras's AdditiveAttention on the torch backend: no projections, a vector that scores or none."""

from __future__ import annotations

import sys
from typing import Any

import torch

from ..functional.attention import additive_attention
from .core.live import Draw, Fused, Live


class Keras(Fused):
    """Results as AdditiveAttention of Keras: contexts, with weights where they are asked for."""

    def call(
        self: Any,
        inputs: Any,
        mask: Any = None,
        training: bool = False,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        self._validate_inputs(inputs=inputs, mask=mask)
        query, value = inputs[:2]
        key = inputs[2] if len(inputs) > 2 else value
        query_mask, value_mask = mask[:2] if mask else (None, None)
        weight = query.new_ones(query.shape[-1])
        if self.scale is not None:
            weight = sys.modules["keras"].ops.convert_to_tensor(self.scale)  # cast as Keras casts
        result = additive_attention(
            query,
            key,
            value,
            weight,
            attn_mask=None if value_mask is None else value_mask.bool().unsqueeze(-2),
            is_causal=use_causal_mask,
            dropout_p=self.dropout if training else 0.0,
            return_weights=return_attention_scores,
        )
        context, *weights = result if return_attention_scores else (result,)
        if query_mask is not None:
            context = torch.where(query_mask.bool().unsqueeze(-1), context, 0.0)
        return (context, *weights) if weights else context


def _trial(layer: Any, draw: Draw) -> Any:
    width = 4 if layer.scale is None else layer.scale.shape[0]
    query, value, key = draw(2, 3, width), draw(2, 5, 2), draw(2, 5, width)
    taking_part = torch.arange(5, device=query.device) < torch.tensor([[5], [3]]).to(query.device)
    return layer.call(
        [query, value, key], mask=[None, taking_part], return_attention_scores=True
    ), layer.call([query, value, key], use_causal_mask=True)


def _why_not(layer: Any) -> str | None:
    backend = sys.modules["keras"].backend.backend()
    if backend != "torch":
        return f"Keras runs on {backend}: only its torch backend has torch's tensors"
    if not layer.built:
        return "it is not built yet: call it once before"
    return None


LIVE = (
    Live(
        "keras",
        ("AdditiveAttention",),
        ("inputs", "mask", "training", "return_attention_scores", "use_causal_mask"),
        Keras,
        _trial,
        _why_not,
        method="call",
    ),
)
