"""Modules that are exported, with their inputs, whose sizes are dynamic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from attnkernels.models import RNNsearch
from attnkernels.nn import AdditiveAttention, AttentionRNN, PointerHead

EXAMPLE = (3, 5, 7)  # the sizes batch, n and m that are traced
SIZES = [(2, 4, 9), (5, 2, 3), (2, 2, 2), (1, 1, 1)]  # at which the result is used


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = AdditiveAttention(12, 10, 8, num_heads=2, normalize=True)

    def forward(self, query: Tensor, key: Tensor, lengths: Tensor, mask: Tensor) -> Any:
        options = {"key_lengths": lengths, "attn_mask": mask, "return_weights": True}
        return self.attention(query, key, **options)


class Decoder(nn.Module):
    """Three steps, whose number is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = AttentionRNN(nn.GRUCell(5 + 10, 7), AdditiveAttention(7, 10, 8))

    def forward(self, inputs: Tensor, memory: Tensor, lengths: Tensor) -> Any:
        outputs, contexts, state = self.decoder(inputs, memory, lengths)
        return outputs, contexts, state.context


class Step(nn.Module):
    """A step of RNNsearch, from the annotations of its encoder."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"embedding_dim": 4, "encoder_dim": 3, "hidden_dim": 5, "align_dim": 4}
        self.model = RNNsearch(9, 9, maxout_dim=3, **sizes)

    def forward(self, token: Tensor, annotations: Tensor, lengths: Tensor, state: Tensor) -> Any:
        decoder = self.model.decoder
        prepared = decoder.prepared(annotations, lengths)
        inputs = self.model.target_embedding(token)
        first = decoder.initial_state(prepared, state)
        output, context, following = decoder.step(inputs, prepared, first)
        return self.model.readout(output, context), following.cell


class Pointer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = PointerHead(6, 5, 8)

    def forward(self, query: Tensor, key: Tensor, lengths: Tensor) -> Tensor:
        return self.head(query, key, key_lengths=lengths)


@dataclass(frozen=True)
class Exported:
    """A module, a function that makes its inputs of sizes batch, n and m, and dynamic sizes."""

    module: Callable[[], nn.Module]
    inputs: Callable[[int, int, int], tuple[Tensor, ...]]
    dynamic: tuple[dict[int, Any], ...]


def lengths(batch: int, m: int) -> Tensor:
    """Return falling lengths, of which the first is m and the last of several is 0."""
    return torch.linspace(m, 0, batch).long()


BATCH, BATCH_AND_LENGTH = {0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
CASES = {
    "attention": Exported(
        Attention,
        lambda batch, n, m: (
            torch.randn(batch, n, 12), torch.randn(batch, m, 10), lengths(batch, m),
            torch.rand(batch, 1, n, m) < 0.7,
        ),
        (
            BATCH_AND_LENGTH, BATCH_AND_LENGTH, BATCH,
            {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},
        ),
    ),
    "decoder": Exported(
        Decoder,
        lambda batch, n, m: (
            torch.randn(batch, 3, 5), torch.randn(batch, m, 10), lengths(batch, m)
        ),
        (BATCH, BATCH_AND_LENGTH, BATCH),
    ),
    "step": Exported(
        Step,
        lambda batch, n, m: (
            torch.randint(9, (batch,)), torch.randn(batch, m, 6), lengths(batch, m),
            torch.randn(batch, 5),
        ),
        (BATCH, BATCH_AND_LENGTH, BATCH, BATCH),
    ),
    "pointer": Exported(
        Pointer,
        lambda batch, n, m: (
            torch.randn(batch, n, 6), torch.randn(batch, m, 5), lengths(batch, m)
        ),
        (BATCH_AND_LENGTH, BATCH_AND_LENGTH, BATCH),
    ),
}  # fmt: skip


class Together(nn.Module):
    """All of them, for what takes long to make."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(case.module() for case in CASES.values())
        self.counts = [len(case.dynamic) for case in CASES.values()]

    def forward(self, *inputs: Tensor) -> Any:
        rest = iter(inputs)
        return [
            module(*islice(rest, count))
            for module, count in zip(self.each, self.counts, strict=True)
        ]


TOGETHER = Exported(
    Together,
    lambda *sizes: tuple(x for case in CASES.values() for x in case.inputs(*sizes)),
    tuple(x for case in CASES.values() for x in case.dynamic),
)
