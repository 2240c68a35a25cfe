"""Attention modules of speech recognisers, as plain PyTorch from their documented formulas.

Each has its library's class name, parameters, attributes, arguments and results; a namespace stands
for the library. They are what `replace_attention` finds in a model, without the library.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def padding(lengths: Any, m: int) -> Tensor:
    """bool (B, m), True beyond the lengths, which are a list or a tensor."""
    return torch.arange(m) >= torch.as_tensor(lengths).unsqueeze(1)


def weigh(scores: Tensor, padded: Tensor | None, values: Tensor) -> tuple[Tensor, Tensor]:
    """Context and weights of scores (B, m) and values (B, m, .)."""
    if padded is not None:
        scores = scores.masked_fill(padded, -torch.inf)
    weights = scores.softmax(-1)
    return (weights.unsqueeze(1) @ values).squeeze(1), weights


class SpeechBrain:
    class ContentBasedAttention(nn.Module):
        def __init__(self, enc_dim, dec_dim, attn_dim, output_dim, scaling=1.0) -> None:
            super().__init__()
            self.mlp_enc = nn.Linear(enc_dim, attn_dim)
            self.mlp_dec = nn.Linear(dec_dim, attn_dim)
            self.mlp_attn = nn.Linear(attn_dim, 1, bias=False)
            self.mlp_out = nn.Linear(enc_dim, output_dim)
            self.scaling = scaling
            self.reset()

        def reset(self) -> None:
            self.enc_len = self.precomputed_enc_h = self.mask = None

        def added(self) -> Tensor | float:
            return 0.0

        def start(self, enc_len: Tensor) -> None:
            pass

        def finish(self, weights: Tensor) -> None:
            pass

        def forward(self, enc_states, enc_len, dec_states):
            if self.precomputed_enc_h is None:
                self.precomputed_enc_h = self.mlp_enc(enc_states)
                self.mask = (~padding(enc_len, enc_states.shape[1])).to(enc_len.dtype)
                self.start(enc_len)
            hidden = self.precomputed_enc_h + self.mlp_dec(dec_states).unsqueeze(1) + self.added()
            scores = self.mlp_attn(hidden.tanh()).squeeze(-1) * self.scaling
            context, weights = weigh(scores, self.mask == 0, enc_states)
            self.finish(weights)
            return self.mlp_out(context), weights

    class LocationAwareAttention(ContentBasedAttention):
        def __init__(self, enc_dim, dec_dim, attn_dim, output_dim, channels, kernel, scaling=1.0):
            super().__init__(enc_dim, dec_dim, attn_dim, output_dim, scaling)
            size = 2 * kernel + 1
            self.conv_loc = nn.Conv1d(1, channels, size, padding=kernel, bias=False)
            self.mlp_loc = nn.Linear(channels, attn_dim)

        def reset(self) -> None:
            super().reset()
            self.prev_attn = None

        def start(self, enc_len: Tensor) -> None:
            self.prev_attn = self.mask * (1 / enc_len.float()).unsqueeze(1)

        def finish(self, weights: Tensor) -> None:
            self.prev_attn = weights.detach()

        def added(self) -> Tensor:
            return self.mlp_loc(self.conv_loc(self.prev_attn.unsqueeze(1)).mT)

        def forward(self, enc_states, enc_len, dec_states):
            return super().forward(enc_states, enc_len, dec_states)


class Espnet:
    class AttAdd(nn.Module):
        def __init__(self, eprojs, dunits, att_dim, han_mode=False) -> None:
            super().__init__()
            self.mlp_enc = nn.Linear(eprojs, att_dim)
            self.mlp_dec = nn.Linear(dunits, att_dim, bias=False)
            self.gvec = nn.Linear(att_dim, 1)
            self.dunits, self.eprojs, self.att_dim, self.han_mode = (
                dunits,
                eprojs,
                att_dim,
                han_mode,
            )
            self.reset()

        def reset(self) -> None:
            self.h_length = self.enc_h = self.pre_compute_enc_h = self.mask = None

        def step(self, frames, lengths, dec_z, added, scaling):
            """`added` makes what is added to the keys, when the mask is there."""
            if self.pre_compute_enc_h is None or self.han_mode:
                self.enc_h, self.h_length = frames, frames.shape[1]
                self.pre_compute_enc_h = self.mlp_enc(frames)
            if self.mask is None:
                self.mask = padding(lengths, frames.shape[1])
            if dec_z is None:
                dec_z = frames.new_zeros(frames.shape[0], self.dunits)
            hidden = self.pre_compute_enc_h + self.mlp_dec(dec_z).unsqueeze(1) + added()
            return weigh(scaling * self.gvec(hidden.tanh()).squeeze(2), self.mask, self.enc_h)

        def uniform(self) -> Tensor:
            part = (~self.mask).to(self.enc_h.dtype)
            return part / part.sum(1, keepdim=True)

        def forward(self, enc_hs_pad, enc_hs_len, dec_z, att_prev, scaling=2.0):
            return self.step(enc_hs_pad, enc_hs_len, dec_z, lambda: 0.0, scaling)

    class AttLoc(AttAdd):
        def __init__(self, eprojs, dunits, att_dim, aconv_chans, aconv_filts, han_mode=False):
            super().__init__(eprojs, dunits, att_dim, han_mode)
            self.mlp_att = nn.Linear(aconv_chans, att_dim, bias=False)
            size, pad = (1, 2 * aconv_filts + 1), (0, aconv_filts)
            self.loc_conv = nn.Conv2d(1, aconv_chans, size, padding=pad, bias=False)

        def forward(
            self,
            enc_hs_pad,
            enc_hs_len,
            dec_z,
            att_prev,
            scaling=2.0,
            last_attended_idx=None,
            backward_window=1,
            forward_window=3,
        ):
            def added():
                nonlocal att_prev
                att_prev = self.uniform() if att_prev is None else att_prev
                seen = self.loc_conv(att_prev[:, None, None])
                return self.mlp_att(seen.squeeze(2).mT)

            if last_attended_idx is None:
                return self.step(enc_hs_pad, enc_hs_len, dec_z, added, scaling)
            whole = self.mask = padding(enc_hs_len, enc_hs_pad.shape[1])
            away = torch.arange(enc_hs_pad.shape[1]) - last_attended_idx
            self.mask = whole | (away < -backward_window) | (away >= forward_window)
            results = self.step(enc_hs_pad, enc_hs_len, dec_z, added, scaling)
            self.mask = whole
            return results

    class AttCov(AttAdd):
        def __init__(self, eprojs, dunits, att_dim, han_mode=False) -> None:
            super().__init__(eprojs, dunits, att_dim, han_mode)
            self.wvec = nn.Linear(1, att_dim)

        def forward(self, enc_hs_pad, enc_hs_len, dec_z, att_prev_list, scaling=2.0):
            def added():
                nonlocal att_prev_list
                att_prev_list = [self.uniform()] if att_prev_list is None else att_prev_list
                return self.wvec(torch.stack(att_prev_list).sum(0).unsqueeze(-1))

            context, weights = self.step(enc_hs_pad, enc_hs_len, dec_z, added, scaling)
            att_prev_list.append(weights)
            return context, att_prev_list

    class AttMultiHeadAdd(nn.Module):
        def __init__(self, eprojs, dunits, aheads, att_dim_k, att_dim_v, han_mode=False) -> None:
            super().__init__()

            def layers(ins: int, outs: int, bias: bool) -> nn.ModuleList:
                return nn.ModuleList(nn.Linear(ins, outs, bias=bias) for _ in range(aheads))

            self.mlp_q, self.mlp_k = (
                layers(dunits, att_dim_k, True),
                layers(eprojs, att_dim_k, False),
            )
            self.mlp_v, self.gvec = layers(eprojs, att_dim_v, False), layers(att_dim_k, 1, True)
            self.mlp_o = nn.Linear(aheads * att_dim_v, eprojs, bias=False)
            self.dunits, self.eprojs, self.aheads, self.han_mode = dunits, eprojs, aheads, han_mode
            self.att_dim_k, self.att_dim_v, self.scaling = att_dim_k, att_dim_v, att_dim_k**-0.5
            self.reset()

        def reset(self) -> None:
            self.h_length = self.enc_h = self.mask = None
            self.pre_compute_k = self.pre_compute_v = None

        def forward(self, enc_hs_pad, enc_hs_len, dec_z, att_prev):
            if self.pre_compute_k is None or self.pre_compute_v is None or self.han_mode:
                self.enc_h, self.h_length = enc_hs_pad, enc_hs_pad.shape[1]
                self.pre_compute_k = [layer(enc_hs_pad) for layer in self.mlp_k]
                self.pre_compute_v = [layer(enc_hs_pad) for layer in self.mlp_v]
            if self.mask is None:
                self.mask = padding(enc_hs_len, enc_hs_pad.shape[1])
            if dec_z is None:
                dec_z = enc_hs_pad.new_zeros(enc_hs_pad.shape[0], self.dunits)
            contexts, weights = [], []
            heads = zip(self.mlp_q, self.gvec, self.pre_compute_k, self.pre_compute_v, strict=True)
            for mlp_q, gvec, keys, values in heads:
                scores = gvec((keys + mlp_q(dec_z).unsqueeze(1)).tanh()).squeeze(2)
                context, weight = weigh(self.scaling * scores, self.mask, values)
                contexts.append(context)
                weights.append(weight)
            return self.mlp_o(torch.cat(contexts, 1)), weights


class Fairseq:
    class LocationAttention(nn.Module):
        def __init__(
            self, attn_dim, encoder_dim, decoder_dim, states, conv_dim, kernel, scaling=2.0
        ) -> None:
            super().__init__()
            self.attn_dim, self.decoder_dim, self.scaling = attn_dim, decoder_dim, scaling
            self.proj_enc = nn.Linear(encoder_dim, attn_dim)
            self.proj_dec = nn.Linear(decoder_dim, attn_dim, bias=False)
            self.proj_attn = nn.Linear(conv_dim, attn_dim, bias=False)
            self.conv = nn.Conv1d(states, conv_dim, 2 * kernel + 1, padding=kernel, bias=False)
            self.proj_out = nn.Sequential(nn.Tanh(), nn.Linear(attn_dim, 1))
            self.proj_enc_out = None

        def clear_cache(self) -> None:
            self.proj_enc_out = None

        def forward(self, encoder_out, encoder_padding_mask, decoder_h, attn_state):
            if self.proj_enc_out is None:
                self.proj_enc_out = self.proj_enc(encoder_out)
            if decoder_h is None:
                decoder_h = encoder_out.new_zeros(encoder_out.shape[0], self.decoder_dim)
            hidden = self.proj_enc_out + self.proj_dec(decoder_h).unsqueeze(1)
            hidden = hidden + self.proj_attn(self.conv(attn_state).mT)
            scores = self.scaling * self.proj_out(hidden).squeeze(2)
            return weigh(scores, encoder_padding_mask, encoder_out)
