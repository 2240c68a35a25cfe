"""Calls as users write them, with the types that a checker must find; test_types.py runs mypy."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

from attnkernels.models import PointerNetwork, RNNsearch, Seq2Seq, ShowAttendTell
from attnkernels.models.show_attend_tell import ConvEncoder, Description
from attnkernels.nn import (
    AdditiveAttention,
    AlignmentState,
    AttentionPooling,
    AttentionRNN,
    CoverageAttention,
    Decoded,
    DecoderState,
    HardAttention,
    HardChoice,
    LocationSensitiveAttention,
    MonotonicAttention,
    PointerHead,
    beam_search,
    greedy_search,
)

x = torch.zeros(1, 1, 4)
n = torch.ones(1, dtype=torch.int64)
Pair = tuple[Tensor, Tensor]
Run = tuple[Tensor, Tensor, DecoderState]
RunWithWeights = tuple[Tensor, Tensor, DecoderState, Tensor]


def additive(attention: AdditiveAttention, wanted: bool) -> None:
    assert_type(attention(x, x), Tensor)
    assert_type(attention(x, x, x, key_lengths=n, return_weights=False), Tensor)
    assert_type(attention(x, x, window_size=(2, 2), return_weights=True), Pair)
    assert_type(attention.forward(x, x, attn_mask=x, return_weights=True), Pair)
    assert_type(attention(x, x, return_weights=wanted), Tensor | Pair)
    prepared = attention.prepare(x, n)
    assert_type(attention.step(x, prepared), Tensor)
    assert_type(attention.step(x, prepared, True), Pair)
    assert_type(attention.step(x, prepared, return_weights=wanted), Tensor | Pair)
    attention(x, x, weights=True)  # type: ignore[call-overload]
    AdditiveAttention(4, 4, 4, activation="tahn")  # type: ignore[arg-type]


def stepwise(
    attention: LocationSensitiveAttention | CoverageAttention, moving: MonotonicAttention
) -> None:
    assert_type(attention(x, x), Tensor)
    assert_type(attention(x, x, return_weights=True), Pair)
    assert_type(moving(x, x, generator=None), Tensor)
    assert_type(moving(x, x, generator=None, return_weights=True), Pair)
    assert_type(attention.step(x, attention.prepare(x)), tuple[Tensor, Tensor, AlignmentState])


def others(hard: HardAttention, head: PointerHead, pooling: AttentionPooling, wanted: bool) -> None:
    assert_type(hard(x, x), HardChoice)
    assert_type(head(x, x, attn_mask=x), Tensor)
    assert_type(pooling(x, key_lengths=n), Tensor)
    assert_type(pooling(x, return_weights=True), Pair)
    assert_type(pooling(x, return_weights=wanted), Tensor | Pair)


def decoder(rnn: AttentionRNN, embed: nn.Embedding, wanted: bool) -> None:
    assert_type(rnn(x, x), Run)
    assert_type(rnn(x, x, n, None, return_weights=True), RunWithWeights)
    assert_type(rnn(x, x, return_weights=wanted), Run | RunWithWeights)
    outputs, contexts, state = rnn(x, x)
    again = rnn.free_running(x[:, 0], x, 3, lambda output, context: output)
    assert_type(again, Run)
    prepared = rnn.prepared(x)
    assert_type(rnn.step(x[:, 0], prepared, state), Run)
    assert_type(rnn.step(x[:, 0], prepared, state, return_weights=True), RunWithWeights)

    def readout(output: Tensor, context: Tensor) -> Tensor:
        return output

    assert_type(
        beam_search(rnn, x, embed=embed, readout=readout, start=0, eos=1, max_length=3), Decoded
    )
    assert_type(
        greedy_search(rnn, x, n, embed=embed, readout=readout, start=0, eos=1, max_length=3),
        Decoded,
    )


def models(
    search: RNNsearch, plain: Seq2Seq, pointer: PointerNetwork, caption: ShowAttendTell
) -> None:
    assert_type(search(n, n, n), Tensor)
    assert_type(search(n, n, n, return_weights=True), Pair)
    assert_type(plain(n, n, n), Tensor)
    assert_type(pointer(x, n, n), Tensor)
    assert_type(pointer.beam_search(x, n, max_length=3), Decoded)
    assert_type(search.greedy_search(n, n, max_length=3), Decoded)
    assert_type(caption(x, n), Description)
    assert_type(ConvEncoder(3, 16)(x), Tensor)
