"""Monotonic attention: scan the memory from where the last step stopped, and stop once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional import checks
from ..functional.attention import additive_scores
from ..functional.results import Pair
from ..ops.codes import PrecisionName
from ..ops.seed import saved
from . import inputs
from .calls import Reading
from .projected import (
    AlignmentState,
    accumulated,
    aligned,
    beams_of_memory,
    mask_of_step,
    masked_scores,
    masks_of_steps,
    project_memory,
)
from .projections import Projections
from .reading import Alignment, Bounds, read_as_forward, split, within

if TYPE_CHECKING:
    from .overloads import NoisyEitherWay, NoisyNoWeights, NoisyWithWeights, Unpack


class MonotonicAttention(Projections):
    """Hard monotonic attention of Raffel et al. (1704.00784), trained in expectation.

        e_ij = g w / |w| . tanh(W s_i + V h_j + b) + r,    p_ij = sigmoid(e_ij + noise)

    Step i starts where step i - 1 stopped; at each position it stops with probability p_ij or moves
    to the next. In training the weights are the expected ones (`expected_alignment`). In evaluation
    a step stops at the first position with p_ij > 1/2 and looks there (algorithm 1). A step that
    passes the end without stopping looks at nothing, and so do all later ones: weights and context
    are 0.

    Masks are bool or of query's dtype, as in every module. False and -inf mean that a step never
    stops at the position but still passes it; other floating values are added to e_ij, so the
    expected weights remain those of the process.

    Args:
        query_dim, key_dim, hidden_dim: features of query, memory and score.
        score_bias: the initial value of r. A negative one makes steps move on more often than stop
            at first; -log of the number of positions to pass is a good choice.
        noise: the standard deviation of the normal noise in training, at least 0; it makes p_ij
            learn to be close to 0 or 1.
        evaluation: in `eval` mode, "hard", or "expected" as in training but without noise.
        normalize: False for the plain score of Bahdanau et al. plus r.
        bias, device, dtype: as in `Projections`.
        precision, backend: as in `attnkernels.additive_scores`.

    Attributes:
        query_proj, key_proj, weight, gain, bias: W and b, V, w, g; as in `Projections`.
        score_bias: r, (1,).

    Raises:
        TypeError, ValueError: as `Projections`; or ``score_bias``, ``noise``, ``evaluation``,
            ``precision`` or ``backend`` is wrong.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int,
        *,
        score_bias: float = -4.0,
        noise: float = 1.0,
        evaluation: Literal["hard", "expected"] = "hard",
        bias: bool = False,
        normalize: bool = True,
        precision: PrecisionName = "exact",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.choice("evaluation", evaluation, ("hard", "expected"))
        score_bias = checks.number("score_bias", score_bias)
        noise = checks.number("noise", noise, 0)
        inputs.precision_name(precision)
        inputs.backend_name(backend)
        sizes = query_dim, key_dim, hidden_dim
        super().__init__(*sizes, bias=bias, normalize=normalize, device=device, dtype=dtype)
        self.initial_score_bias, self.noise = score_bias, noise
        self.evaluation, self.precision, self.backend = evaluation, precision, backend
        self.score_bias = nn.Parameter(torch.full((1,), score_bias, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Reset all parameters; ``score_bias`` takes its initial value."""
        super().reset_parameters()
        if hasattr(self, "score_bias"):  # missing while the base class calls this
            nn.init.constant_(self.score_bias, self.initial_score_bias)

    def prepare(
        self, memory: Tensor, key_lengths: Tensor | None = None, value: Tensor | None = None
    ) -> AlignmentState:
        """Return the state before the first step, which starts at position 0.

        Args:
            memory: (B, m, key_dim), of the dtype of the parameters.
            key_lengths: (B,), int32 or int64, in [0, m]: no step stops at or beyond the length.
                The range is checked on a CPU only.
            value: (B, m, value_dim); by default the memory.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        return self._begin("memory", memory, key_lengths, value)

    def step(
        self,
        query: Tensor,
        state: AlignmentState,
        *,
        attn_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, AlignmentState]:
        """Attend once.

        Args:
            query: (B, query_dim), of the dtype of the parameters.
            state: from `prepare`, or from the last step.
            attn_mask: (B, m) or (m,), sizes may be 1; bool (False: do not stop here) or of
                query's dtype (added to the energy; -inf as False).
            generator: the generator of the noise; torch's own by default.

        Returns:
            The context (B, value_dim), the weights (B, m) and the state for the next step.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        attn_mask = mask_of_step(self, query, state, attn_mask)
        state = self._align(self._energy(query.unsqueeze(1), state), state, attn_mask, generator)
        weights = state.previous.to(state.value.dtype)
        return (weights.unsqueeze(1) @ state.value).squeeze(1), weights, state

    def read(
        self,
        query: Tensor,
        prepared: AlignmentState,
        alignment: Alignment | None = None,
        bounds: Bounds | None = None,
        *,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor, Alignment]:
        """Attend with one query per beam, for a decoder: see `DecoderAttention.read`.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        beams, batch = beams_of_memory(self, query, prepared), prepared.batch
        state, m = aligned(prepared, alignment, beams), prepared.keys.shape[1]
        mask = None if bounds is None else within(bounds, m).unsqueeze(1)
        if beams != 1 and state.key_lengths is not None:
            state = replace(state, key_lengths=state.key_lengths.repeat_interleave(beams))

        def attend(query: Tensor) -> tuple[Tensor, Tensor, Alignment]:
            energy = self._energy(split(query, batch), prepared).flatten(0, 1).unsqueeze(1)
            previous = self._align(energy, state, mask, None).previous
            weights = previous.to(prepared.value.dtype)
            context = (split(weights, batch) @ prepared.value).flatten(0, 1)
            return context, weights, Alignment(previous)

        return read_as_forward(self, query, attend)

    @overload
    def forward(
        self, query: Tensor, key: Tensor, value: Tensor | None = ..., **o: Unpack[NoisyNoWeights]
    ) -> Tensor: ...
    @overload
    def forward(
        self, query: Tensor, key: Tensor, value: Tensor | None = ..., **o: Unpack[NoisyWithWeights]
    ) -> Pair: ...
    @overload
    def forward(
        self, query: Tensor, key: Tensor, value: Tensor | None = ..., **o: Unpack[NoisyEitherWay]
    ) -> Tensor | Pair: ...
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        *,
        key_lengths: Tensor | None = None,
        attn_mask: Tensor | None = None,
        return_weights: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor | Pair:
        """Attend with all queries, one step after another; compute their energies in one call.

        Args:
            query: (B, n, query_dim).
            key: (B, m, key_dim), the memory of `prepare`.
            value, key_lengths: as in `prepare`.
            attn_mask: (B, n, m), sizes may be 1, or (m,); otherwise as in `step`.
            return_weights: also return the weights.
            generator: the generator of the noise; torch's own by default.

        Returns:
            The contexts (B, n, value_dim), or a tuple of them and the weights (B, n, m).

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        if type(key) is Reading:
            return key.attend(query)
        checks.flags(return_weights=return_weights)
        state = self._begin("key", key, key_lengths, value)
        masks = masks_of_steps(self, query, state, attn_mask)
        # Split once: slicing at each step would give gradients as large as all energies.
        energy = self._energy(query, state).split(1, 1)
        alphas = []
        for row, mask in zip(energy, masks, strict=False):
            state = self._align(row, state, mask, generator)
            alphas.append(state.previous)
        weights = torch.stack(alphas, 1) if alphas else state.previous.unsqueeze(1)[:, :0]
        weights = weights.to(state.value.dtype)
        context = weights @ state.value
        return (context, weights) if return_weights else context

    def _begin(
        self, name: str, memory: Tensor, key_lengths: Tensor | None, value: Tensor | None
    ) -> AlignmentState:
        """Run `prepare` on a memory that the caller calls `name`."""
        projected = project_memory(self, name, memory, key_lengths, value)
        batch, m, _ = projected.keys.shape
        first = torch.arange(m, device=memory.device) == 0
        previous = first.to(accumulated(memory.dtype)).expand(batch, m)
        return AlignmentState(**vars(projected), previous=previous, cumulative=None)

    def _energy(self, query: Tensor, state: AlignmentState) -> Tensor:
        """Return e_ij without the noise, (B, n, m) in the dtype of sums."""
        scores = additive_scores(
            self._queries(query),
            state.keys,
            state.weight,
            precision=self.precision,
            backend=self.backend,
        )
        return scores.to(accumulated(scores.dtype)) + self.score_bias

    def _align(
        self,
        energy: Tensor,
        state: AlignmentState,
        attn_mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> AlignmentState:
        """Return the state after a step of energy (B, 1, m) and attn_mask (B, 1, m)."""
        if self.training and self.noise:
            noise = torch.randn(
                energy.shape, generator=generator, dtype=energy.dtype, device=energy.device
            )
            energy = energy + self.noise * saved(noise)
        energy = masked_scores(energy, state.key_lengths, attn_mask).squeeze(1)
        if not self.training and self.evaluation == "hard":
            # With p_ij of 0 or 1 the expectation is the choice itself.
            stops = torch.full_like(energy, float("inf"))
            energy = torch.where(energy > 0, stops, -stops)
        return replace(state, previous=expected_alignment(energy, state.previous))

    if TYPE_CHECKING:
        __call__ = forward


def expected_alignment(energy: Tensor, previous: Tensor) -> Tensor:
    """Return the probability of stopping at each position: Raffel et al. (1704.00784), section 2.3.

        alpha_j = p_j q_j,    q_j = (1 - p_{j-1}) q_{j-1} + previous_j,    p = sigmoid(energy)

    Args:
        energy: (..., m), floating; -inf never stops, inf always does.
        previous: (..., m), the alignment of the last step; (1, 0, ..., 0) before the first.

    Returns:
        (..., m). Its sum is at most that of previous: the rest passes the end.

    The recurrence is solved in log2(m) rounds, in each of which every position adds the window
    before its own. All terms are products and sums of nonnegative numbers, so nothing cancels and
    an underflow is a correct zero. The closed form divides by cumulative products, and has to clip
    those that underflow.

    Raises:
        TypeError: an argument is not a floating tensor.
        ValueError: the shapes differ.
    """
    checks.tensor("energy", energy, dtype=checks.FLOATING)
    checks.tensor("previous", previous, dtype=checks.FLOATING)
    if energy.shape != previous.shape:
        raise ValueError(
            f"previous must have the shape of energy, {tuple(energy.shape)}, got "
            f"{tuple(previous.shape)}"
        )
    go_on = torch.sigmoid(-energy)  # not 1 - p, which loses all its bits near p = 1
    reached = previous
    carried = torch.cat([torch.zeros_like(go_on[..., :1]), go_on[..., :-1]], -1)
    window, m = 1, energy.shape[-1]
    while window < m:
        reached = torch.addcmul(reached, carried, F.pad(reached, (window, -window)))
        carried = carried * F.pad(carried, (window, -window))
        window *= 2
    return torch.sigmoid(energy) * reached
