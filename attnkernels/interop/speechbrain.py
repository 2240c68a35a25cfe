"""SpeechBrain's ContentBasedAttention and LocationAwareAttention: one decoder state per call.

Projected keys, the mask and earlier weights stay in the attributes where SpeechBrain has them, for
``reset`` and for code that reads or reorders them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..nn import AdditiveAttention, LocationSensitiveAttention
from .core.attend import attend_again, beyond, project
from .core.convention import ANY_SCALE, Convention, Entry, linears, location
from .core.live import LENGTHS, Draw, Fused, Live, M, Results
from .core.located import attend_located

_LINEARS = linears("mlp_dec", "mlp_enc", "mlp_attn", query_bias=True, key_bias=True)
_LEFT = {"mlp_out.": "projects the context, after attention"}

# `scaling` is an argument of the constructor that no checkpoint records: give it as `scale`.
CONVENTIONS = {
    "speechbrain": Convention(
        "SpeechBrain, ContentBasedAttention", AdditiveAttention, _LINEARS, ANY_SCALE, left=_LEFT
    ),
    "speechbrain-location": Convention(
        "SpeechBrain, LocationAwareAttention",
        LocationSensitiveAttention,
        (
            *_LINEARS,
            *location("conv_loc", "mlp_loc"),
            Entry("query_proj.bias", ("mlp_loc.bias",)),
        ),
        {**ANY_SCALE, "cumulative": False, "initial": "uniform", "detach_weights": True},
        left=_LEFT,
    ),
}


class Content(Fused):
    """ContentBasedAttention: the context after ``mlp_out``, and the weights."""

    scoring = staticmethod(lambda module: (module.mlp_attn,))

    def forward(
        self, enc_states: Tensor, enc_len: Tensor, dec_states: Tensor
    ) -> tuple[Tensor, Tensor]:
        _prepare(self, enc_states, enc_len)
        context, weights = attend_again(
            self,
            self.mlp_dec(dec_states),
            self.precomputed_enc_h,
            enc_states,
            self.mlp_attn,
            mask=self.mask,
            lengths=lambda: (self.mask != 0).sum(1),
            scale=self.scaling,
        )
        return self.mlp_out(context), weights


class Location(Fused):
    """LocationAwareAttention: as `Content`; ``prev_attn`` is detached, as in SpeechBrain."""

    scoring = staticmethod(lambda module: (module.mlp_attn,))

    def forward(
        self, enc_states: Tensor, enc_len: Tensor, dec_states: Tensor
    ) -> tuple[Tensor, Tensor]:
        if _prepare(self, enc_states, enc_len):
            share = torch.where(enc_len > 0, 1 / enc_len.float(), 0.0)  # SpeechBrain's has 0 / 0
            self.prev_attn = self.mask * share.unsqueeze(1)
        context, weights = attend_located(
            self.mlp_dec(dec_states),
            self.precomputed_enc_h,
            enc_states,
            self.mlp_attn,
            features=self.conv_loc(self.prev_attn.unsqueeze(1)).transpose(1, 2),
            projection=self.mlp_loc,
            taking_part=self.mask != 0,
            lengths=lambda: (self.mask != 0).sum(1),
            scale=self.scaling,
        )
        self.prev_attn = weights.detach()
        return self.mlp_out(context), weights


def _prepare(module: Any, enc_states: Tensor, enc_len: Tensor) -> bool:
    """Set the keys and the mask at the first step after ``reset``. Return False at later steps."""
    if module.precomputed_enc_h is not None:
        return False
    module.precomputed_enc_h = project(module.mlp_enc, enc_states)
    lengths = enc_len.to(enc_states.device)
    module.mask = (~beyond(lengths, enc_states.shape[1])).to(enc_len.dtype)
    return True


def _trial(module: Any, draw: Draw) -> Results:
    module.reset()
    frames = draw(2, M, module.mlp_enc.in_features)
    lengths = torch.tensor(LENGTHS, dtype=frames.dtype, device=frames.device)
    states = [draw(2, module.mlp_dec.in_features) for _ in range(2)]
    return [module.forward(frames, lengths, state) for state in states]


_ARGUMENTS = ("enc_states", "enc_len", "dec_states")
LIVE = (
    Live("speechbrain", ("ContentBasedAttention",), _ARGUMENTS, Content, _trial),
    Live("speechbrain-location", ("LocationAwareAttention",), _ARGUMENTS, Location, _trial),
)
