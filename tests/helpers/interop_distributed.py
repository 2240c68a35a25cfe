"""Every swapped module trained in two processes by DDP, beside the library's own."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from interop.libraries import SWAPS
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import ranks
from .interop_swap import LENGTHS, SwapCase, batches, keep, plain, swapped, tensors

STEPS, RATE = 3, 0.05


class Decoder(nn.Module):
    """The attention as part of a model that is called once for all its steps."""

    def __init__(self, case: SwapCase, attention: nn.Module) -> None:
        super().__init__()
        self.case, self.attention = case, attention

    def forward(self, memory: Tensor, states: Tensor) -> Tensor:
        found = tensors(self.case.run(self.attention, memory, states, LENGTHS, keep))
        return sum((x.square().sum() for x in found), torch.zeros(()))


def trained(case: SwapCase, attention: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the parameters after the steps."""
    module = DistributedDataParallel(Decoder(case, attention))
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        module(*inputs).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return {name: x.detach() for name, x in attention.named_parameters()}


def worker(rank: int, folder: Path) -> None:
    """Run all cases as one of the processes: what the swapped module and the library's became."""

    def case(name: str) -> list[dict[str, Tensor]]:
        torch.manual_seed(0)
        module = swapped(SWAPS[name], torch.float64)
        own = plain(copy.deepcopy(module))
        torch.manual_seed(1 + rank)
        inputs = tuple(batches(SWAPS[name], torch.float64, grad=False).values())[:2]
        return [trained(SWAPS[name], each, inputs) for each in (module, own)]

    ranks.run(rank, folder, SWAPS, case)
