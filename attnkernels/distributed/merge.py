"""Merge attention over parts of the keys: docs/math.md, "Split keys"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..functional import checks
from ..functional.results import Pair
from ..ops.shapes import accumulate_dtype


def merge_attention(contexts: Sequence[Tensor], lses: Sequence[Tensor]) -> Pair:
    """Merge the attention of the same queries to several sets of keys into that to all of them.

    Each part is what `additive_attention` returns for its keys with ``return_lse=True``. The result
    is exact, in any order of the parts, and has derivatives of every order, by PyTorch's
    operations. Dropout commutes with it, since lse is that before dropout.

    Args:
        contexts: one (..., n, dv) per part, of one shape and dtype.
        lses: one (..., n) per part, in the dtype of the arithmetic: float32, float64 for contexts
            in float64. -inf marks a row without keys, which adds nothing.

    Returns:
        context (..., n, dv) in the dtype of the parts and lse (..., n). A row that has no keys in
        any part has context 0, lse -inf and zero gradients. NaN stays NaN.

    Raises:
        TypeError: a part is no tensor, or its dtype is wrong.
        ValueError: there are no parts, their numbers differ, or a shape is wrong.
    """
    _check(contexts, lses)
    each = torch.stack(tuple(lses))
    high = each.detach().amax(0)
    empty = high == -torch.inf
    shift = torch.where(empty, 0.0, high)
    shares = torch.exp(each - shift)
    total = torch.where(empty, 1.0, shares.sum(0))
    lse = torch.where(empty, -torch.inf, shift + total.log())
    whole = (torch.stack(tuple(contexts)).to(lse.dtype) * (shares / total).unsqueeze(-1)).sum(0)
    return whole.to(contexts[0].dtype), lse


def _check(contexts: Sequence[Tensor], lses: Sequence[Tensor]) -> None:
    if not contexts or len(contexts) != len(lses):
        raise ValueError(
            "contexts and lses must have one entry per part, at least one, got"
            f" {len(contexts)} and {len(lses)}"
        )
    first = contexts[0]
    checks.tensor("contexts[0]", first, dtype=checks.FLOATING)
    if first.ndim < 2:
        raise ValueError(f"contexts[0] must be (..., n, dv), got {tuple(first.shape)}")
    acc = accumulate_dtype(first.dtype)
    for part, (context, lse) in enumerate(zip(contexts, lses, strict=True)):
        checks.tensor(f"contexts[{part}]", context, "as contexts[0]", first.shape, (first.dtype,))
        checks.tensor(f"lses[{part}]", lse, "(..., n)", first.shape[:-1], (acc,))
