"""Hard attention: look at one position drawn from the softmax, and learn by the score function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from ..functional import checks
from ..functional.attention import additive_scores
from ..ops.codes import PrecisionName
from ..ops.seed import saved
from . import inputs
from .calls import Reading
from .projected import (
    ProjectedMemory,
    beams_of_memory,
    mask_of_step,
    mask_of_steps,
    masked_scores,
    project_memory,
)
from .projections import Projections
from .reading import Alignment, Bounds, split, within


class HardChoice(NamedTuple):
    """The choice of `HardAttention`; for a single step all fields lack n.

    Attributes:
        context: (B, n, value_dim), the value of the chosen position (or the expected one).
        positions: (B, n), int64, the chosen position; -1 if there is none to choose.
        log_prob: (B, n), the log-probability of the choice, in float32 (float64 for float64); 0 if
            there is none to choose.
        entropy: (B, n), that of the distribution of the choice, in the same dtype.
    """

    context: Tensor
    positions: Tensor
    log_prob: Tensor
    entropy: Tensor


class HardAttention(Projections):
    """The stochastic "hard" attention of Xu et al. (1502.03044), section 4.1.

        e_ij = scale * w . tanh(W s_i + V h_j + b),    position_i ~ softmax_j(e_ij)

    In training a position is drawn. The draw has no gradient: the context has one for the chosen
    value alone, and the scores learn by `score_function_loss` of ``log_prob``. ``entropy`` is for
    the paper's regulariser.

    Masks are bool or of query's dtype, as in every module: False and -inf are never chosen, other
    floating values are added to e_ij.

    Args:
        query_dim, key_dim, hidden_dim: features of query, memory and score.
        evaluation: in `eval` mode, "argmax" takes the likeliest position and its value, "expected"
            the likeliest position with the expected value as context (soft attention).
        bias, normalize, device, dtype: as in `Projections`.
        scale, precision, backend: as in `attnkernels.additive_scores`.

    Raises:
        TypeError, ValueError: as `Projections`; or ``evaluation``, ``scale``, ``precision`` or
            ``backend`` is wrong.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int,
        *,
        evaluation: Literal["argmax", "expected"] = "argmax",
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
        checks.choice("evaluation", evaluation, ("argmax", "expected"))
        self.scale = checks.number("scale", scale)
        inputs.precision_name(precision)
        inputs.backend_name(backend)
        self.evaluation, self.precision, self.backend = evaluation, precision, backend

    def prepare(
        self, memory: Tensor, key_lengths: Tensor | None = None, value: Tensor | None = None
    ) -> ProjectedMemory:
        """Project a memory once for every `step` of a decoder; steps do not change it.

        Args:
            memory: (B, m, key_dim), of the dtype of the parameters.
            key_lengths: (B,), int32 or int64, in [0, m]: positions at and beyond the length are
                never chosen. The range is checked on a CPU only.
            value: (B, m, value_dim); by default the memory.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        return project_memory(self, "memory", memory, key_lengths, value)

    def step(
        self,
        query: Tensor,
        prepared: ProjectedMemory,
        *,
        attn_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> HardChoice:
        """Choose one position per sequence.

        Args:
            query: (B, query_dim), of the dtype of the parameters.
            prepared: from `prepare`.
            attn_mask: (B, m) or (m,), sizes may be 1; bool (True takes part) or of query's
                dtype (added to the score; -inf excludes).
            generator: the generator of the draw; torch's own by default.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        attn_mask = mask_of_step(self, query, prepared, attn_mask, "prepared")
        chosen = self._choose(query.unsqueeze(1), prepared, attn_mask, generator)
        return HardChoice(*(x.squeeze(1) for x in chosen))

    def read(
        self,
        query: Tensor,
        prepared: ProjectedMemory,
        alignment: Alignment | None = None,
        bounds: Bounds | None = None,
        *,
        return_weights: bool = False,
    ) -> tuple[Tensor, HardChoice, None]:
        """Choose a position per beam, for a decoder: see `DecoderAttention.read`.

        The choice takes the place of the weights, and there is no alignment to remember.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        beams_of_memory(self, query, prepared)
        batch, m = prepared.batch, prepared.keys.shape[1]
        mask = None if bounds is None else split(within(bounds, m), batch)

        def attend(query: Tensor) -> HardChoice:
            chosen = self._choose(split(query, batch), prepared, mask, None)
            return HardChoice(*(x.flatten(0, 1) for x in chosen))

        choice: HardChoice = self(query, Reading(attend))  # type: ignore[arg-type]
        return choice.context, choice, None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        *,
        key_lengths: Tensor | None = None,
        attn_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> HardChoice:
        """Choose a position for every query, independently.

        Args:
            query: (B, n, query_dim).
            key: (B, m, key_dim), the memory of `prepare`.
            value, key_lengths: as in `prepare`.
            attn_mask: (B, n, m), sizes may be 1, or (m,); otherwise as in `step`.
            generator: the generator of the draw; torch's own by default.

        Returns:
            A `HardChoice`. A query with nothing to choose has context 0 and zero gradients.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        if type(key) is Reading:
            return key.attend(query)
        prepared = project_memory(self, "key", key, key_lengths, value)
        attn_mask = mask_of_steps(self, query, prepared, attn_mask)
        return self._choose(query, prepared, attn_mask, generator)

    def _choose(
        self,
        query: Tensor,
        prepared: ProjectedMemory,
        attn_mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> HardChoice:
        scores = additive_scores(
            self._queries(query),
            prepared.keys,
            prepared.weight,
            scale=self.scale,
            precision=self.precision,
            backend=self.backend,
        )
        scores = masked_scores(scores, prepared.key_lengths, attn_mask)
        if not scores.shape[-1]:  # nothing to draw from: add a masked column
            scores = scores.new_full((*scores.shape[:-1], 1), float("-inf"))
        # Draw from a row with nothing left as if it were uniform, then replace the result.
        nothing = (scores == float("-inf")).all(-1)
        log_p = torch.where(nothing.unsqueeze(-1), 0.0, scores).log_softmax(-1)
        p = log_p.exp()
        if self.training:
            rows = p.detach().flatten(0, 1)
            drawn = rows.long()
            if rows.shape[0]:
                drawn = saved(torch.multinomial(rows, 1, generator=generator))
            positions = drawn[:, :1].reshape(nothing.shape)
        else:
            positions = log_p.argmax(-1)
        log_prob = log_p.gather(-1, positions.unsqueeze(-1)).squeeze(-1)
        entropy = -(p * log_p.masked_fill(log_p == float("-inf"), 0.0)).sum(-1)

        value = prepared.value
        if not value.shape[1]:
            context = value.new_zeros(*positions.shape, value.shape[-1])
        elif self.training or self.evaluation == "argmax":
            at = positions.unsqueeze(-1).expand(*positions.shape, value.shape[-1])
            context = value.gather(1, at)
        else:
            context = p.to(value.dtype) @ value
        context = torch.where(nothing.unsqueeze(-1), 0.0, context)
        return HardChoice(
            context,
            positions.masked_fill(nothing, -1),
            log_prob.masked_fill(nothing, 0.0),
            entropy.masked_fill(nothing, 0.0),
        )

    if TYPE_CHECKING:
        __call__ = forward


def score_function_loss(
    log_prob: Tensor, reward: Tensor | float, baseline: Tensor | float = 0.0
) -> Tensor:
    """Return -(reward - baseline) * log_prob, an unbiased estimate of -E[reward] in its gradient.

    The score-function estimator (REINFORCE; Xu et al., 1502.03044, equations 9 to 12). A baseline
    that does not depend on the choice leaves the expectation unchanged and reduces the variance.

    Args:
        log_prob: (B, n), as in `HardChoice`; for a reward of a whole sequence, summed over n.
        reward: broadcastable with log_prob, to be maximised. It gets no gradient.
        baseline: likewise; for example a moving average of the reward, or a critic's prediction.

    Returns:
        (B, n), or what the arguments broadcast to: sum it over steps and average it over a batch.

    Raises:
        TypeError: log_prob is not a tensor, or another argument neither a tensor nor a number.
    """
    checks.tensor("log_prob", log_prob)
    for name, x in (("reward", reward), ("baseline", baseline)):
        if not isinstance(x, Tensor):
            checks.number(name, x)
    advantage = torch.as_tensor(reward - baseline, device=log_prob.device).detach()
    return -advantage * log_prob
