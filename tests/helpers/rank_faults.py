"""Ranks that disagree, and a rank that fails: what each of them raises."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from attnkernels.distributed import context_parallel_attention, gather_sequence, split_sequence

from . import ranks

SECONDS = 4  # the timeout of the group

# What rank 1 does differently: its inputs, or its options.
DIFFERENT: dict[str, dict[str, Any]] = {
    "another d": {"d": 5},
    "another dv": {"dv": 5},
    "another dtype": {"dtype": torch.float64},
    "another batch": {"batch": 3},
    "another activation": {"activation": "relu"},
    "another scale": {"scale": 2.0},
    "causal": {"is_causal": True},
    "dropout": {"dropout_p": 0.5},
    "balanced": {"balanced": True},
    "other lengths": {"key_lengths": torch.tensor([3])},
    "a wrong mask": {"attn_mask": torch.ones(4, 5, dtype=torch.bool)},
    "a wrong option": {"dropout_p": 2.0},
    "no gradient": {"grad": False},
}


def call(check: bool = True, group: Any = None, **given: Any) -> Any:
    """Call with 4 queries and 6 keys per rank."""
    batch, d, dv = given.pop("batch", 1), given.pop("d", 4), given.pop("dv", 3)
    dtype, grad = given.pop("dtype", torch.float32), given.pop("grad", True)
    shapes = (batch, 4, d), (batch, 6, d), (batch, 6, dv), (d,)
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=grad) for shape in shapes]
    group = dist.group.WORLD if group is None else group
    return context_parallel_attention(*inputs, group, check=check, **given)


def _message(**given: Any) -> str:
    try:
        call(**given)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _case(name: str) -> Any:
    rank = dist.get_rank()
    if name in DIFFERENT:
        return _message(**(DIFFERENT[name] if rank else {}))
    return getattr(_Cases, name.replace(" ", "_"))(rank)


class _Cases:
    @staticmethod
    def second_derivatives(rank: int) -> str:
        query = torch.randn(1, 3, 4, requires_grad=True)
        key, value, weight = torch.randn(1, 5, 4), torch.randn(1, 5, 2), torch.randn(4)
        context = context_parallel_attention(query, key, value, weight, dist.group.WORLD)
        try:
            torch.autograd.grad(context.sum(), query, create_graph=True)
        except RuntimeError as error:
            return str(error)
        return "no error"

    @staticmethod
    def forward_mode(rank: int) -> str:
        query = torch.randn(1, 3, 4)
        key, value, weight = torch.randn(1, 5, 4), torch.randn(1, 5, 2), torch.randn(4)

        def attended(query: Any) -> Any:
            return context_parallel_attention(query, key, value, weight, dist.group.WORLD)

        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(query, torch.ones_like(query))
            try:
                attended(dual)
            except NotImplementedError as error:
                return str(error)
        return "no error"

    @staticmethod
    def groups(rank: int) -> list[str]:
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("cp", "tp"))
        assert call(group=mesh["cp"]).shape == (1, 4, 3)
        assert call(group=mesh["tp"]).shape == (1, 4, 3)  # alone
        alone = dist.new_group([0])
        return [
            _message(group=mesh),
            _message(group="cp"),
            "" if rank == 0 else _message(group=alone),
        ]

    @staticmethod
    def sequences(rank: int) -> bool:
        whole = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(1))
        for balanced in (False, True):
            for dim in (-2, 0, 2):
                options: dict[str, Any] = {"dim": dim, "balanced": balanced}
                own = split_sequence(whole, dist.group.WORLD, **options)
                assert own.shape[dim] < whole.shape[dim]
                found = gather_sequence(own, dist.group.WORLD, **options)
                assert torch.equal(found, whole)
        uneven = whole[:, : 5 if rank else 0]
        assert torch.equal(gather_sequence(uneven, dist.group.WORLD), whole[:, :5])
        return True

    @staticmethod
    def a_rank_that_raises(rank: int) -> str:
        """Come last: the group is of no use afterwards."""
        if rank:
            raise ValueError("on its own")
        return _message(check=False)


NAMES = (*DIFFERENT, "second derivatives", "forward mode", "groups", "sequences")
LAST = "a rank that raises"


def worker(rank: int, folder: Path) -> None:
    """Run all cases as one of the processes."""
    timeout = timedelta(seconds=SECONDS)
    ranks.run(rank, folder, (*NAMES, LAST), _case, timeout=timeout)
