"""Keras's AdditiveAttention on the torch backend: no projections, and a scoring vector or none."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from ..functional.attention import additive_attention
from ..nn import AdditiveAttention
from .core.attend import once
from .core.convention import PLAIN, Convention, Entry
from .core.live import Draw, Fused, Live, M, Results, trial_lengths

# Without `use_scale` Keras learns nothing, and there is nothing to load.
CONVENTIONS = {
    "keras": Convention(
        "Keras, AdditiveAttention",
        AdditiveAttention,
        (Entry("weight", ("scale", "additive_attention/scale")),),
        PLAIN,
        identities=("query_proj.weight", "key_proj.weight"),
    )
}


class Additive(Fused):
    """AdditiveAttention of Keras: contexts, and the weights if requested."""

    def call(
        self,
        inputs: list[Tensor],
        mask: list[Tensor | None] | None = None,
        training: bool = False,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        self._validate_inputs(inputs=inputs, mask=mask)
        query, value = inputs[:2]
        key = inputs[2] if len(inputs) > 2 else value
        query_mask, value_mask = mask[:2] if mask else (None, None)
        weight = query.new_ones(query.shape[-1])
        if self.scale is not None:
            weight = sys.modules["keras"].ops.convert_to_tensor(self.scale)  # cast as Keras casts
        result = additive_attention(
            query,
            once(key, query),
            once(value, query),
            weight,
            attn_mask=None if value_mask is None else value_mask.bool().unsqueeze(-2),
            is_causal=use_causal_mask,
            dropout_p=self.dropout if training else 0.0,
            return_weights=return_attention_scores,
        )
        context, weights = result if isinstance(result, tuple) else (result, None)
        if query_mask is not None:
            context = torch.where(query_mask.bool().unsqueeze(-1), context, 0.0)
        return context if weights is None else (context, weights)


def _trial(layer: Any, draw: Draw) -> Results:
    width = 4 if layer.scale is None else layer.scale.shape[0]
    query, value, key = draw(2, 3, width), draw(2, M, 2), draw(2, M, width)
    lengths = trial_lengths(query).unsqueeze(1)
    taking_part = torch.arange(M, device=query.device) < lengths
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


_ARGUMENTS = ("inputs", "mask", "training", "return_attention_scores", "use_causal_mask")
LIVE = (
    Live("keras", ("AdditiveAttention",), _ARGUMENTS, Additive, _trial, _why_not, method="call"),
)
