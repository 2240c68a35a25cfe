"""The face that every backend shows: the problem it is asked about, and the functions it has."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


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

    def why_not(self, problem: Problem, /) -> str | None:
        """None where the backend can do it, otherwise a sentence that says why not."""

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        weight: Tensor,
        *,
        attn_mask: Tensor | None,
        key_lengths: Tensor | None,
        is_causal: bool,
        dropout_p: float,
        seed: Tensor | None,
        activation: str,
        negative_slope: float,
        scale: float,
        return_weights: bool,
        packed_key: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """(E1)-(E3): context (*L, n, dv), weights (*L, n, m) where asked for, lse (*L, n)."""

    def attention_varlen(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        weight: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        *,
        is_causal: bool,
        dropout_p: float,
        seed: Tensor | None,
        activation: str,
        negative_slope: float,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """The same for sequences packed one after another: context (*L, total_q, dv), lse."""

    def scores(
        self,
        query: Tensor,
        key: Tensor,
        weight: Tensor,
        *,
        activation: str,
        negative_slope: float,
        scale: float,
    ) -> Tensor:
        """(E1): (*L, n, m)."""

    def pack_keys(self, key: Tensor, *, activation: str) -> Tensor | None:
        """What `packed_key` wants: (*lead of key, three more dimensions), or None for nothing."""
