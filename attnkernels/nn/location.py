"""Location-sensitive attention: earlier weights, through a convolution, take part in the score."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .alignment import AlignmentState, StepwiseAttention, check_choice
from .projections import check_sizes


class LocationSensitiveAttention(StepwiseAttention):
    """Attention that sees where it looked before: Chorowski et al. (1506.07503), equations 8-9.

        f_i = F * alpha,    e_ij = w . tanh(W s_i + V h_j + U f_ij + b)

    alpha are the weights of the step before, their sum over all steps so far (Tacotron 2,
    1712.05884, section 2.2), or both as two channels (NVIDIA's and torchaudio's Tacotron 2).

    Args:
        query_dim, key_dim, hidden_dim: features of query, memory and score.
        channels: of the convolution F.
        kernel_size: of F, odd, so that it looks as far back as ahead.
        cumulative: what F sees: True the sum, False the step before, "both" the step before and
            the sum, in this order.
        initial: the weights before the first step, "zeros" (Tacotron 2) or "uniform" (Chorowski et
            al., ESPnet; 1 / length each).
        detach_weights: cut the gradient through the earlier weights (SpeechBrain).
        bias, normalize, device, dtype: as `Projections`.
        scale, backend: as in `attnkernels.additive_attention`.

    Attributes:
        query_proj, key_proj, weight, gain, bias: W and b, V, w; as `Projections`.
        location_conv: F, Conv1d(1 or 2, channels, kernel_size) without a bias.
        location_proj: U, Linear(channels, hidden_dim) without a bias.

    Raises:
        ValueError: a size is not a positive int, ``kernel_size`` is even, or ``cumulative`` or
            ``initial`` is none of its choices.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int,
        *,
        channels: int = 32,
        kernel_size: int = 31,
        cumulative: bool | str = True,
        initial: str = "zeros",
        detach_weights: bool = False,
        bias: bool = True,
        normalize: bool = False,
        scale: float = 1.0,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(channels=channels, kernel_size=kernel_size)
        check_choice("cumulative", cumulative, (True, False, "both"))
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; it must be odd")
        super().__init__(
            query_dim,
            key_dim,
            hidden_dim,
            initial=initial,
            cumulates=bool(cumulative),
            bias=bias,
            normalize=normalize,
            scale=scale,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        self.cumulative, self.detach_weights = cumulative, detach_weights
        self.location_conv = nn.Conv1d(
            2 if cumulative == "both" else 1,
            channels,
            kernel_size,
            padding=kernel_size // 2,
            bias=False,
            device=device,
            dtype=dtype,
        )
        self.location_proj = nn.Linear(channels, hidden_dim, bias=False, device=device, dtype=dtype)

    def added_keys(self, state: AlignmentState) -> Tensor:
        """U f of every position, (B, m, hidden_dim)."""
        seen = [] if self.cumulative is True else [state.previous]
        seen += [] if state.cumulative is None else [state.cumulative]
        alpha = torch.stack([x.to(self.location_conv.weight.dtype) for x in seen], 1)
        if self.detach_weights:
            alpha = alpha.detach()
        return self.location_proj(self.location_conv(alpha).mT)
