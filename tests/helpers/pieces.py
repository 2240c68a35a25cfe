"""Attention in pieces on one process, as a rank works on its own keys."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor

from attnkernels.backends import BACKENDS
from attnkernels.backends.base import Problem
from attnkernels.distributed.ring import Plan, RingAttention
from attnkernels.distributed.shards import Rows, Window
from attnkernels.functional import checks
from attnkernels.functional.checks import NO_WINDOW
from attnkernels.ops.codes import KEY, VALUE
from attnkernels.ops.seed import draw_seed
from attnkernels.ops.signature import Options


def rows(*sizes: int) -> list[Rows]:
    """Return neighbouring pieces of these sizes."""
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [Rows(start, start, size) for start, size in zip(starts, sizes, strict=True)]


def in_pieces(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    backend: str,
    queries: list[Rows],
    keys: list[Rows],
    attn_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    is_causal: bool = False,
    window_size: tuple[int, int] = NO_WINDOW,
    return_lse: bool = False,
    dropout_p: float = 0.0,
    **given: Any,
) -> Any:
    """Compute `additive_attention` with its queries and keys cut into these pieces."""
    (chosen,) = (each for each in BACKENDS if backend == each.NAME)
    assert chosen.why_not(Problem("cpu", query.dtype)) is None
    options = Options(key_lengths=key_lengths, dropout_p=dropout_p, **given)
    if dropout_p:
        options = options.seeded(draw_seed(query.device))
    group: Any = SimpleNamespace(rank=0, size=1, start=None)
    window = Window(*checks.window(is_causal, window_size))
    plan = Plan(group, [queries], [keys], window, chosen, options, key.shape[-2], KEY | VALUE)
    context, lse, weights = RingAttention.apply(plan, query, key, value, weight, attn_mask)
    results = [context.to(query.dtype)]
    if options.return_weights:
        results.append(weights.to(query.dtype))
    return (*results, lse) if return_lse else tuple(results)
