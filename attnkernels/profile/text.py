"""Read a text and encode it with a recurrent network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..measure.files import STANDARD_INPUT, waiting
from ..measure.wording import count
from .units import show_mib

EMBEDDING = 64


class Text(NamedTuple):
    """A text and its source."""

    source: str
    characters: str


class Attended(NamedTuple):
    """The inputs of additive attention: (1, n, dim) each, and weight (dim,)."""

    query: Tensor
    key: Tensor
    value: Tensor
    weight: Tensor


def read_text(path: str | None = None) -> Text:
    """Read a UTF-8 file, or standard input for "-"; without a path, Python's own documentation.

    A byte-order mark is no character of the text.

    Raises:
        ValueError: the file is missing, unreadable, empty or not UTF-8.
    """
    if path is None:
        from pydoc_data.topics import topics

        return Text("pydoc_data.topics", "\n".join(topics[name] for name in sorted(topics)))
    shell = path == "-"
    name = "of standard input" if shell else path
    try:
        with (
            waiting(f"the text {name}"),
            open(0 if shell else path, encoding="utf-8", closefd=not shell) as file,
        ):
            characters = file.read().removeprefix("\ufeff")
    except OSError as error:
        raise ValueError(f"cannot read the text {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the text {name} is not UTF-8: byte {error.object[error.start]:#04x} "
            f"at position {error.start} ({error.reason})"
        ) from None
    if not characters:
        raise ValueError(f"the text {name} is empty")
    return Text("standard input" if shell else path, characters)


def source(path: str | None) -> Path | None:
    """Return the file that `read_text` reads, None for Python's own documentation."""
    return STANDARD_INPUT if path == "-" else Path(path) if path else None


def encoder_bytes(length: int, dim: int) -> float:
    """Estimate the peak memory of `encode`.

    The bytes per character are those of measurements on a CPU at widths from 8 to 256; the weights
    are counted twice, since the GRU packs a copy.
    """
    weights = 192 * dim + 3.5 * dim**2
    return length * (2000 + 19 * dim) + 2 * 4 * weights


def check_memory(length: int, dim: int, free_bytes: int) -> None:
    """Raise ValueError if encoding `length` characters does not fit into the free memory."""
    needed = encoder_bytes(length, dim)
    if needed > free_bytes:
        raise ValueError(
            f"encoding {count(length, 'character')} at width {dim} needs about "
            f"{show_mib(needed / 2**20)}, and {show_mib(free_bytes / 2**20)} are free"
        )


@torch.no_grad()
def encode(characters: Sequence[str], dim: int, seed: int) -> Attended:
    """Encode every character as a query, a key and a value of width `dim` (even).

    The encoder has the embedding, the bidirectional GRU and the two projections of RNNsearch
    (Bahdanau et al., 1409.0473, section 3.2; the annotations are the values). It is untrained and
    drawn from `seed`; torch's global generator keeps its state.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"dim must be even, 2 or more, for the two directions of a GRU, got {dim}")
    alphabet = {character: index for index, character in enumerate(sorted(set(characters)))}
    indices = torch.tensor([[alphabet[character] for character in characters]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embedding = nn.Embedding(len(alphabet), EMBEDDING)
        encoder = nn.GRU(EMBEDDING, dim // 2, batch_first=True, bidirectional=True)
        to_query = nn.Linear(dim, dim, bias=False)
        to_key = nn.Linear(dim, dim, bias=False)
        weight = torch.randn(dim) / dim**0.5
    states, _ = encoder(embedding(indices))
    return Attended(to_query(states), to_key(states), states, weight)
