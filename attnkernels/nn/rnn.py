"""Attention on a recurrent cell: a decoder that reads a memory at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import torch
from torch import Tensor, nn

from ..functional import checks
from ..functional.deferred import DeferredMemory, learns
from . import inputs as arguments
from .attention import AdditiveAttention, PreparedMemory
from .calls import as_forward
from .state import DecoderState, cell_output

if TYPE_CHECKING:
    from .overloads import EitherWay, NoWeights, Unpack, WithWeights

Attend = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # output -> context, weights or None
Feed = Callable[[Tensor, Tensor], Tensor]  # output, context -> the next input
Run: TypeAlias = tuple[Tensor, Tensor, DecoderState]  # outputs, contexts, last state
RunWithWeights: TypeAlias = tuple[Tensor, Tensor, DecoderState, Tensor]
Memory: TypeAlias = Tensor | PreparedMemory
Lengths: TypeAlias = Tensor | None


class AttentionRNN(nn.Module):
    """A recurrent cell with attention, which reads the memory with its new output.

        state_t = cell([input_t, c_{t-1}], state_{t-1})    c_t = attention(output(state_t), memory)

    If no state is given, c_{-1} is zeros (GNMT, 1609.08144; Tacotron 2, 1712.05884). If the initial
    state of the cell is given, c_{-1} is the attention of that state's output, so that each step
    reads, with its input, the context of its previous state (Bahdanau et al., 1409.0473).

    In training the gradients of the prepared keys, the values and the score vector are computed
    once, after all steps, instead of once per step (see `attnkernels.functional.deferred`); with
    dropout of the weights they are computed step by step.

    Every step calls ``cell`` and ``attention``, so their forward hooks run; those of ``attention``
    get the query and return what its `forward` does.

    Args:
        cell: a module (input, state) -> state like `torch.nn.GRUCell` (the state is a tensor, and
            the output) or `torch.nn.LSTMCell` (the state is a tuple that starts with the output).
            Its input has the features of input_t followed by those of a context.
        attention: an `AdditiveAttention` whose query_dim is the size of the cell's output.
        defer_gradients: False computes the gradients of the keys step by step. This is slower, and
            required for second derivatives (``create_graph=True``). Forward-mode differentiation,
            the transforms of `torch.func` and torch.compile always compute them step by step.

    Raises:
        TypeError: cell is not callable, attention is not an `AdditiveAttention`, or
            ``defer_gradients`` is not a bool.
    """

    def __init__(
        self, cell: nn.Module, attention: AdditiveAttention, *, defer_gradients: bool = True
    ) -> None:
        super().__init__()
        checks.instance("cell", cell, Callable, "a module that is called")  # type: ignore[arg-type]
        checks.instance("attention", attention, AdditiveAttention, "an AdditiveAttention")
        checks.flags(defer_gradients=defer_gradients)
        self.cell, self.attention, self.defer_gradients = cell, attention, defer_gradients

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
            with ``return_weights`` then the weights (B, T, m), with heads (B, H, T, m).

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        prepared = self.prepared(memory, key_lengths)
        checks.tensor("inputs", inputs, "(B, T, e)", (prepared.batch, None, None))
        self._fits("inputs", inputs, prepared)
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
        self._fits("first", first, prepared)

        def following(t: int, output: Tensor, context: Tensor) -> Tensor:
            return feed(output, context)

        return self._run(first, following, steps, prepared, state, return_weights)

    @overload
    def step(
        self, inputs: Tensor, prepared: PreparedMemory, state: DecoderState, **o: Unpack[NoWeights]
    ) -> Run: ...
    @overload
    def step(
        self,
        inputs: Tensor,
        prepared: PreparedMemory,
        state: DecoderState,
        **o: Unpack[WithWeights],
    ) -> RunWithWeights: ...
    @overload
    def step(
        self, inputs: Tensor, prepared: PreparedMemory, state: DecoderState, **o: Unpack[EitherWay]
    ) -> Run | RunWithWeights: ...
    def step(
        self,
        inputs: Tensor,
        prepared: PreparedMemory,
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
            (B * beams, H, m).

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        checks.instance("prepared", prepared, PreparedMemory, "what attention.prepare() returned")
        checks.instance("state", state, DecoderState, "a DecoderState")
        attend = self._attend_beams(prepared, _beams(inputs, prepared.batch), return_weights)
        self._fits("inputs", inputs, prepared)
        return _results(*self._step(inputs, attend, state))

    def initial_state(self, prepared: PreparedMemory, state: Any = None) -> DecoderState:
        """Return the state before the first step.

        Args:
            prepared: from ``attention.prepare``.
            state: None, the initial state of the cell, or a `DecoderState`.

        Raises:
            TypeError, ValueError: the state has no output (B, query_dim).
        """
        return self._initial(prepared, self._attend(prepared, 1, False), state)

    def prepared(self, memory: Memory, key_lengths: Lengths = None) -> PreparedMemory:
        """Return the memory, prepared unless it already is.

        Raises:
            TypeError, ValueError: as `AdditiveAttention.prepare`; or lengths are given with a
                prepared memory.
        """
        if not isinstance(memory, PreparedMemory):
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
        prepared: PreparedMemory,
        state: Any,
        return_weights: bool,
    ) -> Run | RunWithWeights:
        """Run `steps`; `following` makes the inputs of step t from the results of step t - 1."""
        checks.flags(return_weights=return_weights)
        if isinstance(state, DecoderState):
            wanted = prepared.batch, prepared.value_dim
            checks.tensor("state.context", state.context, "(B, value_dim)", wanted)
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
        stacked = torch.stack(weights, -2) if return_weights else None
        return _results(torch.stack(outputs, 1), torch.stack(contexts, 1), stacked, now)

    def _step(
        self, inputs: Tensor, attend: Attend, state: DecoderState
    ) -> tuple[Tensor, Tensor, Tensor | None, DecoderState]:
        cell = self.cell(torch.cat([inputs, state.context], -1), state.cell)
        output = self._output("the cell's output", cell, inputs.shape[0])
        context, weights = attend(output)
        return output, context, weights, DecoderState(cell, context)

    def _initial(self, prepared: PreparedMemory, attend: Attend, state: Any) -> DecoderState:
        if isinstance(state, DecoderState):
            return state
        if state is not None:
            output = self._output("the output in state", state, prepared.batch)
            return DecoderState(state, attend(output)[0])
        value = prepared.memory.value
        return DecoderState(None, value.new_zeros(prepared.batch, prepared.value_dim))

    def _fits(self, name: str, x: Tensor, prepared: PreparedMemory) -> None:
        """Raise ValueError unless the cell takes the features of `x` and those of a context."""
        width = getattr(self.cell, "input_size", None)  # of torch's cells
        if type(width) is int and width != x.shape[-1] + prepared.value_dim:
            raise ValueError(
                f"{name} must have e = {width - prepared.value_dim} features, so that the cell "
                f"gets e + value_dim = {width}, got shape {tuple(x.shape)}"
            )

    def _output(self, name: str, state: Any, rows: int) -> Tensor:
        """Return the output of a cell, which is the query of its attention."""
        output = cell_output(state)
        arguments.query(self.attention, output, rows, "", name)
        return output

    def _attend(self, prepared: PreparedMemory, steps: int, return_weights: bool) -> Attend:
        """Return the attention of one output per sequence, for up to `steps` of them."""
        attention, memory = self.attention, prepared.memory
        if not (self.defer_gradients and learns(memory)) or attention.dropout_now:
            return attention._attend_to(prepared, return_weights)
        deferred = DeferredMemory(memory, steps, return_weights)
        return attention._read_by(deferred.attend)

    def _attend_beams(self, prepared: PreparedMemory, beams: int, return_weights: bool) -> Attend:
        """Return the attention of `step`, of `beams` outputs per sequence."""
        attend_rows = self.attention._attend_to(prepared, return_weights)

        def attend(output: Tensor) -> tuple[Tensor, Tensor | None]:
            context, weights = attend_rows(output.unflatten(0, (prepared.batch, beams)))
            if weights is not None:
                weights = weights.movedim(-2, 1).flatten(0, 1)
            return context.flatten(0, 1), weights

        return attend

    if TYPE_CHECKING:
        __call__ = forward


def _results(
    output: Tensor, context: Tensor, weights: Tensor | None, state: DecoderState
) -> Run | RunWithWeights:
    return (output, context, state) if weights is None else (output, context, state, weights)


def _beams(inputs: Tensor, batch: int) -> int:
    """Return how many rows of `inputs` (rows, e) belong to each of the sequences."""
    checks.tensor("inputs", inputs, "(B * beams, e)", (None, None))
    rows = inputs.shape[0]
    if rows % max(batch, 1) or (rows and not batch):
        raise ValueError(
            f"inputs must have shape (B * beams, e) with rows that are a multiple of B = {batch}, "
            f"got {tuple(inputs.shape)}"
        )
    return rows // max(batch, 1)
