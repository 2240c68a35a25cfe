"""The parts that models of sequences of tokens share: embeddings, searches, readout, checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..functional import checks
from ..nn import Decoded, beam_search, greedy_search, inputs


class Translator(nn.Module):
    """The base of models from source tokens to target tokens: embeddings of both, and searches.

    A subclass defines the arguments of the searches in `_searched`.

    Args:
        sizes: source_size and target_size.
        embedding_dim, dropout, begin, end: as in `RNNsearch`.

    Raises:
        TypeError: ``dropout`` is not a number, or begin or end is not an int.
        ValueError: a size is not a positive int, begin or end is not a target token other than
            padding, or dropout is not in [0, 1).
    """

    attends = False

    def __init__(
        self, sizes: tuple[int, int], embedding_dim: int, dropout: float, begin: int, end: int
    ) -> None:
        super().__init__()
        source_size, target_size, embedding_dim = inputs.sizes(
            source_size=sizes[0], target_size=sizes[1], embedding_dim=embedding_dim
        )
        dropout = checks.number("dropout", dropout)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.begin = token("begin", begin, target_size)
        self.end = token("end", end, target_size)
        self.source_embedding = nn.Embedding(source_size, embedding_dim, padding_idx=0)
        self.target_embedding = nn.Embedding(target_size, embedding_dim, padding_idx=0)
        self.dropout = nn.Dropout(dropout)

    def greedy_search(
        self,
        source: Tensor,
        source_lengths: Tensor,
        *,
        max_length: int,
        return_alignments: bool = False,
    ) -> Decoded:
        """Run `attnkernels.nn.greedy_search` on a source as in `forward`; call eval() first.

        ``return_alignments`` needs a model with attention.
        """
        found = self._searched(source, source_lengths) | self._aligned(return_alignments)
        return greedy_search(**found, max_length=max_length)

    def beam_search(
        self,
        source: Tensor,
        source_lengths: Tensor,
        *,
        max_length: int,
        beams: int = 10,
        length_penalty: float = 0.0,
        return_alignments: bool = False,
    ) -> Decoded:
        """Run `attnkernels.nn.beam_search` on a source as in `forward`; call eval() first.

        ``return_alignments`` needs a model with attention.
        """
        found = self._searched(source, source_lengths) | self._aligned(return_alignments)
        return beam_search(
            **found, max_length=max_length, beams=beams, length_penalty=length_penalty
        )

    def _searched(self, source: Tensor, source_lengths: Tensor) -> dict[str, Any]:
        """Return this model's arguments for `attnkernels.nn.beam_search`."""
        raise NotImplementedError

    def _aligned(self, return_alignments: bool) -> dict[str, bool]:
        """Return the option of a search that traces alignments; refuse it without attention."""
        if return_alignments and not self.attends:
            model = type(self).__name__
            raise ValueError(
                f"return_alignments must be False for {model}, which has no attention, got True"
            )
        return {"return_alignments": return_alignments}

    def _maxout(self, input_dim: int, maxout_dim: int) -> MaxoutReadout:
        """Return the readout of the target's tokens."""
        size = self.target_embedding.num_embeddings
        return MaxoutReadout(input_dim, maxout_dim, size, self.dropout.p)

    def _embedded(self, source: Tensor) -> Tensor:
        return self.dropout(self.source_embedding(source))

    def _shifted(self, target: Tensor, batch: int) -> Tensor:
        """Return the decoder's inputs for target (B, T): ``begin``, then all but the last token."""
        tokens("target", target, self.target_embedding.num_embeddings, batch)
        inputs = torch.cat([torch.full_like(target[:, :1], self.begin), target[:, :-1]], 1)
        return self.dropout(self.target_embedding(inputs))


class MaxoutReadout(nn.Module):
    """Logits of a decoder's output and context, by a deep output with one maxout layer.

    t_j = max(u_{2j-1}, u_{2j}), u = O [s; c], logits = G t (1409.0473, appendix A.2.2). Which two
    entries of u belong together depends on the order of the rows of O alone.

    Args:
        input_dim: features of s and c together.
        maxout_dim: maxout units.
        target_size: number of logits.
        dropout: dropout probability of the maxout units, in training.
    """

    def __init__(self, input_dim: int, maxout_dim: int, target_size: int, dropout: float) -> None:
        super().__init__()
        self.pieces = nn.Linear(input_dim, 2 * maxout_dim)
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Linear(maxout_dim, target_size)

    def forward(self, output: Tensor, context: Tensor) -> Tensor:
        """Return the logits (..., target_size) of s (..., hidden) and c (..., context)."""
        u = self.pieces(torch.cat([output, context], -1))
        return self.logits(self.dropout(torch.maximum(*u.chunk(2, -1))))

    if TYPE_CHECKING:
        __call__ = forward


def read(encoder: nn.RNNBase, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
    """Run a recurrent encoder over padded sequences.

    Args:
        encoder: with batch_first.
        inputs: (B, m, features).
        lengths: (B,), on the CPU, each in [1, m]; positions beyond are not read.

    Returns:
        The outputs (B, m, features), zeros beyond the lengths, and the last state of the encoder.
    """
    packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    outputs, state = encoder(packed)
    outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=inputs.shape[1])
    return outputs, state


def token(name: str, value: int, size: int) -> int:
    """Return `value` as an int; raise unless it is a token other than padding: in [1, size)."""
    value = checks.integer(name, value)
    if not 0 < value < size:
        raise ValueError(f"{name} must be a token in [1, {size}), got {value}")
    return value


def tokens(name: str, x: Tensor, size: int, batch: int | None = None) -> None:
    """Check tokens (B, T): int64, in [0, size), at least one, and of `batch` rows if given.

    Raises:
        TypeError: it is not an int64 tensor.
        ValueError: its shape or a token does not fit.
    """
    checks.tensor(name, x, "(B, T)", (batch, None), (torch.int64,))
    if not x.numel():
        raise ValueError(f"{name} must have shape (B, T), not empty, got {tuple(x.shape)}")
    low, high = x.min().item(), x.max().item()
    if low < 0 or high >= size:
        raise ValueError(f"{name} must have tokens in [0, {size}), got tokens from {low} to {high}")


def lengths_on_cpu(
    name: str, lengths: Tensor, batch: int, longest: int, shortest: int = 1
) -> Tensor:
    """Check lengths (B,), int64, in [shortest, longest], and return them on the CPU.

    Raises:
        TypeError: they are not an int64 tensor.
        ValueError: their shape or a length does not fit.
    """
    checks.tensor(name, lengths, "(B,)", (batch,), (torch.int64,))
    lengths = lengths.cpu()
    checks.within(name, lengths, shortest, longest, "the length of the longest sequence")
    return lengths
