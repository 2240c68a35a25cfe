"""One attention of all queries, where the entries of a batch differ in nothing else.

The rows of queries (B, n, d) that attend to one key (m, d) are the rows of one query (B n, d). Keys
are then prepared once, and their gradients are summed inside.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor

from ....ops.shapes import leading_shape
from ....ops.signature import Signature

_APART = (
    "attn_mask",
    "key_lengths",
    "key_starts",
    "cu_seqlens_q",
    "seed",
    "window_left",
    "window_right",
)


def folded(function: Callable[..., Any], signature: Signature, given: dict[str, Any]) -> Any:
    """Return function(**given), computed as one attention of all rows if that is the same."""
    if not _folds(given):
        return function(**given)
    query = given["query"]
    lead, n = query.shape[:-2], query.shape[-2]
    count = prod(lead)
    shapes = {}
    for each in signature.arguments:
        x = given[each.name]
        if not isinstance(x, Tensor):
            continue
        shapes[each.name] = x.shape
        if each.whole or each.name == "query":
            if not _is_nothing(x):
                each_rows, *rest = x.shape[len(lead) :]  # of a softmax there are 2 n numbers
                given[each.name] = x.reshape(count * each_rows, *rest)
        elif each.trailing:
            given[each.name] = x.reshape(x.shape[x.dim() - each.trailing :])
    results = function(**given)
    if isinstance(results, Tensor):
        return results.view(*lead, n, *results.shape[1:])

    def unfold(name: str, x: Tensor) -> Tensor:
        if _is_nothing(x):
            return x
        if "wanted" in given:
            return x.view(shapes[name])
        return x.view(*lead, x.shape[0] // count, *x.shape[1:])

    return tuple(unfold(name, x) for name, x in zip(signature.results, results, strict=True))


def _is_nothing(x: Tensor) -> bool:
    """Return True for what stands in the place of a result that is not wanted."""
    return x.dim() == 1 and x.shape[0] == 0


def _folds(given: dict[str, Any]) -> bool:
    if any(given.get(name) is not None for name in _APART):
        return False
    query, weight, value = given["query"], given["weight"], given.get("value")
    others = [given["key"].shape[:-2], weight.shape[:-1], () if value is None else value.shape[:-2]]
    lead = query.shape[:-2]
    return (
        prod(lead) > 1
        and query.shape[-2] > 0
        and all(prod(shape) == 1 for shape in others)
        and leading_shape(lead, *others) == tuple(lead)
    )
