"""The interface of every backend: the problem it is asked about, and the functions it has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..ops.signature import EdgeOptions, Options


class Problem(NamedTuple):
    """All that the choice of a backend depends on."""

    device_type: str
    dtype: torch.dtype


class Backend(Protocol):
    """A module that computes additive attention.

    Its functions get arguments that are already validated, with leading dimensions that broadcast
    but are not expanded. All results can be differentiated twice. Arithmetic is in
    `accumulate_dtype`; context, weights and scores have query's dtype, lse the dtype of the
    arithmetic.
    """

    NAME: str

    @property
    def ops(self) -> SimpleNamespace | None:
        """Its operators, of `ops.schema.define`; None for a backend without any."""

    def why_not(self, problem: Problem, /) -> str | None:
        """Return None if the backend can compute it, otherwise a sentence that says why not."""

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, weight: Tensor, options: Options
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return (E1)-(E3): context (*L, n, dv), weights (*L, n, m) or None, lse (*L, n).

        lse may be None if `options.return_lse` is False.
        """

    def scores(self, query: Tensor, key: Tensor, weight: Tensor, options: Options) -> Tensor:
        """Return (E1), (*L, n, m); only the options of a score are read."""

    def attention_over_edges(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        weight: Tensor,
        options: EdgeOptions,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return context (*L, n, dv), weights (*L, E) or None, lse (*L, n).

        Without a value, the keys are the values. Inputs that require a gradient have the whole
        leading shape L.
        """

    def pack_keys(self, key: Tensor, *, activation: str) -> Tensor | None:
        """Return `packed_key`, (*lead of key, three more dimensions), or None to pack nothing."""
