"""additive_attention computed by all ranks, with its own signature: each rank gets everything."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from attnkernels.distributed import context_parallel_attention, ring
from attnkernels.distributed.shards import Rows, even_sizes, shards
from attnkernels.testing import check_attention

from .inputs import BF16, F32, F64, Shape, make, normal


class Cut(torch.autograd.Function):
    """The rows of this rank; the gradient is that of all ranks' rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: list[Rows] | None, dim: int) -> Tensor:
        ctx.like, ctx.rows, ctx.dim = x, rows, dim
        if rows is None:
            return x.clone()
        return torch.cat([x.narrow(dim, each.start, each.length) for each in rows], dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        whole = torch.zeros_like(ctx.like, dtype=F64, memory_format=torch.contiguous_format)
        for each in ctx.rows or [Rows(0, 0, whole.shape[ctx.dim])]:
            part = grad.narrow(ctx.dim, each.first, each.length)
            whole.narrow(ctx.dim, each.start, each.length).copy_(part)
        dist.all_reduce(whole)
        return whole.to(ctx.like.dtype), None, None


class Join(torch.autograd.Function):
    """All rows, from those of every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, held: list[list[Rows]], dim: int) -> Tensor:
        ctx.rows, ctx.dim = held[dist.get_rank()], dim
        shape = list(x.shape)
        shape[dim] = sum(rows.length for each in held for rows in each)
        whole = x.new_zeros(shape, dtype=F64)
        for each in ctx.rows:
            part = x.narrow(dim, each.first, each.length)
            whole.narrow(dim, each.start, each.length).copy_(torch.nan_to_num(part, neginf=-1e300))
        dist.all_reduce(whole)
        return torch.where(whole == -1e300, -torch.inf, whole).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        parts = [grad.narrow(ctx.dim, each.start, each.length) for each in ctx.rows]
        return torch.cat(parts, ctx.dim), None, None


def sizes(count: int, spread: str) -> list[int]:
    """Return the rows of each rank: "even", "uneven", or "empty" with none on the first rank."""
    size = dist.get_world_size()
    if spread == "even":
        return even_sizes(count, size)
    if spread == "empty":
        return [0, *even_sizes(count, size - 1)]
    whole = [count * (rank + 1) // (size * (size + 1) // 2) for rank in range(size)]
    return [*whole[:-1], count - sum(whole[:-1])]


def on_all_ranks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    spread: tuple[str, str] = ("even", "even"),
    balanced: bool = False,
    attn_mask: Tensor | None = None,
    **options: Any,
) -> Any:
    """Compute `additive_attention` by `context_parallel_attention`, in the spread (n, m)."""
    held_q, held_k = (
        shards(sizes(x.shape[-2], each), balanced)
        for x, each in zip((query, key), spread, strict=True)
    )
    rank = dist.get_rank()
    own = [Cut.apply(query, held_q[rank], -2)]
    own += [Cut.apply(x, held_k[rank], -2) for x in (key, value)]
    if attn_mask is not None:
        by_row = attn_mask.ndim > 1 and attn_mask.shape[-2] > 1
        attn_mask = Cut.apply(attn_mask, held_q[rank] if by_row else None, -2 if by_row else -1)
    found = context_parallel_attention(
        *own,
        Cut.apply(weight, None, -1),
        dist.group.WORLD,
        attn_mask=attn_mask,
        balanced=balanced,
        **options,
    )
    results = found if isinstance(found, tuple) else (found,)
    last = len(results) - 1
    return tuple(
        Join.apply(x, held_q, -1 if at == last and options.get("return_lse") else -2)
        for at, x in enumerate(results)
    )


class Case(NamedTuple):
    """One comparison; shape as `inputs.make` has it, and options of either function."""

    shape: Shape = (2, 14, 22, 6, 4)
    dtype: torch.dtype = F32
    options: dict[str, Any] = {}
    layout: dict[str, Any] = {}  # of on_all_ranks
    mask: tuple[int, ...] | None = None  # the shape of a floating mask


BALANCED = {"balanced": True}
UNEVEN = {"spread": ("uneven", "uneven")}
BOTH = {"return_weights": True, "return_lse": True}
SEEN = torch.arange(14 * 22).view(14, 22) % 5 > 1

CASES = {
    "float32": Case(options=BOTH),
    "float64": Case(dtype=F64, options=BOTH),
    "bfloat16": Case(dtype=BF16, options=BOTH),
    "uneven": Case(layout=UNEVEN, options=BOTH),
    "uneven, bfloat16": Case(layout=UNEVEN, dtype=BF16, options={"is_causal": True}),
    "no queries on one": Case(layout={"spread": ("empty", "even")}, options=BOTH),
    "no keys on one": Case(layout={"spread": ("even", "empty")}, options={"dropout_p": 0.3}),
    "nothing on one": Case(layout={"spread": ("empty", "empty")}, dtype=F64),
    "fewer rows than ranks": Case((1, 1, 3, 4, 2), options=BOTH),
    "no keys at all": Case((2, 5, 0, 4, 3), options=BOTH),
    "no queries at all": Case((2, 0, 5, 4, 3)),
    "causal": Case(options={"is_causal": True, **BOTH}),
    "causal, balanced": Case((2, 20, 20, 6, 4), options={"is_causal": True}, layout=BALANCED),
    "balanced, uneven": Case(options={"is_causal": True, **BOTH}, layout=BALANCED | UNEVEN),
    "window": Case(options={"window_size": (3, 2), "return_lse": True}),
    "window to the left": Case(options={"window_size": (5, -1)}, layout=BALANCED),
    "narrow window": Case((1, 60, 60, 5, 3), options={"window_size": (1, 1)}, layout=UNEVEN),
    "lengths": Case(options={"key_lengths": torch.tensor([0, 17]), **BOTH}),
    "bool mask": Case(options={"attn_mask": SEEN, **BOTH}, layout=UNEVEN),
    "float mask": Case(mask=(2, 14, 22), options={"return_lse": True}),
    "mask of keys": Case(mask=(22,), dtype=F64, layout=UNEVEN),
    "mask of queries": Case(mask=(14, 1), options={"dropout_p": 0.2}),
    "dropout": Case(options={"dropout_p": 0.4, **BOTH}, layout=UNEVEN),
    "dropout, float64": Case(dtype=F64, options={"dropout_p": 0.4}, layout=BALANCED | UNEVEN),
    "dropout, bfloat16": Case(dtype=BF16, options={"dropout_p": 0.4, "is_causal": True}),
    "relu": Case(options={"activation": "relu", "scale": 0.5}),
    "leaky": Case(options={"activation": "leaky_relu", "negative_slope": 0.1}),
    "by the formula": Case(
        options={"backend": "reference", "dropout_p": 0.3, **BOTH}, layout=UNEVEN
    ),
    "many pieces": Case((1, 150, 700, 5, 3), options={"is_causal": True, "dropout_p": 0.2}),
    "all": Case(
        dtype=F64,
        mask=(2, 14, 22),
        options={
            "key_lengths": torch.tensor([22, 9]),
            "window_size": (9, 3),
            "dropout_p": 0.3,
            "check": True,
            **BOTH,
        },
        layout=BALANCED | UNEVEN,
    ),
}


def compare(name: str) -> None:
    """Compare one case with one process, outputs and all gradients."""
    case = CASES[name]
    torch.manual_seed(0)
    given = make(case.shape, case.dtype)
    options = dict(case.options)
    if case.mask is not None:
        options["attn_mask"] = normal(*case.mask, dtype=case.dtype)
    own = {x: options.pop(x) for x in ("check", "backend") if x in options}
    check_attention(*given, backend=partial(on_all_ranks, **case.layout, **own), **options)


def prepare() -> None:
    """Cut as many pieces as long sequences have, and repeat sums exactly."""
    torch.use_deterministic_algorithms(True)
    ring.ON_CPU = ring.ON_CPU._replace(least_keys=1, least_queries=1)
