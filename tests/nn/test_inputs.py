"""The arguments of every module: one rule for masks, one check and one sentence for each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F16, F32, F64, normal
from torch import Tensor, nn

from attnkernels.nn import (
    AdditiveAttention,
    AttentionPooling,
    AttentionRNN,
    CoverageAttention,
    DecoderState,
    HardAttention,
    LocationSensitiveAttention,
    MonotonicAttention,
    PointerHead,
    beam_search,
    greedy_search,
)

B, N, M = 3, 4, 11
SIZES = (6, 5, 8)  # of query, key, hidden
LENGTHS = torch.tensor([5, M, 1])

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a prototype
    NESTED = torch.nested.nested_tensor([torch.zeros(2, 5)])

Make = Callable[..., nn.Module]
MASKED: dict[str, Make] = {
    "additive": lambda **k: AdditiveAttention(*SIZES, **k),
    "heads": lambda **k: AdditiveAttention(*SIZES, num_heads=2, **k),
    "pointer": lambda **k: PointerHead(*SIZES, **k),
    "location": lambda **k: LocationSensitiveAttention(*SIZES, channels=2, kernel_size=3, **k),
    "coverage": lambda **k: CoverageAttention(*SIZES, **k),
    "moving": lambda **k: MonotonicAttention(*SIZES, noise=0.0, **k),
    "hard": lambda **k: HardAttention(*SIZES, **k),
}
masked = pytest.mark.parametrize("make", MASKED.values(), ids=MASKED)


def call(module: nn.Module, mask: Any = None, dtype: torch.dtype = F32, **options: Any) -> Tensor:
    """Return one result of any of these modules, on the same inputs for all of them."""
    torch.manual_seed(1)
    key_dim = 8 if getattr(module, "num_heads", 1) > 1 else SIZES[1]
    key = normal(B, M, SIZES[1], dtype=dtype, grad=False)
    value = normal(B, M, key_dim, dtype=dtype, grad=False)
    given = {"query": normal(B, N, SIZES[0], dtype=dtype, grad=False), "key": key, "value": value}
    if isinstance(module, PointerHead):
        del given["value"]
    result = module(**(given | {"attn_mask": mask} | options))
    return result if isinstance(result, Tensor) else result.log_prob


def keep() -> Tensor:
    mask = torch.rand(N, M) < 0.7
    mask[:, 0] = True
    return mask


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the same mask as numbers to add."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)


@masked
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_mask_is_bool_or_of_the_dtype_of_the_query(make: Make, dtype: torch.dtype) -> None:
    module, mask = make(dtype=dtype).eval(), keep()
    found = call(module, mask, dtype)
    assert found.dtype == (F32 if isinstance(module, HardAttention) else dtype)
    torch.testing.assert_close(call(module, added(mask, dtype), dtype), found)
    for other in {F16, BF16, F32, F64} - {dtype}:
        with pytest.raises(TypeError, match=rf"^attn_mask must .* of query, {dtype}, got {other}"):
            call(module, added(mask, other), dtype)
    for other in (torch.uint8, torch.int32, torch.int64, torch.complex64):
        with pytest.raises(TypeError, match=rf"^attn_mask must be bool or .* got {other}"):
            call(module, torch.ones(N, M, dtype=other), dtype)


@masked
def test_autocast_casts_a_mask_with_the_query(make: Make) -> None:
    """Both take autocast's dtype; float64 is not cast, and therefore refused."""
    module, mask = make().eval(), keep()
    with torch.autocast("cpu", BF16):
        found = call(module, added(mask, F32))
        torch.testing.assert_close(found, call(module, mask))
        for dtype in (BF16, F16):
            assert torch.equal(found, call(module, added(mask, dtype)))
        for dtype in (F64, torch.int64):
            with pytest.raises(TypeError, match=rf"^attn_mask must .* got {dtype}"):
                call(module, torch.ones(N, M, dtype=dtype))


STEPPED = ("location", "coverage", "moving", "hard")


@pytest.mark.parametrize("make", [MASKED[name] for name in STEPPED], ids=STEPPED)
def test_masks_of_steps_follow_the_rule(make: Make) -> None:
    module, mask = make().eval(), keep()[0]
    query, key = normal(B, SIZES[0], grad=False), normal(B, M, SIZES[1], grad=False)

    def step(mask: Tensor) -> Tensor:
        return module.step(query, module.prepare(key), attn_mask=mask)[0]

    torch.testing.assert_close(step(mask), step(added(mask, F32)))
    for dtype in (BF16, F64, torch.uint8):
        with pytest.raises(TypeError, match=rf"^attn_mask must .* of query, {F32}, got {dtype}"):
            step(torch.ones(M, dtype=dtype))
    with pytest.raises(ValueError, match=r"^attn_mask must broadcast to the weights, \(B, m\) ="):
        step(torch.ones(N, M))


@masked
@pytest.mark.parametrize("wrong", [(N, M + 1), (N + 1, M), (2, N, M), (1, 1, B, N, M), (B, 1)])
def test_a_mask_broadcasts_to_the_weights(make: Make, wrong: tuple[int, ...]) -> None:
    module = make().eval()
    if module.num_heads == 2 and wrong == (2, N, M):
        return  # as many as heads: the next test
    shape = r"\(B, H, n, m\) = \(3, 2, 4, 11\)" if module.num_heads == 2 else r"\(B, n, m\) = \(3"
    with pytest.raises(
        ValueError, match=rf"^attn_mask must broadcast to the weights, {shape}.*got"
    ):
        call(module, torch.ones(wrong, dtype=torch.bool))
    for right in ((), (M,), (1, M), (N, 1)):
        whole = call(module, torch.ones(right, dtype=torch.bool))
        torch.testing.assert_close(whole, call(module))


def test_masks_of_sequences_and_heads_are_not_mixed_up() -> None:
    """As many sequences as heads: a mask of three dimensions could be of either."""
    module = MASKED["heads"]().eval()
    query, key = normal(2, N, SIZES[0], grad=False), normal(2, M, SIZES[1], grad=False)
    value = normal(2, M, 8, grad=False)
    mask = torch.rand(2, N, M) < 0.5
    mask[..., 0] = True
    refused = (
        r"^attn_mask must have all dimensions of the weights, \(B, H, n, m\) = \(2, 2, 4, 11\)"
    )
    with pytest.raises(ValueError, match=rf"{refused}, got shape \(2, 4, 11\): unsqueeze\(1\)"):
        module(query, key, value, attn_mask=mask)
    with pytest.raises(ValueError, match=r"^attn_mask must have all .* \(B, H, m\) = \(2, 2, 11\)"):
        module(query[:, 0], key, value, attn_mask=mask[:, 0])
    for place in (0, 1):
        _, weights = module(query, key, value, attn_mask=mask.unsqueeze(place), return_weights=True)
        assert not weights[~mask.unsqueeze(place).expand(2, 2, N, M)].any()
    everywhere = mask[:1]  # (1, n, m) is for all sequences and heads
    torch.testing.assert_close(
        module(query, key, value, attn_mask=everywhere),
        module(query, key, value, attn_mask=mask[0]),
    )


@masked
def test_a_floating_mask_has_a_gradient(make: Make) -> None:
    module, mask = make(dtype=F64), normal(N, M, dtype=F64)
    (gradient,) = torch.autograd.grad(call(module, mask, F64)[..., 0].sum(), mask)
    assert gradient.isfinite().all() and gradient.any()


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
