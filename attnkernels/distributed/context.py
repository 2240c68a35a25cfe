"""Attention over a sequence that the ranks of a group share."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from ..backends import select
from ..backends.base import Problem
from ..functional import arguments, checks
from ..functional.autocast import follows_autocast
from ..functional.checks import NO_WINDOW
from ..functional.results import Result, results
from ..ops.codes import KEY, VALUE, ActivationName, PrecisionName
from ..ops.seed import draw_seed
from ..ops.signature import Options
from . import ring
from .agreement import agreed, described
from .shards import Window, shards
from .transfer import Group


@follows_autocast
def context_parallel_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    mesh_or_group: DeviceMesh | ProcessGroup,
    *,
    attn_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    is_causal: bool = False,
    window_size: tuple[int, int] = NO_WINDOW,
    dropout_p: float = 0.0,
    activation: ActivationName = "tanh",
    negative_slope: float = 0.2,
    scale: float = 1.0,
    precision: PrecisionName = "exact",
    return_weights: bool = False,
    return_lse: bool = False,
    backend: str | None = None,
    balanced: bool = False,
    check: bool = False,
) -> Result:
    """Compute `additive_attention` of one long sequence whose rows the ranks of a group share.

    Every rank calls it with its own rows, as `split_sequence` cuts them, and gets the context of
    its own queries. Keys and values go round in pieces, while the ranks compute; so do the
    gradients of keys and values in the backward, which every rank must run. Ranks may hold
    different numbers of rows, or none.

    Args:
        query: (..., n, d), the queries of this rank. As in `additive_attention`, leading
            dimensions broadcast; they, d, dv and the dtype are the same on all ranks.
        key: (..., m, d), the keys of this rank. n and m may differ.
        value: (..., m, dv), their values.
        weight: (d,) or (..., d), the same on all ranks. Its gradient is the share of this rank's
            queries, and so is that of a mask that broadcasts over queries: the gradient of one
            process is the sum over the ranks, as for all parameters outside of the operator.
        mesh_or_group: the ranks, a DeviceMesh of one dimension or a ProcessGroup.
        attn_mask: broadcastable to (*L, n, M), for the queries of this rank and all M keys.
        key_lengths: as in `additive_attention`, in [0, M], the same on all ranks.
        is_causal, window_size: as in `additive_attention`, by the places of the rows in the whole
            sequence. Ranks that see nothing of a piece do not get it.
        dropout_p: as in `additive_attention`. The mask is that of one process whose generator is
            that of the first rank; the generators of all ranks advance.
        activation, negative_slope, scale, precision, return_weights, return_lse, backend: as in
            `additive_attention`. The weights are those of this rank's queries, (*L, n, M).
        balanced: True if each rank holds a part from the front of the sequence and one from its
            back, as `split_sequence` cuts with ``balanced=True``. In a causal call all ranks then
            have the same work.
        check: compare the shapes, dtypes and options of all ranks first, and raise on every rank
            if they do not fit. Without it, ranks that disagree may wait for each other until the
            timeout of the group.

    Returns:
        As `additive_attention`, for the queries of this rank.

    First derivatives are those of one process. There are none of second order, nor in forward mode.
    Packed sequences are not supported: split a batch of them over the ranks instead.

    Raises:
        TypeError, ValueError: as `additive_attention`; or mesh_or_group is wrong; or the ranks
            disagree.
        RuntimeError: another rank failed; or second derivatives are requested.
        NotImplementedError: forward-mode derivatives are requested.
    """
    group = Group(mesh_or_group)
    window = Window(*checks.window(is_causal, window_size))
    inputs = query, key, value, weight
    options = Options(
        dropout_p=dropout_p,
        window_left=window.left,
        window_right=window.right,
        activation=activation,
        negative_slope=negative_slope,
        scale=scale,
        return_weights=return_weights,
        precision=precision,
    )

    def of_rank() -> Options:
        checks.flags(return_lse=return_lse, balanced=balanced, check=check)
        return arguments.attention(*inputs, options)[1]

    more = {"key_lengths": key_lengths, "balanced": balanced, "backend": backend}
    device = query.device if isinstance(query, Tensor) else torch.device("cpu")
    of_ranks = partial(described, inputs, options, more)
    options = agreed(group, device, of_rank, of_ranks) if check else of_rank()
    seed, sizes = _exchanged(group, inputs, attn_mask, dropout_p)
    m = sum(size.keys for size in sizes)

    def of_masks() -> None:
        if attn_mask is not None or key_lengths is not None:
            keys, values = _without_memory(key, m), _without_memory(value, m)
            masked = options._replace(attn_mask=attn_mask, key_lengths=key_lengths)
            arguments.attention(query, keys, values, weight, masked)

    if check:
        agreed(group, device, of_masks, dict)
    else:
        of_masks()
    plan = ring.Plan(
        group,
        *ring.pieces(
            shards([size.queries for size in sizes], balanced),
            shards([size.keys for size in sizes], balanced),
            query.device,
        ),
        window,
        select(Problem(query.device.type, query.dtype), backend, inputs),
        options._replace(key_lengths=key_lengths, seed=seed),
        m,
        sizes[0].moved,
    )
    context, lse, weights = ring.RingAttention.apply(plan, *inputs, attn_mask)
    if not (return_weights or return_lse):
        return context.to(query.dtype)
    weights = weights.to(query.dtype) if return_weights else None
    return results(context.to(query.dtype), weights, lse if return_lse else None)


class _Size(NamedTuple):
    """The numbers of rows of a rank, and which gradients it wants, as it tells the others."""

    queries: int
    keys: int
    learns: int
    moved: int  # bits of KEY and VALUE


def _exchanged(
    group: Group, inputs: tuple[Tensor, ...], attn_mask: Tensor | None, dropout_p: float
) -> tuple[Tensor | None, list[_Size]]:
    """Return the seed that the first rank drew, or None without dropout, and all sizes."""
    query, key, value, weight = inputs
    learns = torch.is_grad_enabled()
    mine = [learns and x is not None and x.requires_grad for x in (*inputs, attn_mask)]
    own = _Size(query.shape[-2], key.shape[-2], any(mine), KEY * mine[1] + VALUE * mine[2])
    seed = draw_seed(query.device) if dropout_p else None
    drawn = 0 if seed is None else int(seed)
    every = group.gather_numbers([*own, drawn], query.device)
    if seed is not None:
        seed = seed.new_tensor(every[0][-1])
    sizes = [_Size(*numbers) for *numbers, _ in every]
    each = [_wanted(size) for size in sizes]
    if len(set(each)) > 1:
        said = "; ".join(f"rank {rank}: {names}" for rank, names in enumerate(each))
        raise ValueError(
            "key and value must require a gradient on all ranks or on none, and so must any of the"
            f" inputs, got {said}"
        )
    return seed, sizes


def _wanted(size: _Size) -> str:
    """Return the names of the inputs that require a gradient, as a message says them."""
    names = [name for name, bit in (("key", KEY), ("value", VALUE)) if size.moved & bit]
    return ", ".join(names) or ("others" if size.learns else "none")


def _without_memory(x: Tensor, rows: int) -> Tensor:
    """Return a tensor like x with so many rows, all of them one."""
    return x.new_zeros(()).expand(*x.shape[:-2], rows, x.shape[-1])
