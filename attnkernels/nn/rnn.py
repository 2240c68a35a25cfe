"""Attention on a recurrent cell: a decoder that reads a memory at every step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import torch
from torch import Tensor, nn

from ..functional import checks
from ..functional.deferred import DeferredMemory, learns
from . import inputs as arguments
from .alignment import StepwiseAttention
from .attention import PreparedMemory, reads_plainly
from .calls import as_forward
from .projections import Projections
from .reading import (
    Alignment,
    DecoderAttention,
    Reader,
    alignment_of,
    rows_per_sequence,
    stacked,
    window_of,
)
from .state import DecoderState, cell_output, takes_features

if TYPE_CHECKING:
    from .overloads import EitherWay, NoWeights, Unpack, WithWeights

Attend = Callable[[Tensor], tuple[Tensor, Any]]  # output -> context, weights or None
Feed = Callable[[Tensor, Tensor], Tensor]  # output, context -> the next input
Run: TypeAlias = tuple[Tensor, Tensor, DecoderState]  # outputs, contexts, last state
RunWithWeights: TypeAlias = tuple[Tensor, Tensor, DecoderState, Tensor]
Prepared: TypeAlias = Any  # what attention.prepare() returned, with batch, value and value_dim
Memory: TypeAlias = Tensor | Prepared
Lengths: TypeAlias = Tensor | None


class AttentionRNN(nn.Module):
    """A recurrent cell with attention, which reads the memory with its new output.

        state_t = cell([input_t, c_{t-1}], state_{t-1})    c_t = attention(output(state_t), memory)

    If no state is given, c_{-1} is zeros (GNMT, 1609.08144; Tacotron 2, 1712.05884). If the initial
    state of the cell is given, c_{-1} is the attention of that state's output, so that each step
    reads, with its input, the context of its previous state (Bahdanau et al., 1409.0473).

    An attention that remembers its weights, such as `LocationSensitiveAttention`, keeps them in the
    state; the attention of a given initial state counts as its first step.

    In training the gradients of the prepared keys, the values and the score vector of an
    `AdditiveAttention` without dropout are computed once after all steps, not once per step (see
    `attnkernels.functional.deferred`). Location-sensitive and coverage attention compute the keys
    of a step again in the backward (see `attnkernels.functional.stepwise`).

    Every step calls ``cell`` and ``attention``, so their forward hooks run; those of ``attention``
    get the query and return what its `forward` does.

    Args:
        cell: a module (input, state) -> state like `torch.nn.GRUCell` (the state is a tensor, and
            the output) or `torch.nn.LSTMCell` (the state is a tuple that starts with the output).
            Its input has the features of input_t followed by those of a context.
        attention: an `AdditiveAttention`, `LocationSensitiveAttention`, `CoverageAttention`,
            `MonotonicAttention` or `HardAttention`, or a module with the attributes of
            `DecoderAttention`. Its query_dim is the size of the cell's output.
        window: (back, ahead), ints of at least 0: in evaluation a step sees only the keys from
            ``back`` before the one that the last step looked at most to ``ahead`` after it, as
            decoders of speech and handwriting do. The first step sees all. None is no limit.
        defer_gradients: False computes the gradients of the keys step by step. This is slower, and
            second derivatives (``create_graph=True``) of an `AdditiveAttention` require it. Forward
            mode, the transforms of `torch.func` and torch.compile always compute them step by step.

    Raises:
        TypeError: cell is not callable, attention has no query_dim, prepare and read, window is
            not a pair of ints, or ``defer_gradients`` is not a bool.
        ValueError: a side of the window is negative.
    """

    def __init__(
        self,
        cell: nn.Module,
        attention: DecoderAttention[Any],
        *,
        window: tuple[int, int] | None = None,
        defer_gradients: bool = True,
    ) -> None:
        super().__init__()
        checks.instance("cell", cell, Callable, "a module that is called")  # type: ignore[arg-type]
        if not all(hasattr(attention, name) for name in ("query_dim", "prepare", "read")):
            wanted = "an attention of attnkernels.nn, or have query_dim, prepare and read"
            raise TypeError(f"attention must be {wanted}, got {checks.type_name(attention)}")
        checks.flags(defer_gradients=defer_gradients)
        self.cell, self.defer_gradients = cell, defer_gradients
        self.attention: Any = attention
        self.window = window_of(window)

    @overload
    def forward(
        self,
        inputs: Tensor,
        memory: Memory,
        key_lengths: Lengths = ...,
        state: Any = ...,
        **o: Unpack[NoWeights],
    ) -> Run: ...
    @overload
    def forward(
        self,
        inputs: Tensor,
        memory: Memory,
        key_lengths: Lengths = ...,
        state: Any = ...,
        **o: Unpack[WithWeights],
    ) -> RunWithWeights: ...
    @overload
    def forward(
        self,
        inputs: Tensor,
        memory: Memory,
        key_lengths: Lengths = ...,
        state: Any = ...,
        **o: Unpack[EitherWay],
    ) -> Run | RunWithWeights: ...
    def forward(
        self,
        inputs: Tensor,
        memory: Memory,
        key_lengths: Lengths = None,
        state: Any = None,
        *,
        return_weights: bool = False,
    ) -> Run | RunWithWeights:
        """Run all steps with their inputs given (teacher forcing).

        Args:
            inputs: (B, T, e), T at least 1.
            memory: (B, m, key_dim), or the result of ``attention.prepare``.
            key_lengths: (B,), int32 or int64, in [0, m]: how many keys of each sequence take part.
                For a prepared memory give them to ``attention.prepare`` instead.
            state: None, the initial state of the cell, or a `DecoderState` to continue from.
            return_weights: also return the weights.

        Returns:
            The outputs (B, T, hidden), the contexts (B, T, value_dim) and the last `DecoderState`;
            with ``return_weights`` then the weights (B, T, m), with heads (B, H, T, m), and with a
            `HardAttention` its `HardChoice` of all steps instead.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        prepared = self.prepared(memory, key_lengths)
        checks.tensor("inputs", inputs, "(B, T, e)", (prepared.batch, None, None))
        takes_features(self.cell, "inputs", inputs, prepared.value_dim)
        if not inputs.shape[1]:
            raise ValueError(f"inputs must have T of at least 1, got shape {tuple(inputs.shape)}")
        rows = inputs.unbind(1)

        def following(t: int, output: Tensor, context: Tensor) -> Tensor:
            return rows[t]

        return self._run(rows[0], following, len(rows), prepared, state, return_weights)

    @overload
    def free_running(
        self,
        first: Tensor,
        memory: Memory,
        steps: int,
        feed: Feed,
        key_lengths: Lengths = ...,
        state: Any = ...,
        **o: Unpack[NoWeights],
    ) -> Run: ...
    @overload
    def free_running(
        self,
        first: Tensor,
        memory: Memory,
        steps: int,
        feed: Feed,
        key_lengths: Lengths = ...,
        state: Any = ...,
        **o: Unpack[WithWeights],
    ) -> RunWithWeights: ...
    @overload
    def free_running(
        self,
        first: Tensor,
        memory: Memory,
        steps: int,
        feed: Feed,
        key_lengths: Lengths = ...,
        state: Any = ...,
        **o: Unpack[EitherWay],
    ) -> Run | RunWithWeights: ...
    def free_running(
        self,
        first: Tensor,
        memory: Memory,
        steps: int,
        feed: Feed,
        key_lengths: Lengths = None,
        state: Any = None,
        *,
        return_weights: bool = False,
    ) -> Run | RunWithWeights:
        """Run steps that compute their own inputs, with gradients through them.

        Args:
            first: (B, e), the input of the first step.
            memory, key_lengths, state, return_weights: as in `forward`.
            steps: the number of steps, at least 1.
            feed: (output (B, hidden), context (B, value_dim)) -> the next input (B, e): for example
                a readout and an embedding. It is not called after the last step.

        Returns:
            As `forward`.

        Raises:
            TypeError, ValueError: as `forward`.
        """
        steps = checks.positive_int("steps", steps)
        prepared = self.prepared(memory, key_lengths)
        checks.tensor("first", first, "(B, e)", (prepared.batch, None))
        takes_features(self.cell, "first", first, prepared.value_dim)

        def following(t: int, output: Tensor, context: Tensor) -> Tensor:
            return feed(output, context)

        return self._run(first, following, steps, prepared, state, return_weights)

    @overload
    def step(
        self, inputs: Tensor, prepared: Prepared, state: DecoderState, **o: Unpack[NoWeights]
    ) -> Run: ...
    @overload
    def step(
        self, inputs: Tensor, prepared: Prepared, state: DecoderState, **o: Unpack[WithWeights]
    ) -> RunWithWeights: ...
    @overload
    def step(
        self, inputs: Tensor, prepared: Prepared, state: DecoderState, **o: Unpack[EitherWay]
    ) -> Run | RunWithWeights: ...
    def step(
        self,
        inputs: Tensor,
        prepared: Prepared,
        state: DecoderState,
        *,
        return_weights: bool = False,
    ) -> Run | RunWithWeights:
        """Run one step of each sequence, or of several beams per sequence that share its memory.

        Args:
            inputs: (B * beams, e), the beams of a sequence one after another.
            prepared: from ``attention.prepare``.
            state: from `initial_state` or the last step, with the rows of inputs.
            return_weights: also return the weights.

        Returns:
            The output (B * beams, hidden), the context (B * beams, value_dim) and the next
            `DecoderState`; with ``return_weights`` then the weights (B * beams, m), with heads
            (B * beams, H, m), and with a `HardAttention` its `HardChoice` instead.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        if not hasattr(prepared, "value_dim"):
            wanted = "what attention.prepare() returned"
            checks.instance("prepared", prepared, PreparedMemory, wanted)
        checks.instance("state", state, DecoderState, "a DecoderState")
        checks.flags(return_weights=return_weights)
        rows_per_sequence("inputs", inputs, "e", prepared.batch)
        takes_features(self.cell, "inputs", inputs, prepared.value_dim)
        attend = self._attend(prepared, None, return_weights, state.alignment)
        return _results(*self._step(self.cell, inputs, attend, state))

    def initial_state(self, prepared: Prepared, state: Any = None) -> DecoderState:
        """Return the state before the first step.

        Args:
            prepared: from ``attention.prepare``.
            state: None, the initial state of the cell, or a `DecoderState`.

        Raises:
            TypeError, ValueError: the state has no output (B, query_dim).
        """
        return self._initial(prepared, self._attend(prepared, 1, False), state)

    def prepared(self, memory: Memory, key_lengths: Lengths = None) -> Prepared:
        """Return the memory, prepared unless it already is.

        Raises:
            TypeError, ValueError: as `AdditiveAttention.prepare`; or lengths are given with a
                prepared memory.
        """
        if not hasattr(memory, "value_dim"):
            return as_forward(self.attention, "prepare")(memory, key_lengths)
        if key_lengths is not None:
            raise ValueError(
                "key_lengths must be None for a prepared memory, got a "
                f"{type(key_lengths).__name__}: give it to prepare()"
            )
        return memory

    def _run(
        self,
        inputs: Tensor,
        following: Callable[[int, Tensor, Tensor], Tensor],
        steps: int,
        prepared: Prepared,
        state: Any,
        return_weights: bool,
    ) -> Run | RunWithWeights:
        """Run `steps`; `following` makes the inputs of step t from the results of step t - 1."""
        checks.flags(return_weights=return_weights)
        if isinstance(state, DecoderState):
            wanted = prepared.batch, prepared.value_dim
            checks.tensor("state.context", state.context, "(B, value_dim)", wanted)
        alignment = state.alignment if isinstance(state, DecoderState) else None
        attend = self._attend(prepared, steps + 1, return_weights, alignment)
        now = self._initial(prepared, attend, state)
        outputs: list[Tensor] = []
        contexts: list[Tensor] = []
        weights: list[Any] = []
        cell = self.cell  # once: a module takes a microsecond to find another
        for t in range(steps):
            output, context, a, now = self._step(cell, inputs, attend, now, checked=t > 0)
            outputs.append(output)
            contexts.append(context)
            if a is not None:
                weights.append(a)
            if t + 1 < steps:
                inputs = following(t + 1, output, context)
        alphas = stacked(weights) if return_weights else None
        return _results(torch.stack(outputs, 1), torch.stack(contexts, 1), alphas, now)

    def _step(
        self, cell: Any, inputs: Tensor, attend: Attend, last: DecoderState, checked: bool = False
    ) -> tuple[Tensor, Tensor, Any, DecoderState]:
        """Run one step of `cell`; `checked`: an output of it has been found to fit."""
        now = cell(torch.cat([inputs, last.context], -1), last.cell)
        output = self._output("the cell's output", now, None if checked else inputs.shape[0])
        context, weights = attend(output)
        return output, context, weights, DecoderState(now, context, alignment_of(attend))

    def _initial(self, prepared: Prepared, attend: Attend, state: Any) -> DecoderState:
        if isinstance(state, DecoderState):
            return state
        if state is not None:
            output = self._output("the output in state", state, prepared.batch)
            return DecoderState(state, attend(output)[0], alignment_of(attend))
        return DecoderState(None, prepared.value.new_zeros(prepared.batch, prepared.value_dim))

    def _output(self, name: str, state: Any, rows: int | None) -> Tensor:
        """Return the output of a cell, the query of its attention; without `rows` unchecked."""
        output = cell_output(state)
        if rows is None:
            return output
        if isinstance(attention := self.attention, Projections):
            arguments.query(attention, output, rows, "", name)
        else:
            checks.tensor(name, output, "(B, query_dim)", (rows, attention.query_dim))
        return output

    def _attend(
        self,
        prepared: Prepared,
        steps: int | None,
        return_weights: bool,
        alignment: Alignment | None = None,
    ) -> Attend:
        """Return the attention of outputs (R, hidden), one step after another.

        `steps` is the number of them, for one row per sequence; None for any number and for beams,
        whose gradients are computed step by step.
        """
        attention, window = self.attention, None if self.training else self.window
        if steps is not None and window is None:
            if self.defer_gradients and isinstance(attention, StepwiseAttention):
                prepared = as_forward(attention, "for_steps")(prepared, steps)
            elif reads_plainly(attention) and isinstance(prepared, PreparedMemory):
                memory, p = prepared.memory, attention.dropout_now
                if self.defer_gradients and learns(memory) and not p:
                    return attention.read_by(DeferredMemory(memory, steps, return_weights).attend)
                attend = partial(memory.attend, dropout_p=p, return_weights=return_weights)
                return attention.read_by(attend)
        return Reader(attention, prepared, alignment, window, return_weights)

    if TYPE_CHECKING:
        __call__ = forward


def _results(
    output: Tensor, context: Tensor, weights: Any, state: DecoderState
) -> Run | RunWithWeights:
    return (output, context, state) if weights is None else (output, context, state, weights)
