"""Attention on a recurrent cell: a decoder that reads a memory at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..functional.attention import Result
from ..functional.deferred import DeferredMemory, learns
from .attention import AdditiveAttention, PreparedMemory

Attend = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # output -> context, weights or None


class DecoderState(NamedTuple):
    """All that one step hands to the next.

    Attributes:
        cell: the cell's state: a tensor (B, hidden), or a tuple whose first element is one; None
            stands for the cell's own zeros.
        context: (B, value_dim), what was attended to last.
    """

    cell: Any
    context: Tensor

    def index_select(self, index: Tensor) -> DecoderState:
        """The rows `index` of the batch."""
        return DecoderState(_select(self.cell, index), self.context.index_select(0, index))


class AttentionRNN(nn.Module):
    """A recurrent cell with attention, which reads the memory with its new output.

        state_t = cell([input_t, c_{t-1}], state_{t-1})    c_t = attention(output(state_t), memory)

    c_{-1} is zeros where no state is given (GNMT, 1609.08144; Tacotron 2, 1712.05884). Where the
    cell's initial state is given it is attention of that state's output, so that with the inputs
    each step reads what its previous state attends to (Bahdanau et al., 1409.0473).

    In training the gradients of the prepared keys, of the values and of the score vector are made
    once, after all steps, and not once a step (`deferred.py` says how); with dropout of the weights
    they are made step by step.

    Args:
        cell: a module (input, state) -> state, as `torch.nn.GRUCell` (state: a tensor, which is the
            output) or `torch.nn.LSTMCell` (a tuple, whose first element is the output). Its input
            has the features of input_t and then those of a context.
        attention: an `AdditiveAttention` whose query_dim is the size of the cell's output.
        defer_gradients: False makes the gradients of the keys step by step, which is slower, and
            needed for second derivatives (``create_graph=True``).

    Raises:
        TypeError: cell cannot be called, or attention is no `AdditiveAttention`.
    """

    def __init__(
        self, cell: nn.Module, attention: AdditiveAttention, *, defer_gradients: bool = True
    ) -> None:
        super().__init__()
        if not callable(cell):
            raise TypeError(f"cell is a {type(cell).__name__}; it must be a module that is called")
        if not isinstance(attention, AdditiveAttention):
            raise TypeError(
                f"attention is a {type(attention).__name__}; it must be an AdditiveAttention"
            )
        self.cell, self.attention, self.defer_gradients = cell, attention, defer_gradients

    def forward(
        self,
        inputs: Tensor,
        memory: Tensor | PreparedMemory,
        key_lengths: Tensor | None = None,
        state: Any = None,
        *,
        return_weights: bool = False,
    ) -> tuple[Any, ...]:
        """All steps with their inputs given (teacher forcing).

        Args:
            inputs: (B, T, e).
            memory: (B, m, key_dim), or what ``attention.prepare`` returned.
            key_lengths: (B,); belongs to `prepare` where memory is prepared.
            state: None, the cell's initial state, or a `DecoderState` to go on from.
            return_weights: also return the weights.

        Returns:
            outputs (B, T, hidden), contexts (B, T, value_dim) and the last `DecoderState`; then the
            weights (B, T, m), with heads (B, H, T, m), where they are asked for.

        Raises:
            TypeError, ValueError: an argument does not fit; the message says which and how.
        """
        if not isinstance(inputs, Tensor) or inputs.ndim != 3:
            given = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ValueError(f"inputs is {given}; it must be a tensor (B, T, features)")
        if not inputs.shape[1]:
            raise ValueError("inputs has no steps; T must be at least 1")
        rows = inputs.unbind(1)

        def following(t: int, output: Tensor, context: Tensor) -> Tensor:
            return rows[t]

        return self._run(rows[0], following, len(rows), memory, key_lengths, state, return_weights)

    def free_running(
        self,
        first: Tensor,
        memory: Tensor | PreparedMemory,
        steps: int,
        feed: Callable[[Tensor, Tensor], Tensor],
        key_lengths: Tensor | None = None,
        state: Any = None,
        *,
        return_weights: bool = False,
    ) -> tuple[Any, ...]:
        """Steps that make their own inputs, with gradients through them.

        Args:
            first: (B, e), the input of the first step.
            memory, key_lengths, state, return_weights: as in `forward`.
            steps: how many, at least 1.
            feed: (output (B, hidden), context (B, value_dim)) -> the next input (B, e): a readout
                and an embedding, say. It is not asked after the last step.

        Returns:
            As `forward`.

        Raises:
            TypeError, ValueError: as `forward`.
        """
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps is {steps!r}; it must be an int of at least 1")

        def following(t: int, output: Tensor, context: Tensor) -> Tensor:
            return feed(output, context)

        return self._run(first, following, steps, memory, key_lengths, state, return_weights)

    def step(
        self,
        inputs: Tensor,
        prepared: PreparedMemory,
        state: DecoderState,
        *,
        return_weights: bool = False,
    ) -> tuple[Any, ...]:
        """One step, of one row a sequence or of several beams of it, which share its memory.

        Args:
            inputs: (B * beams, e), the beams of a sequence one after another.
            prepared: of ``attention.prepare``.
            state: of `initial_state` or of the step before, with the rows of inputs.
            return_weights: also return the weights.

        Returns:
            output (B * beams, hidden), context (B * beams, value_dim), the next `DecoderState`;
            then the weights (B * beams, m), with heads (B * beams, H, m), where asked for.

        Raises:
            TypeError, ValueError: an argument does not fit; the message says which and how.
        """
        _check_rows(inputs, prepared.batch)

        def attend(output: Tensor) -> tuple[Tensor, Tensor | None]:
            beams = output.unflatten(0, (prepared.batch, -1))
            context, weights = _pair(self.attention.step(beams, prepared, return_weights))
            if weights is not None:
                weights = weights.movedim(-2, 1).flatten(0, 1)
            return context.flatten(0, 1), weights

        output, context, weights, now = self._step(inputs, attend, state)
        return (output, context, now, weights) if return_weights else (output, context, now)

    def initial_state(self, prepared: PreparedMemory, state: Any = None) -> DecoderState:
        """The state before the first step, of None, a cell's state, or a `DecoderState`."""
        return self._initial(prepared, self._attend(prepared, 1, False), state)

    def prepared(
        self, memory: Tensor | PreparedMemory, key_lengths: Tensor | None = None
    ) -> PreparedMemory:
        """The memory prepared, if it is not already."""
        if not isinstance(memory, PreparedMemory):
            return self.attention.prepare(memory, key_lengths)
        if key_lengths is not None:
            raise ValueError("key_lengths is given with a prepared memory; give it to prepare()")
        return memory

    def _run(
        self,
        inputs: Tensor,
        following: Callable[..., Tensor],
        steps: int,
        memory: Tensor | PreparedMemory,
        key_lengths: Tensor | None,
        state: Any,
        return_weights: bool,
    ) -> tuple[Any, ...]:
        """`following` makes the inputs of step t of what step t - 1 gave."""
        prepared = self.prepared(memory, key_lengths)
        _check_rows(inputs, prepared.batch)
        if inputs.shape[0] != prepared.batch:
            raise ValueError(
                f"inputs has a batch of {inputs.shape[0]}; the memory has one of {prepared.batch}"
            )
        attend = self._attend(prepared, steps + 1, return_weights)
        now = self._initial(prepared, attend, state)
        outputs: list[Tensor] = []
        contexts: list[Tensor] = []
        weights: list[Tensor] = []
        for t in range(steps):
            output, context, a, now = self._step(inputs, attend, now)
            outputs.append(output)
            contexts.append(context)
            if a is not None:
                weights.append(a)
            if t + 1 < steps:
                inputs = following(t + 1, output, context)
        found = torch.stack(outputs, 1), torch.stack(contexts, 1), now
        return (*found, torch.stack(weights, -2)) if return_weights else found

    def _step(
        self, inputs: Tensor, attend: Attend, state: DecoderState
    ) -> tuple[Tensor, Tensor, Tensor | None, DecoderState]:
        cell = self.cell(torch.cat([inputs, state.context], -1), state.cell)
        output = cell_output(cell)
        context, weights = attend(output)
        return output, context, weights, DecoderState(cell, context)

    def _initial(self, prepared: PreparedMemory, attend: Attend, state: Any) -> DecoderState:
        if isinstance(state, DecoderState):
            return state
        if state is not None:
            return DecoderState(state, attend(cell_output(state))[0])
        value = prepared.memory.value
        return DecoderState(None, value.new_zeros(prepared.batch, prepared.value_dim))

    def _attend(self, prepared: PreparedMemory, steps: int, return_weights: bool) -> Attend:
        """Attention of one output a sequence, for up to `steps` of them."""
        attention, memory = self.attention, prepared.memory
        if not (self.defer_gradients and learns(memory)) or attention.dropout_now:
            return lambda output: _pair(attention.step(output, prepared, return_weights))
        deferred = DeferredMemory(memory, steps, return_weights)
        return lambda output: _pair(attention.step_by(output, prepared.batch, deferred.attend))


def _pair(result: Result) -> tuple[Tensor, Tensor | None]:
    return result if isinstance(result, tuple) else (result, None)


def _check_rows(inputs: Tensor, batch: int) -> None:
    if inputs.ndim != 2 or inputs.shape[0] % max(batch, 1):
        raise ValueError(
            f"inputs has shape {tuple(inputs.shape)}; it must be (rows, features), where the rows "
            f"are a multiple of the batch of the memory, {batch}"
        )


def cell_output(state: Any) -> Tensor:
    """The output of a cell: its state, or the first element of it."""
    output = state[0] if isinstance(state, (tuple, list)) else state
    if not isinstance(output, Tensor) or output.ndim != 2:
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
