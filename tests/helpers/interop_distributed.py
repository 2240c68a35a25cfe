"""Every swapped module trained in two processes by DDP, beside the library's own."""

from __future__ import annotations

import copy
import os
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from interop.libraries import SWAPS
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .interop_swap import LENGTHS, SwapCase, batches, keep, plain, swapped, tensors

RANKS, STEPS, RATE = 2, 3, 0.05


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
    """Run all cases as one of the processes; save what both modules became, or the error."""
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    results: dict[str, Any] = {}
    for name, case in SWAPS.items():
        torch.manual_seed(0)
        module = swapped(case)
        own = plain(copy.deepcopy(module))
        torch.manual_seed(1 + rank)
        inputs = tuple(batches(case, torch.float32, grad=False).values())[:2]
        try:
            results[name] = [trained(case, each, inputs) for each in (module, own)]
        except Exception:
            results[name] = traceback.format_exc()
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
