"""The losses of Show, Attend and Tell, of soft and of hard attention (Xu et al., 1502.03044)."""

from __future__ import annotations

from torch import Tensor

from ...nn import HardChoice, score_function_loss


def soft_loss(log_p: Tensor, weights: Tensor, counts: Tensor, doubly_stochastic: float) -> Tensor:
    """Return -log p plus the doubly stochastic penalty (equation 14), a mean over images.

    Args:
        log_p: (B, T), of the words, 0 for padding.
        weights: (B, T, L), alpha.
        counts: (B, T), 1 for words and 0 for padding.
        doubly_stochastic: lambda; the penalty is lambda sum_i (1 - sum_t alpha_ti)^2.
    """
    seen = (weights * counts.unsqueeze(-1)).sum(1)
    penalty = (1 - seen).square().sum(1)
    return (doubly_stochastic * penalty - log_p.sum(1)).mean()


def hard_loss(
    log_p: Tensor,
    choice: HardChoice,
    counts: Tensor,
    *,
    baseline: Tensor,
    reward_weight: float,
    entropy_weight: float,
) -> Tensor:
    """Return -log p and the learning rule of section 4.1, with entropy, a mean over images.

    In the paper the log-probability of the whole caption rewards every look. Here a look is
    rewarded by its own word and the later ones, each less the baseline. A look changes nothing
    before it, so the expectation is that of equation 12, with less variance.

    Args:
        log_p: (B, T), of the words, 0 for padding.
        choice: where the model looked, (B, T) each.
        counts: (B, T), 1 for words and 0 for padding.
        baseline: (), of a word.
        reward_weight, entropy_weight: lambda_r and lambda_e.
    """
    better = (log_p - baseline) * counts
    to_come = better.flip(1).cumsum(1).flip(1)
    rewarded = reward_weight * score_function_loss(choice.log_prob, to_come)
    regularised = rewarded - entropy_weight * choice.entropy
    return (regularised * counts - log_p).sum(1).mean()
