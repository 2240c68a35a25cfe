"""ESPnet: AttAdd, AttLoc, AttCov and AttMultiHeadAdd."""

from __future__ import annotations

from typing import Any

import torch
from helpers.interop_load import (
    CHANNELS,
    CONV,
    VALUE,
    WIDTH,
    B,
    H,
    K,
    LoadCase,
    M,
    Q,
    Shapes,
    State,
    layer,
    layers,
    shapes,
    softmax,
    stepwise,
)
from helpers.interop_swap import A, D, E, Reorder, SwapCase, padding, weigh
from torch import Tensor, nn
from torch.nn import functional


class AttAdd(nn.Module):
    def __init__(self, eprojs, dunits, att_dim, han_mode=False) -> None:
        super().__init__()
        self.mlp_enc = nn.Linear(eprojs, att_dim)
        self.mlp_dec = nn.Linear(dunits, att_dim, bias=False)
        self.gvec = nn.Linear(att_dim, 1)
        self.dunits, self.eprojs = dunits, eprojs
        self.att_dim, self.han_mode = att_dim, han_mode
        self.reset()

    def reset(self) -> None:
        self.h_length = self.enc_h = self.pre_compute_enc_h = self.mask = None

    def step(self, frames, lengths, dec_z, added, scaling):
        """Take one step. ``added()`` returns the term added to the keys; it may read the mask."""
        if self.pre_compute_enc_h is None or self.han_mode:
            self.enc_h, self.h_length = frames, frames.shape[1]
            self.pre_compute_enc_h = self.mlp_enc(frames)
        if self.mask is None:
            self.mask = padding(lengths, frames.shape[1])
        if dec_z is None:
            dec_z = frames.new_zeros(frames.shape[0], self.dunits)
        hidden = self.pre_compute_enc_h + self.mlp_dec(dec_z).unsqueeze(1) + added()
        scores = scaling * self.gvec(hidden.tanh()).squeeze(2)
        return weigh(scores, self.mask, self.enc_h, summed=True)

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

        self.mlp_q, self.mlp_k = layers(dunits, att_dim_k, True), layers(eprojs, att_dim_k, False)
        self.mlp_v, self.gvec = layers(eprojs, att_dim_v, False), layers(att_dim_k, 1, True)
        self.mlp_o = nn.Linear(aheads * att_dim_v, eprojs, bias=False)
        self.dunits, self.eprojs, self.aheads, self.han_mode = dunits, eprojs, aheads, han_mode
        self.att_dim_k, self.att_dim_v, self.scaling = att_dim_k, att_dim_v, att_dim_k**-0.5
        self.reset()

    def reset(self) -> None:
        self.h_length = self.enc_h = self.mask = None
        self.pre_compute_k = self.pre_compute_v = None

    def forward(self, enc_hs_pad, enc_hs_len, dec_z, att_prev, **kwargs):
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
            context, weight = weigh(self.scaling * scores, self.mask, values, summed=True)
            contexts.append(context)
            weights.append(weight)
        return self.mlp_o(torch.cat(contexts, 1)), weights


def calls(module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder) -> list[Any]:
    module.reset()
    found, weights = [], None
    for i, state in enumerate((None, *states)):  # the first step has no state yet
        frames = memory * (1 + i) if module.han_mode else memory  # a new encoder at each step
        context, weights = module(frames, list(lengths), state, weights)
        found.append((context, weights))
        weights = reorder(module, weights)
    return found


def location(s: State, past: list[Tensor]) -> Tensor:
    seen = past[-1].view(B, 1, 1, M)
    seen = functional.conv2d(seen, s["loc_conv.weight"], padding=(0, WIDTH // 2))
    return layer(s, "mlp_att", seen.squeeze(2).mT)


def coverage(s: State, past: list[Tensor]) -> Tensor:
    return layer(s, "wvec", torch.stack(past).sum(0).unsqueeze(-1))


def heads_formula(s: State, queries: Tensor, keys: Tensor) -> Tensor:
    heads = sum(name.startswith("mlp_k.") for name in s)
    weights = []
    for h in range(heads):
        q = layer(s, f"mlp_q.{h}", queries).unsqueeze(2)
        hidden = torch.tanh(q + layer(s, f"mlp_k.{h}", keys).unsqueeze(1))
        scores = layer(s, f"gvec.{h}", hidden).squeeze(-1)
        weights.append(softmax(scores / (H // heads) ** 0.5))
    return torch.stack(weights, 1) if heads > 1 else weights[0]


def values(s: State, keys: Tensor) -> Tensor:
    return torch.cat([layer(s, n[: -len(".weight")], keys) for n in s if n[:5] == "mlp_v"], -1)


def head_shapes(heads: int) -> Shapes:
    d, names = H // heads, range(heads)
    made: Shapes = {f"mlp_q.{h}.weight": (d, Q) for h in names}
    made |= {f"mlp_q.{h}.bias": (d,) for h in names}
    made |= {f"mlp_k.{h}.weight": (d, K) for h in names}
    made |= {f"mlp_v.{h}.weight": (VALUE, K) for h in names}
    made |= {f"gvec.{h}.weight": (1, d) for h in names}
    made |= {f"gvec.{h}.bias": (1,) for h in names}
    return made | {"mlp_o.weight": (K, heads * VALUE)}


LAYERS = ("mlp_dec", "mlp_enc", "gvec")
LOADS = {
    "espnet-add": LoadCase(
        "espnet-add",
        {"scale": 2.0},
        shapes(*LAYERS, "mlp_enc gvec"),
        layers(*LAYERS, scale=2.0),
        cancelled=("gvec.bias",),
    ),
    "espnet-loc": LoadCase(
        "espnet-loc",
        CONV | {"initial": "uniform", "scale": 2.0},
        shapes(*LAYERS, "mlp_enc gvec")
        | {"loc_conv.weight": (CHANNELS, 1, 1, WIDTH), "mlp_att.weight": (H, CHANNELS)},
        stepwise(*LAYERS, location, uniform=True, scale=2.0),
        cancelled=("gvec.bias",),
    ),
    "espnet-cov": LoadCase(
        "espnet-cov",
        {"initial": "uniform", "scale": 2.0},
        shapes(*LAYERS, "mlp_enc gvec") | {"wvec.weight": (H, 1), "wvec.bias": (H,)},
        stepwise(*LAYERS, coverage, uniform=True, scale=2.0),
        cancelled=("gvec.bias",),
    ),
    "espnet-heads": LoadCase(
        "espnet-heads",
        {"num_heads": 2, "scale": (H // 2) ** -0.5},
        head_shapes(2),
        heads_formula,
        cancelled=("gvec.0.bias", "gvec.1.bias"),
        left=("mlp_v.0.weight", "mlp_v.1.weight", "mlp_o.weight"),
        values=values,
    ),
    "espnet-heads, one": LoadCase(
        "espnet-heads",
        {"scale": H**-0.5},
        head_shapes(1),
        heads_formula,
        cancelled=("gvec.0.bias",),
        left=("mlp_v.0.weight", "mlp_o.weight"),
        values=values,
    ),
}


CACHED = ("pre_compute_enc_h", "enc_h", "mask")
SWAPS = {
    "espnet-add": SwapCase(lambda: AttAdd(E, D, A), calls, "AttAdd", CACHED),
    "espnet-add, han": SwapCase(lambda: AttAdd(E, D, A, han_mode=True), calls, "AttAdd"),
    "espnet-loc": SwapCase(lambda: AttLoc(E, D, A, 3, 2), calls, "AttLoc", CACHED),
    "espnet-cov": SwapCase(lambda: AttCov(E, D, A), calls, "AttCov", CACHED),
    "espnet-heads": SwapCase(
        lambda: AttMultiHeadAdd(E, D, 2, 4, 3),
        calls,
        "AttMultiHeadAdd",
        ("pre_compute_k", "pre_compute_v", "enc_h", "mask"),
    ),
    "espnet-heads, han": SwapCase(
        lambda: AttMultiHeadAdd(E, D, 2, 4, 3, han_mode=True), calls, "AttMultiHeadAdd"
    ),
}
