"""BahdanauAttention of GNMT, as NVIDIA and MLPerf have it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..functional.attention import additive_attention
from ..nn import AdditiveAttention
from .core.attend import once, project
from .core.convention import ANY_NORMALIZE, Convention, Entry
from .core.live import Draw, Fused, Live, M, Results, trial_lengths

CONVENTIONS = {
    "gnmt": Convention(
        "MLPerf's and NVIDIA's GNMT, BahdanauAttention",
        AdditiveAttention,
        (
            Entry("query_proj.weight", ("linear_q.weight",)),
            Entry("key_proj.weight", ("linear_k.weight",)),
            Entry("weight", ("linear_att",)),
            Entry("gain", ("normalize_scalar",)),
            Entry("bias", ("normalize_bias",)),
        ),
        ANY_NORMALIZE,
    )
}


class Bahdanau(Fused):
    """BahdanauAttention: contexts and weights, batch or time first."""

    def forward(self, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        if not self.batch_first:
            keys = keys.transpose(0, 1)
            query = query.transpose(0, 1) if query.dim() == 3 else query
        one = query.dim() == 2
        q, weight = self.linear_q(query.unsqueeze(1) if one else query), self.linear_att
        if self.normalize:
            q = q + self.normalize_bias
            weight = weight / weight.norm() * self.normalize_scalar
        context, weights = additive_attention(
            q,
            once(project(self.linear_k, keys), q),
            once(keys, q),
            weight,
            attn_mask=None if self.mask is None else ~self.mask.unsqueeze(1),
            return_weights=True,
        )
        if one:
            return context.squeeze(1), weights.squeeze(1)
        if not self.batch_first:
            return context.transpose(0, 1), weights.transpose(0, 1)
        return context, weights


def _trial(module: Any, draw: Draw) -> Results:
    keys = draw(2, M, module.linear_k.in_features)
    queries = draw(2, 3, module.linear_q.in_features)
    if not module.batch_first:
        keys, queries = keys.transpose(0, 1), queries.transpose(0, 1)
    module.set_mask(trial_lengths(keys), keys)
    return module.forward(queries, keys)


LIVE = (Live("gnmt", ("BahdanauAttention",), ("query", "keys"), Bahdanau, _trial),)
