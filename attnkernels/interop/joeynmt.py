"""JoeyNMT's BahdanauAttention, whose caller has it project the keys before the first step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..functional.attention import additive_attention
from ..nn import AdditiveAttention
from .core.attend import beyond, once, project, vector
from .core.convention import PLAIN, Convention, linears
from .core.live import Draw, Fused, Live, M, Results, trial_lengths

CONVENTIONS = {
    "joeynmt": Convention(
        "JoeyNMT, BahdanauAttention",
        AdditiveAttention,
        linears("query_layer", "key_layer", "energy_layer"),
        PLAIN,
    )
}


class Bahdanau(Fused):
    """BahdanauAttention: the context (B, 1, dv) and weights (B, 1, m)."""

    scoring = staticmethod(lambda module: (module.energy_layer,))

    def compute_proj_keys(self, keys: Tensor) -> None:
        self.proj_keys = project(self.key_layer, keys)

    def forward(self, query: Tensor, mask: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self._check_input_shapes_forward(query=query, mask=mask, values=values)
        assert self.proj_keys is not None, "projection keys have to get pre-computed"
        self.compute_proj_query(query)
        context, weights = additive_attention(
            self.proj_query,
            once(self.proj_keys, query),
            once(values, query),
            vector(self.energy_layer),
            attn_mask=mask > 0,
            return_weights=True,
        )
        return context, weights


def _trial(module: Any, draw: Draw) -> Results:
    memory = draw(2, M, module.key_layer.in_features)
    module.compute_proj_keys(memory)
    mask = ~beyond(trial_lengths(memory), M).unsqueeze(1)
    return module.forward(draw(2, 1, module.query_layer.in_features), mask, memory)


LIVE = (Live("joeynmt", ("BahdanauAttention",), ("query", "mask", "values"), Bahdanau, _trial),)
