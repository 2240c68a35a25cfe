"""Captions of images with soft or hard attention: Show, Attend and Tell (Xu et al., 1502.03044)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import (
    AdditiveAttention,
    AttentionRNN,
    Decoded,
    DecoderState,
    HardAttention,
    HardChoice,
    PreparedMemory,
    ProjectedMemory,
    beam_search,
    greedy_search,
    score_function_loss,
)


class Description(NamedTuple):
    """What `ShowAttendTell` says of images when it is given the words before each word.

    Attributes:
        logits: (B, T, vocab_size), of the words.
        weights: (B, T, L), alpha, over the annotations.
        choice: with hard attention what was looked at, (B, T) each (its context (B, T, D)).
    """

    logits: Tensor
    weights: Tensor
    choice: HardChoice | None


class ConvEncoder(nn.Module):
    """Annotations with a receptive field of 12 x 12 pixels, one every 4 pixels (section 3.1.1).

    The paper takes a lower layer of a deep network for one reason: attention to an annotation says
    where the model looks only if the annotation is of one place. An annotation that is so local
    does not know where that place is, so two channels hold its coordinates (1807.03247).

    Args:
        channels: of the images.
        annotation_dim: D, features of an annotation.
    """

    def __init__(self, channels: int = 1, annotation_dim: int = 128) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, annotation_dim, 4, stride=2, padding=1),
            nn.BatchNorm2d(annotation_dim),
            nn.ReLU(),
        )
        self.mix = nn.Conv2d(annotation_dim + 2, annotation_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, D, H // 4, W // 4)."""
        found = self.features(images)
        rows, columns = (torch.linspace(-1, 1, n).to(found) for n in found.shape[2:])
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        return self.mix(torch.cat([found, places.expand(len(found), -1, -1, -1)], 1)).relu()


class CaptionDecoder(AttentionRNN):
    """The LSTM of equations 1 to 7: each step looks where its last state points, then reads.

    Outputs (B, T, embed_dim) are the sums that the deep output layer takes to words (equation 7),
    contexts the gated ones (section 4.2.1). The first state, (h, c), has to be given. `forward`
    reads with soft attention, `choose` with hard attention, and `step`, for searches, with the one
    that the decoder is made for.

    Args:
        embed_dim, annotation_dim, hidden_dim, attention_dim: sizes of a word's embedding (m in the
            paper), of an annotation (D), of the LSTM (n) and of what scores.
        hard: whether it has a `HardAttention` as well, with the parameters of the soft one.
        backend: of the attention.
    """

    def __init__(
        self,
        embed_dim: int,
        annotation_dim: int,
        hidden_dim: int,
        attention_dim: int,
        *,
        hard: bool,
        backend: str | None,
    ) -> None:
        sizes = hidden_dim, annotation_dim, attention_dim
        soft = AdditiveAttention(*sizes, backend=backend)
        super().__init__(nn.LSTMCell(embed_dim + annotation_dim, hidden_dim), soft)
        self.gate = nn.Linear(hidden_dim, 1)  # f_beta
        self.from_hidden = nn.Linear(hidden_dim, embed_dim)  # L_h
        self.from_context = nn.Linear(annotation_dim, embed_dim, bias=False)  # L_z
        self.hard: HardAttention | None = None
        if hard:
            self.hard = HardAttention(*sizes, backend=backend)
            self.hard.query_proj, self.hard.key_proj = soft.query_proj, soft.key_proj
            self.hard.weight = soft.weight

    def _initial(self, prepared: PreparedMemory, attend: Any, state: Any) -> DecoderState:
        """Nothing is attended to before the first step, which does so itself."""
        value = prepared.memory.value
        return DecoderState(state, value.new_zeros(prepared.batch, prepared.value_dim))

    def _step(
        self, inputs: Tensor, attend: Any, state: DecoderState
    ) -> tuple[Tensor, Tensor, Tensor | None, DecoderState]:
        before = state.cell[0]
        context, weights = attend(before)  # equations 4 to 6
        context = self.gate(before).sigmoid() * context
        cell = self.cell(torch.cat([inputs, context], -1), state.cell)  # equations 1 to 3
        output = inputs + self.from_hidden(cell[0]) + self.from_context(context)
        return output, context, weights, DecoderState(cell, context)

    def step(
        self,
        inputs: Tensor,
        prepared: PreparedMemory,
        state: DecoderState,
        *,
        return_weights: bool = False,
    ) -> tuple[Any, ...]:
        """As `AttentionRNN.step`; the weights of hard attention are 1 where it looked."""
        if self.hard is None:
            return super().step(inputs, prepared, state, return_weights=return_weights)
        rows = torch.arange(prepared.batch, device=inputs.device)
        rows = rows.repeat_interleave(len(inputs) // max(prepared.batch, 1))
        own = prepared.index_select(rows)  # hard attention has one query a memory: a beam, its own
        look, places = self._look(own), own.memory.key.shape[1]

        def attend(hidden: Tensor) -> tuple[Tensor, Tensor]:
            choice = look(hidden)
            return choice.context, F.one_hot(choice.positions, places).to(choice.context)

        output, context, weights, now = self._step(inputs, attend, state)
        return (output, context, now, weights) if return_weights else (output, context, now)

    def choose(
        self, words: Tensor, annotations: Tensor, state: Any, expected: Tensor
    ) -> tuple[Tensor, Tensor, HardChoice]:
        """`forward` with hard attention (equations 8 and 9).

        Args:
            words: (B, T, embed_dim), their embeddings.
            annotations: (B, L, D), and state the first (h, c).
            expected: (B,), bool: which images get the expected context, which is soft attention's.

        Returns:
            outputs (B, T, embed_dim), weights (B, T, L), and the choices, of log-probability 0
            where the context is the expected one.
        """
        prepared = self.prepared(annotations)
        soft, look = self._attend(prepared, words.shape[1], True), self._look(prepared)
        choices: list[HardChoice] = []

        def attend(hidden: Tensor) -> tuple[Tensor, Tensor | None]:
            mean, weights = soft(hidden)
            choice = look(hidden)
            choices.append(choice._replace(log_prob=choice.log_prob.masked_fill(expected, 0.0)))
            return torch.where(expected.unsqueeze(-1), mean, choice.context), weights

        now = self._initial(prepared, attend, state)
        found = []
        for word in words.unbind(1):
            output, _, weights, now = self._step(word, attend, now)
            found.append((output, weights))
        outputs, alphas = (torch.stack(x, 1) for x in zip(*found, strict=True))
        return outputs, alphas, HardChoice(*(torch.stack(x, 1) for x in zip(*choices, strict=True)))

    def _look(self, prepared: PreparedMemory) -> Callable[[Tensor], HardChoice]:
        assert self.hard is not None
        memory = prepared.memory
        projected = ProjectedMemory(memory.key, memory.value, memory.weight, memory.key_lengths)
        return partial(self.hard.step, prepared=projected)


class ShowAttendTell(nn.Module):
    """Describes an image word by word, looking at a part of it for each word.

    Args:
        encoder: images -> annotations (B, D, h, w) of L = h * w places; `ConvEncoder`, or the lower
            layers of any convolutional network (the paper: VGG's 14 x 14 of 512 features).
        vocab_size: K, the number of tokens; 0 is padding.
        begin, end: the tokens before the first word and after the last.
        annotation_dim, embed_dim, hidden_dim, attention_dim: sizes; see `CaptionDecoder`.
        attention: "soft" (section 4.2) or "hard" (section 4.1).
        doubly_stochastic: lambda of equation 14.
        reward_weight, entropy_weight: lambda_r and lambda_e of hard attention's learning rule.
        expected_chance: of an image to be read with expected contexts in hard attention's training.
        backend: as in `attnkernels.additive_attention`.

    Attributes:
        baseline: (), the moving average of a word's log p that hard attention is rewarded against.

    Raises:
        ValueError: a token is not in the vocabulary, or ``attention`` is neither.
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
        attention: str = "soft",
        doubly_stochastic: float = 1.0,
        reward_weight: float = 1.0,
        entropy_weight: float = 0.002,
        expected_chance: float = 0.5,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if attention not in ("soft", "hard"):
            raise ValueError(f"attention is {attention!r}; it must be 'soft' or 'hard'")
        for name, token in (("begin", begin), ("end", end)):
            if not 0 < token < vocab_size:
                raise ValueError(
                    f"{name} is {token}; it must be a token, in [1, {vocab_size}), for 0 is padding"
                )
        self.encoder, self.begin, self.end = encoder, begin, end
        self.doubly_stochastic = doubly_stochastic
        self.reward_weight, self.entropy_weight = reward_weight, entropy_weight
        self.expected_chance = expected_chance
        self.embed = nn.Embedding(vocab_size, embed_dim, padding_idx=0)
        self.decoder = CaptionDecoder(
            embed_dim,
            annotation_dim,
            hidden_dim,
            attention_dim,
            hard=attention == "hard",
            backend=backend,
        )
        self.first = nn.Sequential(nn.Linear(annotation_dim, 2 * hidden_dim), nn.Tanh())
        self.output = nn.Linear(embed_dim, vocab_size)  # L_o
        self.register_buffer("baseline", torch.zeros(()))

    def annotate(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Annotations (B, L, D), row by row, and the first (h, c) of the LSTM (section 3.1.2).

        Raises:
            ValueError: images is not (B, channels, H, W), or the encoder's result does not fit.
        """
        if images.ndim != 4:
            raise ValueError(
                f"images has shape {tuple(images.shape)}; it must be (B, channels, H, W)"
            )
        found, features = self.encoder(images), self.first[0].in_features
        if found.ndim != 4 or found.shape[1] != features:
            raise ValueError(
                f"encoder gave {tuple(found.shape)}; it must give (B, annotation_dim, h, w) with "
                f"annotation_dim {features}"
            )
        annotations = found.flatten(2).mT
        return annotations, self.first(annotations.mean(1)).chunk(2, -1)

    def forward(self, images: Tensor, tokens: Tensor) -> Description:
        """The distribution of every word, those before it given.

        Hard attention draws in training, except for images, drawn with `expected_chance`, that get
        expected contexts throughout (section 4.1); in eval() it takes the likeliest place.

        Args:
            images: (B, channels, H, W), floating.
            tokens: (B, T), int64: ``begin`` and then words.

        Raises:
            ValueError: a shape does not fit.
        """
        if tokens.ndim != 2 or len(tokens) != len(images):
            raise ValueError(
                f"tokens has shape {tuple(tokens.shape)}; it must be (B, T) with the batch of "
                f"images, {len(images)}"
            )
        annotations, state = self.annotate(images)
        words = self.embed(tokens)
        if self.decoder.hard is None:
            outputs, _, _, weights = self.decoder(
                words, annotations, state=state, return_weights=True
            )
            return Description(self.output(outputs), weights, None)
        chance = self.expected_chance if self.training else 0.0
        expected = torch.rand(len(images), device=images.device) < chance
        outputs, weights, choice = self.decoder.choose(words, annotations, state, expected)
        return Description(self.output(outputs), weights, choice)

    def loss(self, images: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
        """What training makes small, a mean over images.

        Soft attention: equation 14. Hard attention: section 4.1's rule, with the moving average as
        its baseline and the entropy. There the log-probability of the whole caption rewards every
        look; here that of the word it was for and of later ones, each less the baseline. A look
        changes nothing before it, so the expectation is that of equation 12, with less variance.
        In training the baseline moves.

        Args:
            images: as in `forward`.
            captions: (B, T + 1), int64: ``begin``, words, ``end``, padding.
            lengths: (B,), int64: how many of them count, ``begin`` and ``end`` included.

        Raises:
            ValueError: a shape does not fit.
        """
        if lengths.shape != captions.shape[:1]:
            raise ValueError(
                f"lengths has shape {tuple(lengths.shape)}; it must be (B,), ({len(captions)},)"
            )
        if len(lengths) and not 2 <= int(lengths.min()) <= int(lengths.max()) <= captions.shape[1]:
            raise ValueError(
                f"lengths lies in [{int(lengths.min())}, {int(lengths.max())}]; it must lie in "
                f"[2, {captions.shape[1]}], with begin and end and no more than captions has"
            )
        logits, weights, choice = self(images, captions[:, :-1])
        steps = torch.arange(1, captions.shape[1], device=captions.device)
        counts = (steps < lengths.unsqueeze(-1)).to(logits.dtype)  # (B, T)
        log_p = -F.cross_entropy(logits.mT, captions[:, 1:], reduction="none") * counts
        if choice is None:
            seen = (weights * counts.unsqueeze(-1)).sum(1)
            doubly = (1 - seen).square().sum(1)
            return (self.doubly_stochastic * doubly - log_p.sum(1)).mean()
        if self.training:
            self.baseline.mul_(0.9).add_(log_p.detach().sum() / counts.sum(), alpha=0.1)
        better = (log_p - self.baseline) * counts
        to_come = better.flip(1).cumsum(1).flip(1)
        rewarded = self.reward_weight * score_function_loss(choice.log_prob, to_come)
        regularised = rewarded - self.entropy_weight * choice.entropy
        return (regularised * counts - log_p).sum(1).mean()

    @torch.no_grad()
    def caption(self, images: Tensor, *, max_length: int, beams: int = 1) -> Decoded:
        """The best captions: greedy search, or a beam's; call eval() before.

        Args:
            images: as in `forward`.
            max_length: the most tokens, ``end`` included.
            beams: how many captions are kept, and returned.

        Raises:
            ValueError: an argument does not fit.
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
