"""Attention of the captioning tutorial of Show, Attend and Tell, which scores with ReLU."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..nn import AdditiveAttention
from .core.attend import attend, project
from .core.convention import PLAIN, Convention, linears
from .core.live import Draw, Fused, Live, M, Results

CONVENTIONS = {
    "captioning": Convention(
        "the captioning tutorial of Show, Attend and Tell, Attention",
        AdditiveAttention,
        linears("decoder_att", "encoder_att", "full_att", query_bias=True, key_bias=True),
        {**PLAIN, "activation": "relu"},
        cancels=("full_att.bias",),
    )
}


class Attention(Fused):
    """The tutorial's Attention: the context and the weights."""

    scoring = staticmethod(lambda module: (module.full_att,))

    def forward(self, encoder_out: Tensor, decoder_hidden: Tensor) -> tuple[Tensor, Tensor]:
        return attend(
            self.decoder_att(decoder_hidden),
            project(self.encoder_att, encoder_out),
            encoder_out,
            self.full_att,
            activation="relu",
            summed=True,
        )


def _trial(module: Any, draw: Draw) -> Results:
    pixels = draw(2, M, module.encoder_att.in_features)
    return module.forward(pixels, draw(2, module.decoder_att.in_features))


LIVE = (Live("captioning", ("Attention",), ("encoder_out", "decoder_hidden"), Attention, _trial),)
