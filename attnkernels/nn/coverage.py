"""Coverage: the attention that a position has received so far enters the score, and a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..functional import checks
from ..ops.codes import PrecisionName
from .alignment import Initial, StepwiseAttention
from .calls import is_plain
from .projected import AlignmentState, accumulated


class CoverageAttention(StepwiseAttention):
    """Attention with the coverage vector of See et al. (1704.04368), equations 10 and 11.

        e_ij = w . tanh(W s_i + V h_j + w_c c_ij + b),    c_ij = sum of the weights of steps < i

    Args:
        query_dim, key_dim, hidden_dim: features of query, memory and score.
        initial: the weights before the first step, "zeros" (See et al.) or "uniform" (ESPnet;
            1 / length each); they count in the coverage.
        bias, normalize, device, dtype: as in `Projections`.
        scale, precision, backend: as in `attnkernels.additive_attention`. A step has one query,
            which GPUs score exactly.

    Attributes:
        query_proj, key_proj, weight, gain, bias: W and b, V, w; as in `Projections`.
        coverage_proj: w_c, Linear(1, hidden_dim) without a bias.

    A state's ``cumulative`` is the coverage; `coverage_loss` is the loss of equation 12. Masks are
    bool or of query's dtype, as in every module.

    Raises:
        TypeError, ValueError: as `Projections`; or ``initial``, ``scale``, ``precision`` or
            ``backend`` is wrong.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int,
        *,
        initial: Initial = "zeros",
        bias: bool = True,
        normalize: bool = False,
        scale: float = 1.0,
        precision: PrecisionName = "exact",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = query_dim, key_dim, hidden_dim
        super().__init__(*sizes, bias=bias, normalize=normalize, device=device, dtype=dtype)
        scoring: dict[str, Any] = {"scale": scale, "precision": precision, "backend": backend}
        self._set_options(initial=initial, cumulates=True, **scoring)
        self.coverage_proj = nn.Linear(1, self.hidden_dim, bias=False, device=device, dtype=dtype)

    def added_keys(self, state: AlignmentState) -> Tensor:
        """Return w_c c of every position, (B, m, hidden_dim)."""
        return self.coverage_proj(self.seen(state).mT)

    def seen(self, state: AlignmentState) -> Tensor:
        """Return c, (B, 1, m)."""
        assert state.cumulative is not None  # cumulates=True
        return state.cumulative.to(self.coverage_proj.weight.dtype).unsqueeze(1)

    def filter(self) -> Tensor | None:
        """Return w_c, (1, 1, hidden_dim)."""
        proj = self.coverage_proj
        linear = is_plain(proj, nn.Linear) and proj.bias is None
        return proj.weight.mT.unsqueeze(0) if linear else None


def coverage_loss(weights: Tensor, coverage: Tensor | None = None) -> Tensor:
    """Return sum_j min(a_ij, c_ij) for every step i: See et al. (1704.04368), equation 12.

    Args:
        weights: (..., n, m), of n consecutive steps.
        coverage: (..., m), before the first of them; zeros by default. For a single step pass its
            weights with n = 1, and the ``cumulative`` of the state that it started from.

    Returns:
        (..., n), in float32 (float64 for float64). The first step of a sequence costs nothing.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: weights has fewer than 2 dimensions, or coverage does not fit it.
    """
    checks.tensor("weights", weights)
    if weights.ndim < 2:
        raise ValueError(f"weights must have shape (..., n, m), got {tuple(weights.shape)}")
    if coverage is not None:
        checks.tensor("coverage", coverage, "(..., m)", (*weights.shape[:-2], weights.shape[-1]))
    a = weights.to(accumulated(weights.dtype))
    before = torch.zeros_like(a[..., :1, :]) if coverage is None else coverage.unsqueeze(-2)
    # Not cumsum - a: the rounding of that difference would add to the loss.
    covered = torch.cat([before.to(a.dtype), a[..., :-1, :]], -2).cumsum(-2)
    return torch.minimum(a, covered[..., : a.shape[-2], :]).sum(-1)
