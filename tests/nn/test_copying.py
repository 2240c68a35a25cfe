"""Compare copying from the source with its definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.inputs import F32, F64, normal
from torch import Tensor, nn

from attnkernels.nn import (
    AttentionRNN,
    CoverageAttention,
    PointerGenerator,
    beam_search,
    copy_unknown,
    greedy_search,
)

B, T, M, V, EXTRA = 2, 3, 5, 7, 2


def test_unknown_words_are_copied_from_where_attention_looks() -> None:
    tokens = torch.tensor([[[4, 3, 2], [3, 3, 2]]])
    source = torch.tensor([[10, 11, 12]])
    alignments = torch.zeros(1, 2, 3, 3)
    alignments[0, 0, :, 1], alignments[0, 1, 0, 2] = 1.0, 0.6
    copied = copy_unknown(tokens, alignments, source, unknown=3)
    assert copied.tolist() == [[[4, 11, 2], [12, 3, 2]]]  # without weights, unknown stays
    heads = torch.stack([alignments, alignments], 2)
    assert torch.equal(copy_unknown(tokens, heads, source, unknown=3), copied)
    assert torch.equal(copy_unknown(tokens[0], alignments[0], source.expand(2, 3), 3), copied[0])


def test_copying_refuses_what_does_not_fit() -> None:
    tokens, alignments = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, 4)
    source = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="alignments must be .* got shape"):
        copy_unknown(tokens, alignments[:, :2], source, 1)
    with pytest.raises(ValueError, match=r"source must be \(B, m\) = \(2, 4\), got shape \(2, 3\)"):
        copy_unknown(tokens, alignments, source[:, :3], 1)
    with pytest.raises(TypeError, match="tokens"):
        copy_unknown(tokens.float(), alignments, source, 1)


def arguments(dtype: torch.dtype) -> dict[str, Any]:
    weights = normal(B, T, M, dtype=dtype, grad=False).softmax(-1)
    weights[0, 1] = 0.0  # nothing to copy
    source = torch.randint(V + EXTRA, (B, 1, M), generator=torch.Generator().manual_seed(0))
    source[:, :, :2] = V  # twice: the weights of equal words add up
    given = {"logits": (V,), "context": (4,), "output": (3,), "input": (2,)}
    tensors = {name: normal(B, T, *size, dtype=dtype) for name, size in given.items()}
    return {**tensors, "weights": weights.requires_grad_(), "source": source}


def by_definition(head: PointerGenerator, given: dict[str, Any]) -> Tensor:
    """Return the probabilities of equations 8 and 9."""
    p_gen = head.gate(torch.cat([given["context"], given["output"], given["input"]], -1)).sigmoid()
    weights, source = given["weights"], given["source"].expand(B, T, M)
    p_gen = torch.where(weights.sum(-1, keepdim=True) == 0, 1.0, p_gen)
    generated = p_gen * given["logits"].softmax(-1)
    of_word = nn.functional.one_hot(source, V + EXTRA).to(weights)
    copied = ((1 - p_gen) * weights).unsqueeze(-2) @ of_word
    return nn.functional.pad(generated, (0, EXTRA)) + copied.squeeze(-2)


def test_pointer_generator_against_its_definition() -> None:
    head, given = PointerGenerator(4, 3, 2, dtype=F64), arguments(F64)
    found, wanted = head(**given, extra=EXTRA), by_definition(head, given)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(B, T, dtype=F64))
    torch.testing.assert_close(found.exp(), wanted)
    at = [given[name] for name in ("logits", "context", "output", "input", "weights")]
    at += list(head.parameters())
    direction = torch.where(wanted > 0, normal(B, T, V + EXTRA, dtype=F64, grad=False), 0.0)
    finite = torch.where(wanted > 0, found, 0.0)
    for x, y in zip(
        torch.autograd.grad(finite, at, direction),
        torch.autograd.grad(wanted.clamp(min=1e-300).log(), at, direction),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def test_pointer_generator_keeps_rare_words() -> None:
    head, given = PointerGenerator(4, 3, 2, dtype=F32), arguments(F32)
    with torch.no_grad():
        given["logits"][..., 0] -= 200.0  # exp of it is 0 in float32
    given["source"] = torch.full((B, 1, M), V)
    found = head(**given, extra=EXTRA)
    assert (found[..., 0] < -150).all() and found[..., 0].isfinite().all()
    exact = PointerGenerator(4, 3, 2, dtype=F64)
    exact.load_state_dict(head.state_dict())
    wide = {n: x if x.dtype == torch.int64 else x.detach().double() for n, x in given.items()}
    wanted = exact(**wide, extra=EXTRA)
    exists = wanted.isfinite()
    torch.testing.assert_close(found[exists], wanted[exists].float())


def test_pointer_generator_refuses_what_does_not_fit() -> None:
    head, given = PointerGenerator(4, 3, 2), arguments(F32)
    with pytest.raises(ValueError, match="source must lie in .*V = 7 and extra = 0"):
        head(**given)
    for name, wrong in (
        ("weights", torch.zeros(B, 1, M)),
        ("source", torch.zeros(B, 1, M + 1, dtype=torch.int64)),
        ("context", torch.zeros(B, T, 5)),
        ("input", torch.zeros(B, T + 1, 2)),
    ):
        with pytest.raises(ValueError, match=name):
            head(**{**given, name: wrong}, extra=EXTRA)
    with pytest.raises(ValueError, match="extra must be at least 0"):
        head(**given, extra=-1)


@pytest.mark.parametrize("beams", [0, 1, 3])
def test_a_search_copies_words_beyond_the_vocabulary(beams: int) -> None:
    units, keys, width = 4, 6, 3
    rnn = AttentionRNN(nn.GRUCell(width + keys, units), CoverageAttention(units, keys, 5)).eval()
    head, project = PointerGenerator(keys, units, 1), nn.Linear(units + keys, V)
    nn.init.constant_(head.gate.bias, -30.0)  # always copies
    embedding = nn.Embedding(V, width)
    source = torch.tensor([[8, 7, 8, 7, 8], [3, 7, 4, 7, 8]])

    def embed(tokens: Tensor) -> Tensor:
        return embedding(torch.where(tokens < V, tokens, 0))

    def readout(output: Tensor, context: Tensor, weights: Tensor) -> Tensor:
        logits = project(torch.cat([output, context], -1))
        copied = source.repeat_interleave(len(output) // B, 0)
        gate = {"context": context, "output": output, "input": output[:, :1]}
        return head(logits, weights, copied, **gate, extra=2)

    options: dict[str, Any] = {"embed": embed, "readout": readout, "start": 1, "eos": 2}
    options |= {"max_length": 4, "copies": True, "return_alignments": True}
    memory = normal(B, M, keys, dtype=F32, grad=False)
    if beams:
        found = beam_search(rnn, memory, **options, beams=beams)
    else:
        found = greedy_search(rnn, memory, **options)
    assert found.alignments is not None
    for b in range(B):
        assert set(found.tokens[b].flatten().tolist()) <= set(source[b].tolist())
    assert (found.tokens[0] >= V).all()
