"""OpenNMT-py's GlobalAttention("mlp")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..functional.attention import additive_attention
from ..nn import AdditiveAttention
from .core.attend import beyond, once, project, vector
from .core.convention import PLAIN, Convention, linears
from .core.live import Draw, Fused, Live, M, Results, trial_lengths

CONVENTIONS = {
    "opennmt": Convention(
        'OpenNMT-py, GlobalAttention(attn_type="mlp")',
        AdditiveAttention,
        linears("linear_query", "linear_context", "v", query_bias=True),
        PLAIN,
        left={
            "linear_out.": "projects the context and the query, after attention",
            "linear_cover.": "adds coverage to the memory, before attention",
        },
    )
}


class Mlp(Fused):
    """GlobalAttention("mlp"): its output after ``linear_out``, and the weights.

    A call with coverage is computed by GlobalAttention itself.
    """

    scoring = staticmethod(lambda module: (module.v,) if module.attn_type == "mlp" else ())

    def forward(
        self, src: Tensor, enc_out: Tensor, src_len: Tensor | None = None, coverage: Any = None
    ) -> tuple[Tensor, Tensor]:
        if coverage is not None:
            return super().forward(src, enc_out, src_len, coverage)
        one = src.dim() == 2
        src = src.unsqueeze(1) if one else src
        context, weights = additive_attention(
            self.linear_query(src),
            once(project(self.linear_context, enc_out), src),
            once(enc_out, src),
            vector(self.v),
            attn_mask=None if src_len is None else ~beyond(src_len, enc_out.size(1)).unsqueeze(1),
            return_weights=True,
        )
        attended = self.linear_out(torch.cat([context, src], 2))
        return (attended.squeeze(1), weights.squeeze(1)) if one else (attended, weights)


def _trial(module: Any, draw: Draw) -> Results:
    memory = draw(2, M, module.dim)
    return module.forward(draw(2, 3, module.dim), memory, trial_lengths(memory))


def _why_not(module: Any) -> str | None:
    if module.attn_type != "mlp":
        return f"attn_type is {module.attn_type!r}: not additive attention"
    if module.attn_func != "softmax":
        return f"attn_func is {module.attn_func!r}: only softmax is fused"
    return None


_ARGUMENTS = ("src", "enc_out", "src_len", "coverage")
LIVE = (Live("opennmt", ("GlobalAttention",), _ARGUMENTS, Mlp, _trial, _why_not),)
