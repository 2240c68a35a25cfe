"""Location-sensitive attention: earlier weights enter the score through a convolution."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..functional import checks
from ..ops.codes import PrecisionName
from . import inputs
from .alignment import Initial, StepwiseAttention
from .calls import is_plain
from .projected import AlignmentState


class LocationSensitiveAttention(StepwiseAttention):
    """Attention that sees where it looked before: Chorowski et al. (1506.07503), equations 8-9.

        f_i = F * alpha,    e_ij = w . tanh(W s_i + V h_j + U f_ij + b)

    alpha is the weights of the last step, their sum over all steps so far (Tacotron 2, 1712.05884,
    section 2.2), or both as two channels (NVIDIA's and torchaudio's Tacotron 2). Masks are bool or
    of query's dtype, as in every module.

    Args:
        query_dim, key_dim, hidden_dim: features of query, memory and score.
        channels: output channels of the convolution F.
        kernel_size: width of F; odd, to look equally far back and ahead.
        cumulative: the input of F: True for the sum, False for the last step, "both" for the last
            step and the sum, in this order.
        initial: the weights before the first step, "zeros" (Tacotron 2) or "uniform" (Chorowski et
            al., ESPnet; 1 / length each).
        detach_weights: cut the gradient through the earlier weights (SpeechBrain).
        bias, normalize, device, dtype: as in `Projections`.
        scale, precision, backend: as in `attnkernels.additive_attention`. A step has one query,
            which GPUs score exactly.

    Attributes:
        query_proj, key_proj, weight, gain, bias: W and b, V, w; as in `Projections`.
        location_conv: F, Conv1d(1 or 2, channels, kernel_size) without a bias.
        location_proj: U, Linear(channels, hidden_dim) without a bias.

    Raises:
        TypeError, ValueError: as `CoverageAttention`; or ``channels``, ``kernel_size``,
            ``cumulative`` or ``detach_weights`` is wrong.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int,
        *,
        channels: int = 32,
        kernel_size: int = 31,
        cumulative: bool | Literal["both"] = True,
        initial: Initial = "zeros",
        detach_weights: bool = False,
        bias: bool = True,
        normalize: bool = False,
        scale: float = 1.0,
        precision: PrecisionName = "exact",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        channels, kernel_size = inputs.sizes(channels=channels, kernel_size=kernel_size)
        checks.choice("cumulative", cumulative, (True, False, "both"))
        if not isinstance(cumulative, str):
            checks.flags(cumulative=cumulative)
        checks.flags(detach_weights=detach_weights)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        sizes = query_dim, key_dim, hidden_dim
        super().__init__(*sizes, bias=bias, normalize=normalize, device=device, dtype=dtype)
        scoring: dict[str, Any] = {"scale": scale, "precision": precision, "backend": backend}
        self._set_options(initial=initial, cumulates=bool(cumulative), **scoring)
        self.cumulative, self.detach_weights = cumulative, detach_weights
        layer: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        seen = 2 if cumulative == "both" else 1
        self.location_conv = nn.Conv1d(
            seen, channels, kernel_size, padding=kernel_size // 2, **layer
        )
        self.location_proj = nn.Linear(channels, self.hidden_dim, **layer)

    def added_keys(self, state: AlignmentState) -> Tensor:
        """Return U f of every position, (B, m, hidden_dim)."""
        return self.location_proj(self.location_conv(self._alpha(state)).mT)

    def seen(self, state: AlignmentState) -> Tensor:
        """Return alpha, (B, 1 or 2, m), or f, (B, channels, m): what `filter` takes."""
        alpha = self._alpha(state)
        return alpha if self._sees_weights() else self.location_conv(alpha)

    def filter(self) -> Tensor | None:
        """Return U F, (1 or 2, kernel_size, hidden_dim), or U, (channels, 1, hidden_dim)."""
        conv, proj = self.location_conv, self.location_proj
        if not is_plain(proj, nn.Linear) or proj.bias is not None:
            return None
        if self._sees_weights():
            return torch.einsum("hf,fct->cth", proj.weight, conv.weight)
        return proj.weight.mT.unsqueeze(1)

    def _sees_weights(self) -> bool:
        """Return True if U F, which is linear, takes no more products for a position than U."""
        conv = self.location_conv
        if not is_plain(conv, nn.Conv1d) or conv.bias is not None or conv.padding_mode != "zeros":
            return False
        made = conv.stride, conv.dilation, conv.padding, conv.groups
        if made != ((1,), (1,), (conv.kernel_size[0] // 2,), 1):
            return False
        return conv.in_channels * conv.kernel_size[0] <= conv.out_channels

    def _alpha(self, state: AlignmentState) -> Tensor:
        seen = [] if self.cumulative is True else [state.previous]
        seen += [] if state.cumulative is None else [state.cumulative]
        alpha = torch.stack([x.to(self.location_conv.weight.dtype) for x in seen], 1)
        return alpha.detach() if self.detach_weights else alpha
