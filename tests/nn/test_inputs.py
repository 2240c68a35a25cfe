"""The arguments of every module: one check and one sentence for each."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from helpers.nn_masked import MASKED, SIZES, B, M, Make, N, call, masked
from torch import Tensor, nn

from attnkernels.nn import (
    AdditiveAttention,
    AttentionPooling,
    AttentionRNN,
    DecoderState,
    PointerHead,
    beam_search,
    greedy_search,
)

LENGTHS = torch.tensor([5, M, 1])

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a prototype
    NESTED = torch.nested.nested_tensor([torch.zeros(2, 5)])


@masked
@pytest.mark.parametrize(
    "options, error, sentence",
    [
        ({"query": torch.zeros(B, N, 7)}, ValueError, r"query must have shape .*\(3, \*, 6\)"),
        (
            {"query": torch.zeros(B, N, 6).double()},
            TypeError,
            "query must have the dtype of the mod",
        ),
        ({"query": [1.0]}, TypeError, r"query must be a tensor \(B, n, query_dim\), got list"),
        ({"key": torch.zeros(B, M, 7)}, ValueError, r"key must have shape .* = \(\*, \*, 5\)"),
        ({"key": torch.zeros(B, M)}, ValueError, r"key must have shape \(B, m, key_dim\)"),
        (
            {"key": torch.zeros(B, M, 5).double()},
            TypeError,
            "key must have the dtype of the module",
        ),
        ({"key": torch.zeros(B, M, 5).to_sparse()}, TypeError, r"key must be a dense"),
        (
            {"key": torch.nested.nested_tensor([torch.zeros(2, 5)])},
            TypeError,
            "key must be a dense",
        ),
        ({"key_lengths": torch.tensor([1, 2])}, ValueError, r"key_lengths must .* = \(3,\), got"),
        (
            {"key_lengths": torch.tensor([1, 2, 99])},
            ValueError,
            r"key_lengths must lie in \[0, 11\]",
        ),
        (
            {"key_lengths": torch.tensor([1, -2, 3])},
            ValueError,
            r"key_lengths must lie in \[0, 11\]",
        ),
        ({"key_lengths": torch.ones(B)}, TypeError, "key_lengths must be int32 or int64, got"),
        ({"key_lengths": torch.ones(B).bool()}, TypeError, "key_lengths must be int32 or int64"),
        ({"key_lengths": [1, 2, 3]}, TypeError, r"key_lengths must be a tensor \(B,\), got list"),
        ({"key_lengths": LENGTHS.to("meta")}, ValueError, "key_lengths must be on the device"),
        ({"mask": torch.ones(N, M).to("meta")}, ValueError, "attn_mask must be on the device"),
        ({"mask": [True]}, TypeError, "attn_mask must be a tensor, got list"),
        (
            {"value": torch.zeros(B, M, 8).double()},
            TypeError,
            "value must have the dtype of key, torch.float32, got torch.float64",
        ),
        (
            {"value": torch.zeros(B, M, 8, device="meta")},
            ValueError,
            "value must be on the device",
        ),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_each_argument_has_its_sentence(
    make: Make, options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    module = make()
    if isinstance(module, PointerHead) and "value" in options:
        return  # it takes none
    with pytest.raises(error, match=f"^{sentence}"):
        call(module, **options)


@masked
def test_lengths_may_be_int32(make: Make) -> None:
    module = make().eval()
    found, wanted = (call(module, key_lengths=x) for x in (LENGTHS.int(), LENGTHS))
    torch.testing.assert_close(found, wanted)


class Counted(nn.Module):
    """A parametrisation that counts how often it is computed: spectral_norm iterates each time."""

    times = 0

    def forward(self, x: Tensor) -> Tensor:
        self.times += 1
        return x


@masked
def test_a_check_does_not_compute_a_parametrised_weight(make: Make) -> None:
    module, counted = make().eval(), (Counted(), Counted())
    for layer, each in zip((module.query_proj, module.key_proj), counted, strict=True):
        nn.utils.parametrize.register_parametrization(layer, "weight", each)
        each.times = 0
    call(module)
    assert [each.times for each in counted] == [1, 1]


@pytest.mark.parametrize("made", [m for name, m in MASKED.items() if name != "heads"])
@pytest.mark.parametrize(
    "options, error, sentence",
    [
        ({"backend": "cuda"}, ValueError, "backend must be one of None, .*'native'.*, got 'cuda'"),
        ({"bias": 1}, TypeError, "bias must be a bool, got int"),
        ({"normalize": None}, TypeError, "normalize must be a bool, got NoneType"),
    ],
)
def test_options_are_checked_when_a_module_is_made(
    made: Make, options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=f"^{sentence}"):
        made(**options)


@pytest.mark.parametrize(
    "key, sentence",
    [
        (
            torch.zeros(6, 10),
            r"key must have shape \(B, m, key_dim\) = \(\*, \*, 10\), got \(6, 10\)",
        ),
        (torch.zeros(2, 6, 9), r"key must have shape \(B, m, key_dim\) = \(\*, \*, 10\)"),
    ],
)
def test_pooling_names_what_is_wrong(key: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        AttentionPooling(10, 4)(key)


def test_names_are_those_of_the_method() -> None:
    """A memory is `key` in forward and `memory` in prepare."""
    for name, make in MASKED.items():
        module = make()
        if name == "pointer":
            continue
        with pytest.raises(ValueError, match=r"^memory must have shape \(B, m, key_dim\)"):
            module.prepare(torch.zeros(B, M))
        with pytest.raises(TypeError, match=r"^(state|prepared) must be what prepare"):
            module.step(torch.zeros(B, 6), torch.zeros(B, M, 5))


def rnn(**options: Any) -> AttentionRNN:
    return AttentionRNN(nn.GRUCell(4 + 5, 6), AdditiveAttention(*SIZES), **options)


@pytest.mark.parametrize(
    "options, error, sentence",
    [
        (
            {"inputs": torch.zeros(7, 4, 4)},
            ValueError,
            r"inputs must .* = \(3, \*, \*\), got \(7, 4",
        ),
        ({"state": torch.zeros(8, 6)}, ValueError, r"the output in state must .* got \(8, 6\)"),
        ({"state": torch.zeros(B, 7)}, ValueError, r"the output in state must .* got \(3, 7\)"),
        (
            {"state": DecoderState(torch.zeros(B, 6), torch.zeros(2, 5))},
            ValueError,
            r"state.context must have shape \(B, value_dim\) = \(3, 5\), got \(2, 5\)",
        ),
        ({"memory": torch.zeros(B, 5)}, ValueError, "memory must have shape"),
        (
            {"inputs": torch.zeros(B, N, 3)},
            ValueError,
            r"inputs must have e = 4 features, .*e \+ value_dim = 9, got shape \(3, 4, 3\)",
        ),
        ({"return_weights": 1}, TypeError, "return_weights must be a bool, got int"),
    ],
)
def test_a_decoder_speaks_of_what_it_was_given(
    options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    given = {"inputs": torch.zeros(B, N, 4), "memory": torch.zeros(B, M, 5)}
    with pytest.raises(error, match=f"^{sentence}"):
        rnn()(**(given | options))


def test_a_cell_of_the_wrong_size() -> None:
    wide = AttentionRNN(nn.GRUCell(4 + 5, 7), AdditiveAttention(*SIZES))
    with pytest.raises(ValueError, match=r"^the cell's output must have shape .*got \(3, 7\)"):
        wide(torch.zeros(B, N, 4), torch.zeros(B, M, 5))


def search(find: Any, batch: int = B, **options: Any) -> Any:
    tokens = {"start": 0, "eos": 1, "max_length": 3}
    maps = {"embed": nn.Embedding(7, 4), "readout": lambda output, context: output}
    return find(rnn(), torch.zeros(batch, M, 5), **(maps | tokens | options))


@pytest.mark.parametrize("find", [beam_search, greedy_search])
def test_searches_of_no_sequences(find: Any) -> None:
    found = search(find, batch=0)
    beams = 4 if find is beam_search else 1
    assert found.tokens.shape[:2] == (0, beams) and found.scores.shape == (0, beams)


@pytest.mark.parametrize("find", [beam_search, greedy_search])
@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"eos": None}, "eos must be an int, got NoneType"),
        ({"start": 1.5}, "start must be an int, got float"),
        ({"start": True}, "start must be an int, got bool"),
        ({"embed": None}, "embed must be a function, got NoneType"),
        ({"readout": torch.zeros(3)}, "readout must be a function, got Tensor"),
    ],
)
def test_arguments_of_searches(find: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TypeError, match=f"^{sentence}"):
        search(find, **options)


@pytest.mark.parametrize("find", [beam_search, greedy_search])
def test_only_a_decoder_can_be_searched(find: Any) -> None:
    with pytest.raises(TypeError, match="^rnn must have the methods .*, got AdditiveAttention"):
        find(
            AdditiveAttention(*SIZES),
            torch.zeros(B, M, 5),
            embed=len,
            readout=len,
            start=0,
            eos=1,
            max_length=2,
        )
