"""The model of Show, Attend and Tell (Xu et al., 1502.03044)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...functional import checks
from ...nn import Decoded, HardChoice, beam_search, greedy_search, inputs
from ...nn.calls import as_forward
from ...ops.codes import PrecisionName
from ...ops.seed import saved
from ..common import lengths_on_cpu, token
from .decoder import CaptionDecoder
from .losses import hard_loss, soft_loss


class Description(NamedTuple):
    """The result of `ShowAttendTell`, each word given the ones before it.

    Attributes:
        logits: (B, T, vocab_size), of the words.
        weights: (B, T, L), alpha, over the annotations.
        choice: with hard attention, where it looked, (B, T) each (its context is (B, T, D)).
    """

    logits: Tensor
    weights: Tensor
    choice: HardChoice | None


class ShowAttendTell(nn.Module):
    """Describe an image word by word, looking at a part of it for each word.

    Args:
        encoder: images -> annotations (B, D, h, w) of L = h * w places; `ConvEncoder`, or the lower
            layers of any convolutional network (in the paper VGG's 14 x 14 of 512 features).
        vocab_size: K, the number of tokens; 0 is padding.
        begin, end: the tokens before the first word and after the last.
        annotation_dim, embed_dim, hidden_dim, attention_dim: sizes; see `CaptionDecoder`.
        attention: "soft" (section 4.2) or "hard" (section 4.1).
        doubly_stochastic: lambda of equation 14.
        reward_weight, entropy_weight: lambda_r and lambda_e of hard attention's learning rule.
        expected_chance: probability that hard attention's training reads an image with expected
            contexts.
        defer_gradients: False allows second derivatives; see `AttentionRNN`.
        precision, backend: as in `attnkernels.additive_attention`.

    Attributes:
        baseline: (), the moving average of a word's log p: the baseline of hard attention's reward.

    Raises:
        TypeError: the encoder is not a module, a number or a token has the wrong type, or
            ``defer_gradients`` is not a bool.
        ValueError: a size is not a positive int, a number is out of range, a token is not in the
            vocabulary, ``attention`` is neither, or ``precision`` or ``backend`` is unknown.
    """

    baseline: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        vocab_size: int,
        *,
        begin: int,
        end: int,
        annotation_dim: int = 128,
        embed_dim: int = 64,
        hidden_dim: int = 256,
        attention_dim: int = 128,
        attention: Literal["soft", "hard"] = "soft",
        doubly_stochastic: float = 1.0,
        reward_weight: float = 1.0,
        entropy_weight: float = 0.002,
        expected_chance: float = 0.5,
        defer_gradients: bool = True,
        precision: PrecisionName = "exact",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        checks.choice("attention", attention, ("soft", "hard"))
        checks.instance("encoder", encoder, nn.Module, "a module")
        vocab_size, annotation_dim, embed_dim, hidden_dim, attention_dim = inputs.sizes(
            vocab_size=vocab_size,
            annotation_dim=annotation_dim,
            embed_dim=embed_dim,
            hidden_dim=hidden_dim,
            attention_dim=attention_dim,
        )
        self.begin = token("begin", begin, vocab_size)
        self.end = token("end", end, vocab_size)
        self.encoder, self.annotation_dim = encoder, annotation_dim
        self.doubly_stochastic = checks.number("doubly_stochastic", doubly_stochastic)
        self.reward_weight = checks.number("reward_weight", reward_weight)
        self.entropy_weight = checks.number("entropy_weight", entropy_weight)
        self.expected_chance = checks.number("expected_chance", expected_chance, 0, 1)
        self.embed = nn.Embedding(vocab_size, embed_dim, padding_idx=0)
        self.decoder = CaptionDecoder(
            embed_dim,
            annotation_dim,
            hidden_dim,
            attention_dim,
            hard=attention == "hard",
            defer_gradients=defer_gradients,
            precision=precision,
            backend=backend,
        )
        self.first = nn.Sequential(nn.Linear(annotation_dim, 2 * hidden_dim), nn.Tanh())
        self.output = nn.Linear(embed_dim, vocab_size)  # L_o
        self.register_buffer("baseline", torch.zeros(()))

    def annotate(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return annotations (B, L, D), row by row, and the first (h, c) (section 3.1.2).

        Raises:
            TypeError: images is not a tensor.
            ValueError: images is not (B, channels, H, W), or the encoder's result does not fit.
        """
        checks.tensor("images", images, "(B, channels, H, W)", (None,) * 4)
        found = self.encoder(images)
        wanted = images.shape[0], self.annotation_dim, None, None
        checks.tensor("the encoder's result", found, "(B, annotation_dim, h, w)", wanted)
        annotations = found.flatten(2).mT
        return annotations, self.first(annotations.mean(1)).chunk(2, -1)

    def forward(self, images: Tensor, tokens: Tensor) -> Description:
        """Return the distribution of every word, given those before it.

        In training hard attention draws places, except for images chosen with `expected_chance`,
        which get expected contexts throughout (section 4.1). In eval() it takes the likeliest
        place.

        Args:
            images: (B, channels, H, W), floating.
            tokens: (B, T), int64: ``begin`` and then words.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        checks.tensor("images", images)
        checks.tensor("tokens", tokens, "(B, T)", (images.shape[0], None))
        annotations, state = self.annotate(images)
        words = self.embed(tokens)
        if self.decoder.hard is None:
            outputs, _, _, weights = self.decoder(
                words, annotations, state=state, return_weights=True
            )
            return Description(self.output(outputs), weights, None)
        chance = self.expected_chance if self.training else 0.0
        expected = saved(torch.rand(images.shape[0], device=images.device)) < chance
        outputs, weights, choice = as_forward(self.decoder, "choose")(
            words, annotations, state, expected
        )
        return Description(self.output(outputs), weights, choice)

    if TYPE_CHECKING:
        __call__ = forward

    def loss(self, images: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
        """Return the training loss, a mean over images.

        For soft attention this is equation 14 (`losses.soft_loss`), for hard attention the rule of
        section 4.1 (`losses.hard_loss`) with ``baseline``, which moves in training.

        Args:
            images: as in `forward`.
            captions: (B, T + 1), int64: ``begin``, words, ``end``, padding.
            lengths: (B,), int64, in [2, T + 1]: how many tokens count, ``begin`` and ``end``
                included.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        checks.tensor("captions", captions, "(B, T + 1)", (None, None))
        batch, longest = captions.shape
        lengths_on_cpu("lengths", lengths, batch, longest, shortest=2)
        logits, weights, choice = self(images, captions[:, :-1])
        steps = torch.arange(1, captions.shape[1], device=captions.device)
        counts = (steps < lengths.unsqueeze(-1)).to(logits.dtype)  # (B, T)
        log_p = -F.cross_entropy(logits.mT, captions[:, 1:], reduction="none") * counts
        if choice is None:
            return soft_loss(log_p, weights, counts, self.doubly_stochastic)
        if self.training:
            self.baseline.mul_(0.9).add_(log_p.detach().sum() / counts.sum(), alpha=0.1)
        return hard_loss(
            log_p,
            choice,
            counts,
            baseline=self.baseline,
            reward_weight=self.reward_weight,
            entropy_weight=self.entropy_weight,
        )

    @torch.no_grad()
    def caption(self, images: Tensor, *, max_length: int, beams: int = 1) -> Decoded:
        """Return the best captions by greedy search, or beam search; call eval() first.

        Args:
            images: as in `forward`.
            max_length: the maximum number of tokens, ``end`` included.
            beams: number of captions kept, and returned.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        annotations, state = self.annotate(images)
        search = greedy_search if beams == 1 else partial(beam_search, beams=beams)
        return search(
            self.decoder,
            annotations,
            state=state,
            embed=self.embed,
            readout=lambda output, context: self.output(output),
            start=self.begin,
            eos=self.end,
            max_length=max_length,
        )
