"""A head that generates words or copies them from the source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import checks
from . import inputs


class PointerGenerator(nn.Module):
    """The pointer-generator of See et al. (1704.04368), equations 8 and 9.

        p_gen = sigmoid(w_c . c + w_s . s + w_x . x + b)
        P(word) = p_gen P_vocab(word) + (1 - p_gen) sum of a_j over j with source_j = word

    c is the context of a step, s the output of its cell, x its input, a its weights. Words of the
    source that the vocabulary lacks have numbers of V and more, of their example alone.

    Args:
        context_dim, output_dim, input_dim: features of c, s and x.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Attributes:
        gate: Linear(context_dim + output_dim + input_dim, 1): w_c, w_s, w_x and b.

    With `CoverageAttention` and `coverage_loss` it makes the paper's model.

    Raises:
        ValueError: a size is not a positive int.
    """

    def __init__(
        self,
        context_dim: int,
        output_dim: int,
        input_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        context_dim, output_dim, input_dim = inputs.sizes(
            context_dim=context_dim, output_dim=output_dim, input_dim=input_dim
        )
        self.gate = nn.Linear(context_dim + output_dim + input_dim, 1, device=device, dtype=dtype)

    def forward(
        self,
        logits: Tensor,
        weights: Tensor,
        source: Tensor,
        *,
        context: Tensor,
        output: Tensor,
        input: Tensor,
        extra: int = 0,
    ) -> Tensor:
        """Return the log-probabilities of generating or copying each word.

        Args:
            logits: (..., V), of the vocabulary: P_vocab is their softmax.
            weights: (..., m), that sum to 1, or to 0 where there is nothing to copy.
            source: (..., m), int64, in [0, V + extra): the words of the source; it broadcasts to
                weights. The range is checked on a CPU only.
            context, output, input: (..., features): c, s and x.
            extra: how many words of the sources the vocabulary lacks, at most, at least 0.

        Returns:
            (..., V + extra), in float32 (float64 for float64), -inf for words that can be neither
            generated nor copied. p_gen counts as 1 where all weights are 0.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        extra = checks.integer("extra", extra)
        if extra < 0:
            raise ValueError(f"extra must be at least 0, got {extra}")
        for name, x in (("logits", logits), ("weights", weights)):
            checks.tensor(name, x, dtype=checks.FLOATING)
        checks.integers("source", source)
        lead, size = logits.shape[:-1], logits.shape[-1]
        if weights.shape[:-1] != lead:
            raise ValueError(
                f"weights must be (..., m) with the leading shape {tuple(lead)} of logits, got "
                f"shape {tuple(weights.shape)}"
            )
        try:
            words = source.expand(weights.shape)
        except RuntimeError:
            raise ValueError(
                f"source must broadcast to weights {tuple(weights.shape)}, got shape "
                f"{tuple(source.shape)}"
            ) from None
        checks.within("source", source, 0, size + extra - 1, f"V = {size} and extra = {extra}")
        wide = torch.promote_types(logits.dtype, torch.float32)
        features = {"context": context, "output": output, "input": input}
        for name, x in features.items():
            checks.tensor(name, x, dtype=checks.FLOATING)
        try:
            read = torch.cat(list(features.values()), -1)
        except RuntimeError:
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in features.items())
            raise ValueError(
                f"context, output and input must have one leading shape, got {shapes}"
            ) from None
        if read.shape[-1] != self.gate.in_features or read.shape[:-1] != lead:
            raise ValueError(
                f"context, output and input must have {self.gate.in_features} features together "
                f"and the leading shape {tuple(lead)} of logits, got {tuple(read.shape)}"
            )
        gate, weights = self.gate(read).to(wide), weights.to(wide)
        nothing = weights.sum(-1, keepdim=True) == 0
        generated = logits.log_softmax(-1, dtype=wide) + F.logsigmoid(gate).masked_fill(
            nothing, 0.0
        )
        generated = F.pad(generated, (0, extra), value=-torch.inf)
        copied = torch.zeros_like(generated).scatter_add(-1, words, weights)
        exists = copied != 0  # NaN counts, and stays
        log_copied = torch.where(exists, copied, 1.0).log() + F.logsigmoid(-gate)
        return torch.where(exists, torch.logaddexp(generated, log_copied), generated)

    if TYPE_CHECKING:
        __call__ = forward
