"""ESPnet's AttAdd, AttLoc, AttCov and AttMultiHeadAdd: one decoder state per call.

Projected keys and the mask stay in the attributes where ESPnet has them, for ``reset`` and for code
that reads or reorders them. ESPnet multiplies the scores of the first three by 2 and those of each
head by 1 / sqrt(d), which no checkpoint records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import AdditiveAttention, CoverageAttention, LocationSensitiveAttention
from .core.attend import attend, attend_again, beyond, project
from .core.convention import CONV2D, HEADS, PLAIN, Convention, Entry, linears, location
from .core.live import LENGTHS, Draw, Fused, Live, M, Results
from .core.located import attend_located

Lengths = Tensor | Sequence[int]

_LINEARS = linears("mlp_dec", "mlp_enc", "gvec", key_bias=True)
_DOUBLED = {**PLAIN, "scale": 2.0}

CONVENTIONS = {
    "espnet-add": Convention(
        "ESPnet, AttAdd", AdditiveAttention, _LINEARS, _DOUBLED, cancels=("gvec.bias",)
    ),
    "espnet-loc": Convention(
        "ESPnet, AttLoc",
        LocationSensitiveAttention,
        (*_LINEARS, *location("loc_conv", "mlp_att", CONV2D)),
        {**_DOUBLED, "cumulative": False, "initial": "uniform", "detach_weights": False},
        cancels=("gvec.bias",),
    ),
    "espnet-cov": Convention(
        "ESPnet, AttCov",
        CoverageAttention,
        (
            *_LINEARS,
            Entry("coverage_proj.weight", ("wvec.weight",)),
            Entry("query_proj.bias", ("wvec.bias",)),
        ),
        {**_DOUBLED, "initial": "uniform"},
        cancels=("gvec.bias",),
    ),
    # Each head attends to values of its own, which the caller projects and passes as `value`.
    "espnet-heads": Convention(
        "ESPnet, AttMultiHeadAdd",
        AdditiveAttention,
        (
            Entry("query_proj.weight", ("mlp_q.{}.weight",), HEADS),
            Entry("query_proj.bias", ("mlp_q.{}.bias",), HEADS),
            Entry("key_proj.weight", ("mlp_k.{}.weight",), HEADS),
            Entry("weight", ("gvec.{}.weight",), HEADS),
        ),
        {
            "activation": "tanh",
            "normalize": False,
            "scale": lambda module: (module.hidden_dim // module.num_heads) ** -0.5,
        },
        heads=True,
        cancels=("gvec.{}.bias",),
        left={
            "mlp_v.": "projects the values, before attention",
            "mlp_o.": "projects the contexts, after attention",
        },
    ),
}


class Add(Fused):
    """AttAdd: the context and the weights."""

    scoring = staticmethod(lambda module: (module.gvec,))

    def forward(
        self, enc_hs_pad: Tensor, enc_hs_len: Lengths, dec_z: Any, att_prev: Any, scaling: Any = 2.0
    ) -> tuple[Tensor, Tensor]:
        dec_z = _step(self, enc_hs_pad, enc_hs_len, dec_z)
        return attend_again(
            self,
            self.mlp_dec(dec_z),
            self.pre_compute_enc_h,
            self.enc_h,
            self.gvec,
            mask=self.mask,
            lengths=lambda: (~self.mask).sum(1),
            scale=scaling,
            summed=True,
        )


class Location(Fused):
    """AttLoc: the context and the weights. A window of frames is computed by AttLoc itself."""

    scoring = staticmethod(lambda module: (module.gvec,))

    def forward(
        self,
        enc_hs_pad: Tensor,
        enc_hs_len: Lengths,
        dec_z: Tensor | None,
        att_prev: Tensor | None,
        scaling: float = 2.0,
        last_attended_idx: int | None = None,
        **window: Any,
    ) -> tuple[Tensor, Tensor]:
        if last_attended_idx is not None:
            return super().forward(
                enc_hs_pad, enc_hs_len, dec_z, att_prev, scaling, last_attended_idx, **window
            )
        dec_z = _step(self, enc_hs_pad, enc_hs_len, dec_z)
        if att_prev is None:
            att_prev = _uniform(self.mask, dec_z)
        batch, frames = self.mask.shape
        seen = self.loc_conv(att_prev.view(batch, 1, 1, frames)).squeeze(2).transpose(1, 2)
        return _attend(self, dec_z, seen, self.mlp_att, scaling)


class Coverage(Fused):
    """AttCov: the context and the list of all weights, to which those of this step are added."""

    scoring = staticmethod(lambda module: (module.gvec,))

    def forward(
        self,
        enc_hs_pad: Tensor,
        enc_hs_len: Lengths,
        dec_z: Tensor | None,
        att_prev_list: list[Tensor] | None,
        scaling: float = 2.0,
    ) -> tuple[Tensor, list[Tensor]]:
        dec_z = _step(self, enc_hs_pad, enc_hs_len, dec_z)
        if att_prev_list is None:
            att_prev_list = [_uniform(self.mask, dec_z)]
        total: Any = sum(att_prev_list)
        context, weights = _attend(self, dec_z, total.unsqueeze(-1), self.wvec, scaling)
        att_prev_list += [weights]
        return context, att_prev_list


class Heads(Fused):
    """AttMultiHeadAdd: the context after ``mlp_o``, and a list of each head's weights."""

    pre_compute_k: list[Tensor] | None
    pre_compute_v: list[Tensor] | None

    scoring = staticmethod(lambda module: tuple(module.gvec))

    def forward(
        self, enc_hs_pad: Tensor, enc_hs_len: Lengths, dec_z: Tensor | None, att_prev: Any, **_: Any
    ) -> tuple[Tensor, list[Tensor]]:
        if self.pre_compute_k is None or self.pre_compute_v is None or self.han_mode:
            self.enc_h, self.h_length = enc_hs_pad, enc_hs_pad.size(1)
            self.pre_compute_k = [project(layer, enc_hs_pad) for layer in self.mlp_k]
            self.pre_compute_v = [project(layer, enc_hs_pad) for layer in self.mlp_v]
        dec_z = _query(self, enc_hs_pad, enc_hs_len, dec_z)
        contexts, weights = [], []
        for head in range(self.aheads):
            context, w = attend(
                self.mlp_q[head](dec_z),
                self.pre_compute_k[head],
                self.pre_compute_v[head],
                self.gvec[head],
                taking_part=~self.mask,
                scale=self.scaling,
                summed=True,
            )
            contexts.append(context)
            weights.append(w)
        return self.mlp_o(torch.cat(contexts, 1)), weights


def _step(module: Any, enc_hs_pad: Tensor, enc_hs_len: Lengths, dec_z: Tensor | None) -> Tensor:
    """Set the keys at the first step after ``reset``, or at each in han_mode; return the query."""
    if module.pre_compute_enc_h is None or module.han_mode:
        module.enc_h, module.h_length = enc_hs_pad, enc_hs_pad.size(1)
        module.pre_compute_enc_h = project(module.mlp_enc, enc_hs_pad)
    return _query(module, enc_hs_pad, enc_hs_len, dec_z)


def _query(module: Any, enc_hs_pad: Tensor, enc_hs_len: Lengths, dec_z: Tensor | None) -> Tensor:
    """Set the mask at the first step after ``reset``; return the query, (B, dunits)."""
    if module.mask is None:
        lengths = torch.as_tensor(enc_hs_len, device=enc_hs_pad.device)
        module.mask = beyond(lengths, enc_hs_pad.size(1))
    batch = enc_hs_pad.size(0)
    if dec_z is None:
        return enc_hs_pad.new_zeros(batch, module.dunits)
    return dec_z.view(batch, module.dunits)


def _attend(
    module: Any, dec_z: Tensor, features: Tensor, projection: nn.Module, scaling: float
) -> tuple[Tensor, Tensor]:
    return attend_located(
        module.mlp_dec(dec_z),
        module.pre_compute_enc_h,
        module.enc_h,
        module.gvec,
        features=features,
        projection=projection,
        taking_part=~module.mask,
        lengths=lambda: (~module.mask).sum(1),
        scale=scaling,
        summed=True,
    )


def _uniform(padded: Tensor, like: Tensor) -> Tensor:
    """Return weights of 1 / length within each sequence and 0 beyond. A length may be 0."""
    part = (~padded).to(like)
    return part / part.sum(1, keepdim=True).clamp(min=1)


def _trial(module: Any, draw: Draw) -> Results:
    module.reset()
    results: list[Tensor] = []
    frames, weights = draw(2, M, module.eprojs), None
    for _ in range(2):
        context, weights = module.forward(frames, list(LENGTHS), draw(2, module.dunits), weights)
        results += [context, *weights] if isinstance(weights, list) else [context, weights]
    return results


_ARGUMENTS = ("enc_hs_pad", "enc_hs_len", "dec_z", "att_prev")
_COVERAGE = (*_ARGUMENTS[:3], "att_prev_list", "scaling")
LIVE = (
    Live("espnet-add", ("AttAdd",), (*_ARGUMENTS, "scaling"), Add, _trial),
    Live("espnet-loc", ("AttLoc",), (*_ARGUMENTS, "scaling"), Location, _trial),
    Live("espnet-cov", ("AttCov",), _COVERAGE, Coverage, _trial),
    Live("espnet-heads", ("AttMultiHeadAdd",), _ARGUMENTS, Heads, _trial),
)
