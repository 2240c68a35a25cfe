"""Cut a sequence into the rows of each rank, and put it together again."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..functional import checks
from .shards import even_sizes, shards
from .transfer import Group


def split_sequence(
    x: Tensor, mesh_or_group: Any, *, dim: int = -2, balanced: bool = False
) -> Tensor:
    """Return the rows of this rank of a sequence that every rank has as a whole.

    The numbers of rows differ by at most one. Without ``balanced`` they are those of
    `torch.tensor_split`; with it, each rank has a part from the front and one from the back.

    Args:
        x: any tensor, the same on all ranks.
        mesh_or_group: the ranks, as in `context_parallel_attention`.
        dim: the dimension of the rows: -2 of a query, key or value, -1 of its lse, for example.
        balanced: as in `context_parallel_attention`.

    Returns:
        A copy, or a view if its rows are neighbours. It has a derivative.

    Raises:
        TypeError, ValueError: an argument has the wrong type, or x no dimension `dim`.
    """
    group, dim = _checked(x, mesh_or_group, dim, balanced)
    mine = shards(even_sizes(x.shape[dim], group.size), balanced)[group.rank]
    parts = [x.narrow(dim, rows.start, rows.length) for rows in mine]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def gather_sequence(
    x: Tensor, mesh_or_group: Any, *, dim: int = -2, balanced: bool = False
) -> Tensor:
    """Return the whole sequence on every rank, from the rows of each: undo `split_sequence`.

    Every rank calls it. The ranks may have different numbers of rows.

    Args:
        x: the rows of this rank; its other dimensions are the same on all ranks.
        mesh_or_group, dim, balanced: as in `split_sequence`.

    Returns:
        The whole sequence, without a derivative.

    Raises:
        TypeError, ValueError: as `split_sequence`.
    """
    group, dim = _checked(x, mesh_or_group, dim, balanced)
    own = x.detach().movedim(dim, 0)
    sizes = [size for (size,) in group.gather_numbers([own.shape[0]], x.device)]
    if group.size == 1:
        return x.detach()
    # Ranks with fewer rows send rows of zeros after them.
    sent = own.new_zeros(max(sizes), *own.shape[1:])
    sent[: own.shape[0]] = own
    every = [torch.empty_like(sent) for _ in sizes]
    dist.all_gather(every, sent, group=group.group)
    whole = own.new_empty(sum(sizes), *own.shape[1:])
    for rows, given in zip(shards(sizes, balanced), every, strict=True):
        for part in rows:
            whole[part.whole] = given[part.here]
    return whole.movedim(0, dim)


def _checked(x: Tensor, mesh_or_group: Any, dim: int, balanced: bool) -> tuple[Group, int]:
    checks.tensor("x", x)
    checks.flags(balanced=balanced)
    dim = checks.integer("dim", dim)
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim must be a dimension of x {tuple(x.shape)}, got {dim}")
    return Group(mesh_or_group), dim % x.ndim
