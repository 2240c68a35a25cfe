"""Attention of SpeechBrain, ESPnet and fairseq's recognisers: one decoder state, one step.

Projected keys, masks and earlier weights stay in the attributes where the library has them, for
`reset` and for whoever else reads or reorders them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .core.live import Draw, Fused, Live, attend, attend_again, beyond


class SpeechBrainContent(Fused):
    """Results as ContentBasedAttention: context after ``mlp_out``, weights."""

    def forward(self: Any, enc_states: Tensor, enc_len: Tensor, dec_states: Tensor) -> Any:
        _speechbrain_keys(self, enc_states, enc_len)
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


class SpeechBrainLocation(Fused):
    """Results as LocationAwareAttention; ``prev_attn`` is detached, as there."""

    def forward(self: Any, enc_states: Tensor, enc_len: Tensor, dec_states: Tensor) -> Any:
        if _speechbrain_keys(self, enc_states, enc_len):
            self.prev_attn = self.mask * (1 / enc_len.float()).unsqueeze(1)
        location = self.mlp_loc(self.conv_loc(self.prev_attn.unsqueeze(1)).transpose(1, 2))
        context, weights = attend(
            self.mlp_dec(dec_states),
            self.precomputed_enc_h + location,
            enc_states,
            self.mlp_attn.weight[0],
            taking_part=self.mask != 0,
            scale=self.scaling,
        )
        self.prev_attn = weights.detach()
        return self.mlp_out(context), weights


def _speechbrain_keys(self: Any, enc_states: Tensor, enc_len: Tensor) -> bool:
    """Keys and mask of the first step after `reset`; False at later ones."""
    if self.precomputed_enc_h is not None:
        return False
    self.precomputed_enc_h = self.mlp_enc(enc_states)
    lengths = enc_len.to(enc_states.device)
    self.mask = (~beyond(lengths, enc_states.shape[1])).to(enc_len.dtype)
    return True


class EspnetAdd(Fused):
    """Results as AttAdd: context, weights."""

    def forward(
        self: Any,
        enc_hs_pad: Tensor,
        enc_hs_len: Any,
        dec_z: Any,
        att_prev: Any,
        scaling: Any = 2.0,
    ) -> Any:
        dec_z = _espnet_step(self, enc_hs_pad, enc_hs_len, dec_z)
        return attend_again(
            self,
            self.mlp_dec(dec_z),
            self.pre_compute_enc_h,
            self.enc_h,
            self.gvec,
            mask=self.mask,
            lengths=lambda: (~self.mask).sum(1),
            scale=scaling,
        )


class EspnetLocation(Fused):
    """Results as AttLoc: context, weights; with a window of frames AttLoc itself."""

    def forward(
        self: Any,
        enc_hs_pad: Tensor,
        enc_hs_len: Any,
        dec_z: Any,
        att_prev: Any,
        scaling: float = 2.0,
        last_attended_idx: Any = None,
        **window: Any,
    ) -> Any:
        if last_attended_idx is not None:
            return super().forward(  # type: ignore[misc]
                enc_hs_pad, enc_hs_len, dec_z, att_prev, scaling, last_attended_idx, **window
            )
        dec_z = _espnet_step(self, enc_hs_pad, enc_hs_len, dec_z)
        if att_prev is None:
            att_prev = _uniform(self.mask, dec_z)
        batch, frames = self.mask.shape
        seen = self.loc_conv(att_prev.view(batch, 1, 1, frames)).squeeze(2).transpose(1, 2)
        return _espnet_attend(self, dec_z, self.mlp_att(seen), scaling)


class EspnetCoverage(Fused):
    """Results as AttCov: context, and the list of all weights, to which these are added."""

    def forward(
        self: Any,
        enc_hs_pad: Tensor,
        enc_hs_len: Any,
        dec_z: Any,
        att_prev_list: Any,
        scaling: float = 2.0,
    ) -> Any:
        dec_z = _espnet_step(self, enc_hs_pad, enc_hs_len, dec_z)
        if att_prev_list is None:
            att_prev_list = [_uniform(self.mask, dec_z)]
        covered = self.wvec(sum(att_prev_list).unsqueeze(-1))
        context, weights = _espnet_attend(self, dec_z, covered, scaling)
        att_prev_list += [weights]
        return context, att_prev_list


class EspnetHeads(Fused):
    """Results as AttMultiHeadAdd: context after ``mlp_o``, a list of each head's weights."""

    def forward(self: Any, enc_hs_pad: Tensor, enc_hs_len: Any, dec_z: Any, att_prev: Any) -> Any:
        if self.pre_compute_k is None or self.pre_compute_v is None or self.han_mode:
            self.enc_h, self.h_length = enc_hs_pad, enc_hs_pad.size(1)
            self.pre_compute_k = [project(enc_hs_pad) for project in self.mlp_k]
            self.pre_compute_v = [project(enc_hs_pad) for project in self.mlp_v]
        dec_z = _espnet_query(self, enc_hs_pad, enc_hs_len, dec_z)
        contexts, weights = [], []
        for head in range(self.aheads):
            context, w = attend(
                self.mlp_q[head](dec_z),
                self.pre_compute_k[head],
                self.pre_compute_v[head],
                self.gvec[head].weight[0],
                taking_part=~self.mask,
                scale=self.scaling,
            )
            contexts.append(context)
            weights.append(w)
        return self.mlp_o(torch.cat(contexts, 1)), weights


def _espnet_step(self: Any, enc_hs_pad: Tensor, enc_hs_len: Any, dec_z: Any) -> Tensor:
    """Keys of the first step after `reset` (of every one in han_mode), and the query."""
    if self.pre_compute_enc_h is None or self.han_mode:
        self.enc_h, self.h_length = enc_hs_pad, enc_hs_pad.size(1)
        self.pre_compute_enc_h = self.mlp_enc(enc_hs_pad)
    return _espnet_query(self, enc_hs_pad, enc_hs_len, dec_z)


def _espnet_query(self: Any, enc_hs_pad: Tensor, enc_hs_len: Any, dec_z: Any) -> Tensor:
    if self.mask is None:
        lengths = torch.as_tensor(enc_hs_len, device=enc_hs_pad.device)
        self.mask = beyond(lengths, enc_hs_pad.size(1))
    batch = enc_hs_pad.size(0)
    if dec_z is None:
        return enc_hs_pad.new_zeros(batch, self.dunits)
    return dec_z.view(batch, self.dunits)


def _espnet_attend(self: Any, dec_z: Tensor, added: Tensor, scaling: float) -> Any:
    return attend(
        self.mlp_dec(dec_z),
        self.pre_compute_enc_h + added,
        self.enc_h,
        self.gvec.weight[0],
        taking_part=~self.mask,
        scale=scaling,
    )


def _uniform(padded: Tensor, like: Tensor) -> Tensor:
    """1 / length at every frame of a sequence, 0 beyond."""
    part = (~padded).to(like)
    return part / part.sum(1, keepdim=True)


class FairseqLocation(Fused):
    """Results as LocationAttention: context, weights."""

    def forward(
        self: Any,
        encoder_out: Tensor,
        encoder_padding_mask: Tensor,
        decoder_h: Any,
        attn_state: Any,
    ) -> Any:
        if self.proj_enc_out is None:
            self.proj_enc_out = self.proj_enc(encoder_out)
        if decoder_h is None:
            decoder_h = encoder_out.new_zeros(encoder_out.size(0), self.decoder_dim)
        location = self.proj_attn(self.conv(attn_state).transpose(1, 2))
        return attend(
            self.proj_dec(decoder_h),
            self.proj_enc_out + location,
            encoder_out,
            self.proj_out[1].weight[0],
            taking_part=~encoder_padding_mask,
            scale=self.scaling,
        )


FRAMES, LENGTHS = 5, (5, 3)


def _two_steps(module: Any, draw: Draw, encoder: int, decoder: int) -> Any:
    """Two calls of SpeechBrain's."""
    module.reset()
    frames = draw(2, FRAMES, encoder)
    lengths = torch.tensor(LENGTHS, dtype=frames.dtype, device=frames.device)
    return [module.forward(frames, lengths, draw(2, decoder)) for _ in range(2)]


def _speechbrain_trial(module: Any, draw: Draw) -> Any:
    return _two_steps(module, draw, module.mlp_enc.in_features, module.mlp_dec.in_features)


def _espnet_trial(module: Any, draw: Draw) -> Any:
    module.reset()
    frames, weights, results = draw(2, FRAMES, module.eprojs), None, []
    for _ in range(2):
        context, weights = module.forward(frames, list(LENGTHS), draw(2, module.dunits), weights)
        results += [context, *weights] if isinstance(weights, list) else [context, weights]
    return results


def _fairseq_trial(module: Any, draw: Draw) -> Any:
    module.clear_cache()
    frames = draw(2, FRAMES, module.proj_enc.in_features)
    padded = beyond(torch.tensor(LENGTHS, device=frames.device), FRAMES)
    state = draw(2, module.conv.in_channels, FRAMES)
    return module.forward(frames, padded, draw(2, module.decoder_dim), state)


_ESPNET = ("enc_hs_pad", "enc_hs_len", "dec_z", "att_prev")
_SPEECHBRAIN = ("enc_states", "enc_len", "dec_states")

LIVE = (
    Live(
        "speechbrain",
        ("ContentBasedAttention",),
        _SPEECHBRAIN,
        SpeechBrainContent,
        _speechbrain_trial,
    ),
    Live(
        "speechbrain-location",
        ("LocationAwareAttention",),
        _SPEECHBRAIN,
        SpeechBrainLocation,
        _speechbrain_trial,
    ),
    Live("espnet-add", ("AttAdd",), (*_ESPNET, "scaling"), EspnetAdd, _espnet_trial),
    Live("espnet-loc", ("AttLoc",), (*_ESPNET, "scaling"), EspnetLocation, _espnet_trial),
    Live(
        "espnet-cov",
        ("AttCov",),
        (*_ESPNET[:3], "att_prev_list", "scaling"),
        EspnetCoverage,
        _espnet_trial,
    ),
    Live("espnet-heads", ("AttMultiHeadAdd",), _ESPNET, EspnetHeads, _espnet_trial),
    Live(
        "fairseq-location",
        ("LocationAttention",),
        ("encoder_out", "encoder_padding_mask", "decoder_h", "attn_state"),
        FairseqLocation,
        _fairseq_trial,
    ),
)
