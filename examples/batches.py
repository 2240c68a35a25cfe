"""Batches of pairs of token sequences, with little padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PADDING, BEGIN, END = 0, 1, 2  # tokens of every source and target


class Batches:
    """Batches of pairs of similar lengths; every epoch has its own order.

    Args:
        source, target: the tokens of each pair; those of the target with their end.
        batch: pairs per batch.
        seed: seed of the order.
        device: device of the batches.
    """

    def __init__(
        self,
        source: Sequence[Sequence[int]],
        target: Sequence[Sequence[int]],
        batch: int,
        seed: int,
        device: str,
    ) -> None:
        self.source, self.source_lengths = padded(source)
        self.target, self.target_lengths = padded(target)
        self.batch, self.seed, self.device = batch, seed, device
        self.number = -(-len(source) // batch)  # of batches in an epoch
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
        lengths = self.source_lengths * 1000 + self.target_lengths
        shuffled = torch.randperm(len(lengths), generator=generator)
        batches = shuffled[lengths[shuffled].argsort(stable=True)].split(self.batch)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return tokens (N, longest), padded with 0, and the lengths (N,)."""
    tensors = [torch.tensor(row) for row in rows]
    tokens = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=PADDING)
    return tokens, torch.tensor([len(row) for row in rows])
