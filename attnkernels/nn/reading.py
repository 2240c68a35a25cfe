"""The steps of a decoder that reads a memory through any attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ..functional import checks
from . import inputs
from .calls import Reading, watched

if TYPE_CHECKING:
    from .hard import HardChoice

P = TypeVar("P")
A = TypeVar("A")  # an Alignment, or None
W = TypeVar("W")  # weights, or None
Bounds = tuple[Tensor, Tensor]  # start and stop of the keys that take part, (R,) each, int64


class Alignment(NamedTuple):
    """The state of an attention between the steps of a decoder, with one row per beam.

    Attributes:
        previous: (R, m), the weights of the last step; None if the attention does not use them.
        cumulative: (R, m), their sum over all steps, or None.
        position: (R,), int64, where the last step looked most; None before the first step and
            without a window.
    """

    previous: Tensor | None = None
    cumulative: Tensor | None = None
    position: Tensor | None = None

    def index_select(self, index: Tensor) -> Alignment:
        """Return the rows `index` (1-D, int32 or int64)."""
        return Alignment(*(None if x is None else x.index_select(0, index) for x in self))


class DecoderAttention(Protocol[P]):
    """An attention that `AttentionRNN` can use: each one of attnkernels.nn, or a module of yours.

    Attributes:
        query_dim: features of a query, which are those of the cell's output.
    """

    query_dim: int

    def prepare(self, memory: Tensor, key_lengths: Tensor | None = None) -> P:
        """Return the memory for all steps, with ``batch``, ``device``, ``value`` and ``value_dim``.

        ``value`` is (..., m, features).
        """

    def read(
        self,
        query: Tensor,
        prepared: P,
        alignment: Alignment | None = None,
        bounds: Bounds | None = None,
        *,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | HardChoice | None, Alignment | None]:
        """Attend with one query per beam; the beams of a sequence follow one another.

        Args:
            query: (R, query_dim), R a multiple of the batch.
            prepared: from `prepare`.
            alignment: from the last step; None for the first.
            bounds: start and stop, (R,) int64 each: only keys in [start, stop) take part.
            return_weights: also return the weights.

        Returns:
            The context (R, value_dim), the weights (R, m), with heads (R, H, m), or None, and the
            alignment for the next step, or None.
        """


class Reader:
    """The attention of consecutive steps to one memory, which remembers its alignment.

    Args:
        attention: a `DecoderAttention`.
        prepared: what its `prepare` returned.
        alignment: from the steps before, or None.
        window: (back, ahead): a step sees the keys from ``back`` before the position of the last
            step to ``ahead`` after it; None is no limit.
        return_weights: also return the weights.
    """

    def __init__(
        self,
        attention: Any,
        prepared: Any,
        alignment: Alignment | None,
        window: tuple[int, int] | None,
        return_weights: bool,
    ) -> None:
        self.attention, self.prepared, self.alignment = attention, prepared, alignment
        self.window, self.return_weights = window, return_weights

    def __call__(self, query: Tensor) -> tuple[Tensor, Any]:
        """Return the context (R, value_dim) of a query (R, query_dim), and weights or None."""
        context, weights, alignment = self.attention.read(
            query,
            self.prepared,
            self.alignment,
            self._bounds(),
            return_weights=self.return_weights or self.window is not None,
        )
        if self.window is not None:
            alignment = (alignment or Alignment())._replace(position=most_attended(weights))
        self.alignment = alignment
        return context, weights if self.return_weights else None

    def _bounds(self) -> Bounds | None:
        if self.window is None or self.alignment is None or self.alignment.position is None:
            return None
        back, ahead = self.window
        at, m = self.alignment.position, self.prepared.value.shape[-2]
        return (at - back).clamp(min=0), (at + ahead + 1).clamp(max=m)


def alignment_of(attend: Any) -> Alignment | None:
    """Return what the attention of the steps so far remembers."""
    return attend.alignment if isinstance(attend, Reader) else None


def read_as_forward(
    module: Any, query: Tensor, attend: Callable[[Tensor], tuple[Tensor, W, A]]
) -> tuple[Tensor, W, A]:
    """Return attend(query) through the call of `module`, so that its hooks see every step.

    They get the query, and what the `forward` of `module` would return. Where there are none, the
    call is left out: it takes as long as a third of a small step.
    """
    if not watched(module):
        return attend(query)
    alignments: list[A] = []

    def attended(query: Tensor) -> Any:
        context, weights, alignment = attend(query)
        alignments.append(alignment)
        return context if weights is None else (context, weights)

    found: Any = module(query, Reading(attended))
    if isinstance(found, Tensor):
        found = found, None
    return *found, alignments[-1]


def beams_of(module: Any, query: Tensor, batch: int) -> int:
    """Check the query (R, query_dim) of a memory of `batch`; return how many beams share each."""
    beams = rows_per_sequence("query", query, "query_dim", batch)
    inputs.query(module, query, batch * beams, "")
    return beams


def rows_per_sequence(name: str, x: Tensor, features: str, batch: int) -> int:
    """Check that x (B * beams, features) has beams for B = `batch` sequences; return beams."""
    checks.tensor(name, x, f"(B * beams, {features})", (None, None))
    rows = x.shape[0]
    if rows % max(batch, 1) or (rows and not batch):
        raise ValueError(
            f"{name} must have shape (B * beams, {features}) with rows that are a multiple of "
            f"B = {batch}, got {tuple(x.shape)}"
        )
    return rows // max(batch, 1)


def split(x: Tensor, batch: int) -> Tensor:
    """Return x (B * beams, ...) as (B, beams, ...)."""
    return x.unflatten(0, (batch, x.shape[0] // max(batch, 1)))


def within(bounds: Bounds, m: int) -> Tensor:
    """Return bool (R, m), True for keys in [start, stop)."""
    start, stop = (x.unsqueeze(-1) for x in bounds)
    at = torch.arange(m, device=start.device)
    return (start <= at) & (at < stop)


def most_attended(weights: Tensor | HardChoice) -> Tensor:
    """Return (R,), int64: the position that weights (R, [H,] m) look at most."""
    if not isinstance(weights, Tensor):
        return weights.positions.clamp(min=0)
    if weights.ndim > 2:
        weights = weights.mean(1)
    if not weights.shape[-1]:
        return weights.new_zeros(weights.shape[0], dtype=torch.int64)
    return weights.argmax(-1)


def stacked(weights: list[Any]) -> Any:
    """Return the weights (B, [H,] m) of steps as (B, [H,] T, m); choices likewise."""
    if isinstance(weights[0], Tensor):
        return torch.stack(weights, -2)
    return type(weights[0])(*(torch.stack(x, 1) for x in zip(*weights, strict=True)))


def window_of(window: Any) -> tuple[int, int] | None:
    """Check the ``window`` of a decoder, and return it as a tuple of ints."""
    if window is None:
        return None
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"window must be (back, ahead) or None, got {checks.type_name(window)}")
    back, ahead = (checks.integer(f"window[{i}]", each) for i, each in enumerate(window))
    if back < 0 or ahead < 0:
        raise ValueError(f"window must be (back, ahead), both at least 0, got {(back, ahead)}")
    return back, ahead
