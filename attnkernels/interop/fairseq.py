"""fairseq's recognisers: MLPAttention of Berard's model, and LocationAttention."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..nn import AdditiveAttention, LocationSensitiveAttention
from .core.attend import attend, beyond, project
from .core.convention import ANY_SCALE, PLAIN, Convention, linears, location
from .core.live import Draw, Fused, Live, M, Results, trial_lengths

CONVENTIONS = {
    "fairseq": Convention(
        "fairseq's Berard speech model, MLPAttention",
        AdditiveAttention,
        linears("decoder_proj", "encoder_proj", "to_scores", key_bias=True),
        PLAIN,
    ),
    # The caller makes `attn_state` from the weights, and `scaling` is an argument of the
    # constructor: the module's own settings stand for both.
    "fairseq-location": Convention(
        "fairseq, LocationAttention",
        LocationSensitiveAttention,
        (
            *linears("proj_dec", "proj_enc", "proj_out.1", key_bias=True),
            *location("conv", "proj_attn"),
        ),
        ANY_SCALE,
        cancels=("proj_out.1.bias",),
    ),
}


class Mlp(Fused):
    """MLPAttention: the context (B, dv) and weights (m, B) of a source that comes time first."""

    scoring = staticmethod(lambda module: (module.to_scores,))

    def forward(
        self, decoder_state: Tensor, source_hids: Tensor, encoder_padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        memory = source_hids.transpose(0, 1)
        context, weights = attend(
            self.decoder_proj(decoder_state),
            project(self.encoder_proj, memory),
            memory,
            self.to_scores,
            taking_part=None if encoder_padding_mask is None else ~encoder_padding_mask.t(),
            summed=True,
        )
        return context, weights.t()


class Location(Fused):
    """LocationAttention: the context and the weights."""

    proj_enc_out: Tensor | None

    scoring = staticmethod(lambda module: (module.proj_out[1],))

    def forward(
        self,
        encoder_out: Tensor,
        encoder_padding_mask: Tensor,
        decoder_h: Tensor | None,
        attn_state: Tensor,
    ) -> tuple[Tensor, Tensor]:
        if self.proj_enc_out is None:
            self.proj_enc_out = project(self.proj_enc, encoder_out)
        if decoder_h is None:
            decoder_h = encoder_out.new_zeros(encoder_out.size(0), self.decoder_dim)
        location = self.proj_attn(self.conv(attn_state).transpose(1, 2))
        return attend(
            self.proj_dec(decoder_h),
            self.proj_enc_out + location,
            encoder_out,
            self.proj_out[1],
            taking_part=~encoder_padding_mask,
            scale=self.scaling,
            summed=True,
        )


def _mlp_trial(module: Any, draw: Draw) -> Results:
    memory = draw(M, 2, module.context_dim)
    padded = beyond(trial_lengths(memory), M).t()
    return module.forward(draw(2, module.decoder_proj.in_features), memory, padded)


def _location_trial(module: Any, draw: Draw) -> Results:
    module.clear_cache()
    frames = draw(2, M, module.proj_enc.in_features)
    padded = beyond(trial_lengths(frames), M)
    state = draw(2, module.conv.in_channels, M)
    return module.forward(frames, padded, draw(2, module.decoder_dim), state)


_MLP = ("decoder_state", "source_hids", "encoder_padding_mask")
_LOCATION = ("encoder_out", "encoder_padding_mask", "decoder_h", "attn_state")
LIVE = (
    Live("fairseq", ("MLPAttention",), _MLP, Mlp, _mlp_trial),
    Live("fairseq-location", ("LocationAttention",), _LOCATION, Location, _location_trial),
)
