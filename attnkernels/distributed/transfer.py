"""Tensors from rank to rank of one group, under way while the ranks compute."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

observers: list[Callable[[float], None]] = []
"""Called with the seconds of each wait; on a GPU the host does not wait."""


class Group:
    """The ranks that share a sequence."""

    def __init__(self, mesh_or_group: Any) -> None:
        """Take a DeviceMesh of one dimension or a ProcessGroup.

        Raises:
            TypeError: it is neither.
            ValueError: the mesh has several dimensions, or this process is not in the group.
        """
        if isinstance(mesh_or_group, DeviceMesh):
            if mesh_or_group.ndim != 1:
                raise ValueError(
                    "mesh_or_group must have one dimension, such as mesh['cp'], got a mesh of"
                    f" {mesh_or_group.ndim}: {mesh_or_group.mesh_dim_names}"
                )
            mesh_or_group = mesh_or_group.get_group()
        if mesh_or_group is dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError("mesh_or_group must have this process among its ranks")
        if not isinstance(mesh_or_group, dist.ProcessGroup):
            raise TypeError(
                "mesh_or_group must be a DeviceMesh or a ProcessGroup, got"
                f" {type(mesh_or_group).__name__}"
            )
        self.group = mesh_or_group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)

    def gather_numbers(self, numbers: list[int], device: torch.device) -> list[list[int]]:
        """Return the numbers of every rank, all lists of one length."""
        own = torch.tensor(numbers, dtype=torch.int64, device=device)
        if self.size == 1:
            return [numbers]
        every = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(every, own, group=self.group)
        return [each.tolist() for each in torch.stack(every).cpu()]

    def gather_texts(self, text: str, device: torch.device) -> list[str]:
        """Return the text of every rank."""
        own = list(text.encode())
        longest = max(count for (count,) in self.gather_numbers([len(own)], device))
        every = self.gather_numbers([len(own), *own, *[0] * (longest - len(own))], device)
        return [bytes(numbers[1 : 1 + numbers[0]]).decode() for numbers in every]

    def start(
        self, sends: list[tuple[Tensor, int]], receives: list[tuple[Tensor, int]]
    ) -> Transfer:
        """Send tensors to ranks of the group and receive others, (tensor, rank) each."""
        ops = []
        for kind, given in (dist.isend, sends), (dist.irecv, receives):
            for x, rank in given:
                if x.numel():
                    peer = dist.get_global_rank(self.group, rank)
                    ops.append(dist.P2POp(kind, x, peer, self.group))
        works = dist.batch_isend_irecv(ops) if ops else []
        return Transfer(works, [x for x, _ in (*sends, *receives)])


class Transfer:
    """Tensors under way."""

    def __init__(self, works: list[Any], tensors: list[Tensor]) -> None:
        self.works, self.tensors = works, tensors  # which must live until they have arrived

    def wait(self) -> None:
        """Wait until all have arrived; raise what the group raises after its timeout."""
        begun = perf_counter()
        for work in self.works:
            work.wait()
        taken = perf_counter() - begun
        self.works, self.tensors = [], []
        for observer in observers:
            observer(taken)
