"""Check the results of timed calls against float64, within the budget of `attnkernels.testing`.

Those of the first entry of the batch are checked: the context, or the gradients of query, key and
value. A case whose float64 tensor would be too large is checked in the first rows of its queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnkernels.profile.naive import naive_attention
from attnkernels.testing import assert_within_budget
from benchmarks.suite.cases import Case, inputs

ALL = 2**29  # elements (i, j, t) up to which all rows are checked
AT_ONCE = 2**24  # elements of a block of rows
NAMES = ("query", "key", "value")


class Truth:
    """The results of one case and dtype, computed when they are first needed."""

    def __init__(self, case: Case, dtype: torch.dtype, device: str) -> None:
        self._case, self._dtype, self._device = case, dtype, device
        _, n, m, d, _ = case.shape
        self._whole = n * m * d <= ALL
        self._block = max(AT_ONCE // (m * d), 1)
        self._rows = n if self._whole else min(n, self._block)
        self._known: dict[bool, tuple[list[Tensor], list[Tensor]]] = {}

    def check(self, direction: str, result: object) -> None:
        """Raise AssertionError if a result of the call of that direction is wrong."""
        if self._case.window is not None:
            return
        of_gradients = direction == "both"
        if of_gradients not in self._known:
            reference, exact = (self._by_rows(t, of_gradients) for t in (self._dtype, None))
            self._known[of_gradients] = reference, exact
        given = result if isinstance(result, Sequence) else [result]
        names = [f"the gradient of {name}" for name in NAMES] if of_gradients else ["the context"]
        of_weight = inputs(self._case, self._dtype, False, self._device).weight
        carried = 1 + float(of_weight.double().abs().sum())  # as exp carries the scores' rounding
        for name, found, theirs, right in zip(names, given, *self._known[of_gradients]):  # noqa: B905
            rows = right.shape[1]
            magnitude = carried * float(right.abs().max())
            assert_within_budget(found[:1, :rows], theirs, right, magnitude=magnitude, name=name)

    def _by_rows(self, dtype: torch.dtype | None, of_gradients: bool) -> list[Tensor]:
        """Return the results of the formula in `dtype`, or else in float64, block by block."""
        given = inputs(self._case, self._dtype, False, self._device)
        query, key, value, weight, arriving = (
            x.to(dtype or torch.float64) for x in (*(x[:1] for x in given[:3]), *given[3:])
        )
        contexts, of_query = [], []
        sums = [torch.zeros_like(x, dtype=torch.float64) for x in (key, value)]
        for first in range(0, self._rows, self._block):
            rows = slice(first, min(first + self._block, self._rows))
            leaves = [x.detach().requires_grad_(of_gradients) for x in (query[:, rows], key, value)]
            context = naive_attention(*leaves, weight)
            contexts.append(context.detach())
            if of_gradients:
                grads = torch.autograd.grad(context, leaves, arriving[:1, rows])
                of_query.append(grads[0])
                for total, grad in zip(sums, grads[1:], strict=True):
                    total += grad
        if not of_gradients:
            return [torch.cat(contexts, 1)]
        grads_ = [torch.cat(of_query, 1), *(total.to(query.dtype) for total in sums)]
        return grads_ if self._whole else grads_[:1]
