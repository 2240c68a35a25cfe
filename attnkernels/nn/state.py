"""The state that a decoder carries from step to step, whatever its cell."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .reading import Alignment


class DecoderState(NamedTuple):
    """The state that one step hands to the next.

    Attributes:
        cell: the cell's state: a tensor (B, hidden), or a tuple whose first element is one; None
            stands for the cell's own zeros. Its type is that of the cell.
        context: (B, value_dim), the last context.
        alignment: what the attention remembers, an `Alignment`; None if it remembers nothing, or
            has not attended yet.
    """

    cell: Any
    context: Tensor
    alignment: Alignment | None = None

    def index_select(self, index: Tensor) -> DecoderState:
        """Return the rows `index` (1-D, int32 or int64) of the batch."""
        alignment = None if self.alignment is None else self.alignment.index_select(index)
        context = self.context.index_select(0, index)
        return DecoderState(_select(self.cell, index), context, alignment)


def cell_output(state: Any) -> Tensor:
    """Return the output of a cell: its state, or the first element of a tuple or list."""
    output = state[0] if isinstance(state, (tuple, list)) and state else state
    if not isinstance(output, Tensor):
        raise TypeError(
            "the cell's state must be a tensor (B, hidden) or a tuple that starts with one, got "
            f"{type(state).__name__}"
        )
    return output


def _select(state: Any, index: Tensor) -> Any:
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state.index_select(0, index)
    chosen = [_select(each, index) for each in state]
    return type(state)(*chosen) if hasattr(state, "_fields") else type(state)(chosen)


def takes_features(cell: Any, name: str, x: Tensor, value_dim: int) -> None:
    """Raise ValueError unless the cell takes the features of `x` and those of a context."""
    width = getattr(cell, "input_size", None)  # of torch's cells
    if type(width) is int and width != x.shape[-1] + value_dim:
        raise ValueError(
            f"{name} must have e = {width - value_dim} features, so that the cell gets "
            f"e + value_dim = {width}, got shape {tuple(x.shape)}"
        )
