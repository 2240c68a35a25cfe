"""Keras's AdditiveAttention and Attention("concat") on the torch backend: no projections.

AdditiveAttention: sum(scale * tanh(q + k)), with scale (dim,) or 1
Attention("concat"): concat_score_weight * sum(tanh(scale * (q + k))), with numbers
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from ..functional.attention import additive_attention
from ..nn import AdditiveAttention
from .core.attend import once
from .core.convention import PLAIN, REPEATED, Convention, Entry
from .core.live import Draw, Fused, Live, M, Results, trial_lengths

_IDENTITIES = ("query_proj.weight", "key_proj.weight")

# Without `use_scale` AdditiveAttention learns nothing, and there is nothing to load.
CONVENTIONS = {
    "keras": Convention(
        "Keras, AdditiveAttention",
        AdditiveAttention,
        (Entry("weight", ("scale", "additive_attention/scale")),),
        PLAIN,
        identities=_IDENTITIES,
    ),
    "keras-concat": Convention(
        'Keras, Attention(score_mode="concat")',  # a checkpoint of use_scale=True is refused
        AdditiveAttention,
        (Entry("weight", ("concat_score_weight", "attention/concat_score_weight"), REPEATED),),
        PLAIN,
        identities=_IDENTITIES,
    ),
}


class Additive(Fused):
    """Either layer of Keras: contexts, and the weights if requested."""

    def call(
        self,
        inputs: list[Tensor],
        mask: list[Tensor | None] | None = None,
        training: bool = False,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        self._validate_inputs(inputs=inputs, mask=mask)
        query_mask, value_mask = mask[:2] if mask else (None, None)
        if not _fits(value_mask, inputs[0], use_causal_mask):
            own: Any = super()
            return own.call(inputs, mask, training, return_attention_scores, use_causal_mask)
        if "_return_attention_scores" in self.__dict__:  # some releases compute shapes by it
            self._return_attention_scores = return_attention_scores
        kind = inputs[0].device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):  # Keras has the last word on dtypes
            with torch.autocast(kind, enabled=False):
                return self.call(inputs, mask, training, return_attention_scores, use_causal_mask)
        query, value = inputs[:2]
        key = inputs[2] if len(inputs) > 2 else value
        query, key, weight = self._scored(query, once(key, query))
        if value_mask is not None:
            value_mask = value_mask.bool()
            value_mask = value_mask.unsqueeze(-2) if value_mask.dim() == 2 else value_mask
        result = additive_attention(
            query,
            key,
            once(value, query),
            weight,
            attn_mask=value_mask,
            is_causal=use_causal_mask,
            dropout_p=self.dropout if training else 0.0,
            return_weights=return_attention_scores,
        )
        context, weights = result if isinstance(result, tuple) else (result, None)
        if context.dtype is torch.float64:  # Keras multiplies matrices in another dtype
            context = context.to(getattr(torch, _keras().backend.result_type(*["float64"] * 2)))
        if query_mask is not None:
            context = torch.where(query_mask.bool().unsqueeze(-1), context, 0.0)
        return context if weights is None else (context, weights)

    def _scored(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the operator's query, key and weight."""
        weight = query.new_ones(query.shape[-1])
        return query, key, weight if self.scale is None else _value(self.scale)


class Concat(Additive):
    """Attention("concat")."""

    def _scored(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight = _value(self.concat_score_weight).expand(query.shape[-1])
        if self.scale is None:
            return query, key, weight
        scale = _value(self.scale)
        return query * scale, key * scale, weight


def _fits(value_mask: Any, query: Tensor, causal: bool) -> bool:
    """Return True for a mask (B, Tv), and, unless causal, for (B, 1 or Tq, Tv)."""
    if value_mask is None:
        return True
    ranks = (2,) if causal else (2, 3)  # Keras itself gives others another meaning, or none
    return isinstance(value_mask, Tensor) and query.dim() == 3 and value_mask.dim() in ranks


def _value(variable: Any) -> Tensor:
    """Return the tensor of a variable, cast as Keras casts it."""
    tensor: Tensor = _keras().ops.convert_to_tensor(variable)
    return tensor


def _keras() -> Any:
    return sys.modules["keras"]


def _trial(layer: Any, draw: Draw) -> Results:
    width = 4 if layer.scale is None or layer.scale.ndim == 0 else layer.scale.shape[0]
    query, value, key = draw(2, 3, width), draw(2, M, 2), draw(2, M, width)
    lengths = trial_lengths(query).view(2, 1, 1)
    # (B, 1, Tv): releases before 3.12 apply (B, Tv) to the wrong dimension (keras#21483).
    taking_part = torch.arange(M, device=query.device) < lengths
    return layer.call(
        [query, value, key], mask=[None, taking_part], return_attention_scores=True
    ), layer.call([query, value, key], use_causal_mask=True)


def _why_not(layer: Any) -> str | None:
    backend = _keras().backend.backend()
    if backend != "torch":
        return f"Keras runs on {backend}: only its torch backend has torch's tensors"
    if not layer.built:
        return "it is not built yet: call it once before"
    return None


def _why_not_concat(layer: Any) -> str | None:
    if layer.score_mode != "concat":
        return f"score_mode is {layer.score_mode!r}: not additive attention"
    return _why_not(layer)


_ARGUMENTS = ("inputs", "mask", "training", "return_attention_scores", "use_causal_mask")
LIVE = (
    Live("keras", ("AdditiveAttention",), _ARGUMENTS, Additive, _trial, _why_not, method="call"),
    Live("keras-concat", ("Attention",), _ARGUMENTS, Concat, _trial, _why_not_concat, "call"),
)
