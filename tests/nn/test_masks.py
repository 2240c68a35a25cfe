"""Masks of every module: one rule for their dtypes, and one for their dimensions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F16, F32, F64, normal
from helpers.nn_masked import MASKED, SIZES, B, M, Make, N, call, masked
from torch import Tensor

from attnkernels.nn import (
    AdditiveAttention,
    AttentionPooling,
    AttentionRNN,
    CoverageAttention,
    DecoderState,
    HardAttention,
    LocationSensitiveAttention,
    PointerHead,
)


def keep() -> Tensor:
    mask = torch.rand(M) < 0.7
    mask[0] = True
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
            call(module, torch.ones(M, dtype=other), dtype)


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
                call(module, torch.ones(M, dtype=dtype))


STEPPED = ("location", "coverage", "moving", "hard")


@pytest.mark.parametrize("make", [MASKED[name] for name in STEPPED], ids=STEPPED)
def test_masks_of_steps_follow_the_rule(make: Make) -> None:
    module, mask = make().eval(), keep()
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
@pytest.mark.parametrize("wrong", [(N, M + 1), (N + 1, M), (5, N, M), (1, 1, B, N, M), (M, 1)])
def test_a_mask_broadcasts_to_the_weights(make: Make, wrong: tuple[int, ...]) -> None:
    module = make().eval()
    shape = r"\(B, H, n, m\) = \(3, 2, 4, 11\)" if module.num_heads == 2 else r"\(B, n, m\) = \(3"
    with pytest.raises(
        ValueError, match=rf"^attn_mask must broadcast to the weights, {shape}.*got"
    ):
        call(module, torch.ones(wrong, dtype=torch.bool))
    heads = (1,) * (module.num_heads - 1)
    for right in ((), (M,), (1, M), (1, *heads, N, 1), (B, *heads, 1, M), (B, *heads, N, M)):
        whole = call(module, torch.ones(right, dtype=torch.bool))
        torch.testing.assert_close(whole, call(module))


OF_SEQUENCES = {
    # shape of the mask, heads, queries, what makes it one of each sequence or of the rest
    "(B, m)": ((B, M), 1, N, ("unsqueeze(1)", "unsqueeze(0) one of each query")),
    "(B, m), as many queries": ((B, M), 1, B, ("unsqueeze(1)", "unsqueeze(0) one of each query")),
    "(n, m)": ((N, M), 1, N, ("unsqueeze(1)", "unsqueeze(0) one of each query")),
    "(n, 1)": ((N, 1), 1, N, ("unsqueeze(1)", "unsqueeze(0) one of each query")),
    "(B, n, m), heads": ((B, N, M), 2, N, ("unsqueeze(1)", "unsqueeze(0) one of each head")),
    "(H, n, m)": ((2, N, M), 2, N, ("unsqueeze(1)", "unsqueeze(0) one of each head")),
    "(B, m), one query of heads": ((B, M), 2, 0, ("unsqueeze(1)", "unsqueeze(0) one of each head")),
    "(B, m), heads": (
        (B, M),
        2,
        N,
        ("unsqueeze(1).unsqueeze(1)", "unsqueeze(0).unsqueeze(0) one of each query"),
    ),
}


@pytest.mark.parametrize("shape, heads, n, ways", OF_SEQUENCES.values(), ids=OF_SEQUENCES)
def test_masks_of_sequences_and_of_the_rest_are_not_mixed_up(
    shape: tuple[int, ...], heads: int, n: int, ways: tuple[str, str]
) -> None:
    """The rank decides, never the sizes: any of them may happen to be equal."""
    modules = [m for m in (make().eval() for make in MASKED.values()) if m.num_heads == heads]
    for module in modules:
        options: dict[str, Any] = {}
        if n != N:
            size = (B, n, SIZES[0]) if n else (B, SIZES[0])
            options["query"] = normal(*size, grad=False)
        with pytest.raises(ValueError) as raised:
            call(module, torch.ones(shape, dtype=torch.bool), **options)
        message = str(raised.value)
        assert message.startswith("attn_mask must have all dimensions of the weights, (B, ")
        assert f"got shape {shape}: {ways[0]} a mask of each sequence, or give key_len" in message
        assert message.endswith(ways[1])


def test_masks_of_sequences_of_heads_and_of_all() -> None:
    module = MASKED["heads"]().eval()
    query, key = normal(2, N, SIZES[0], grad=False), normal(2, M, SIZES[1], grad=False)
    value = normal(2, M, 8, grad=False)
    mask = torch.rand(2, N, M) < 0.5
    mask[..., 0] = True
    for place in (0, 1):
        _, weights = module(query, key, value, attn_mask=mask.unsqueeze(place), return_weights=True)
        assert not weights[~mask.unsqueeze(place).expand(2, 2, N, M)].any()
    everywhere = mask[:1]  # (1, n, m) is for all sequences and heads
    torch.testing.assert_close(
        module(query, key, value, attn_mask=everywhere),
        module(query, key, value, attn_mask=mask[:1, None]),
    )


@masked
def test_a_floating_mask_has_a_gradient(make: Make) -> None:
    module, mask = make(dtype=F64), normal(M, dtype=F64)
    (gradient,) = torch.autograd.grad(call(module, mask, F64)[..., 0].sum(), mask)
    assert gradient.isfinite().all() and gradient.any()


EMPTY: dict[str, Make] = MASKED | {
    "uniform": lambda: LocationSensitiveAttention(*SIZES, kernel_size=3, initial="uniform"),
    "uniform coverage": lambda: CoverageAttention(*SIZES, initial="uniform"),
    "expected": lambda: HardAttention(*SIZES, evaluation="expected"),
    "pooling": lambda: AttentionPooling(SIZES[1], 8),
    "rnn": lambda: AttentionRNN(torch.nn.GRUCell(6 + 5, 6), AdditiveAttention(*SIZES)),
}


@pytest.mark.parametrize("make", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_length_of_0_makes_nothing_infinite(make: Make, training: bool) -> None:
    """A sequence without keys, and a batch of such sequences."""
    module = make().train(training)
    for lengths in torch.tensor([M, 0, 4]), torch.zeros(B, dtype=torch.int64):
        query, key = normal(B, N, SIZES[0]), normal(B, M, SIZES[1])
        given = [query, key]
        if isinstance(module, AttentionPooling):
            given = [key]
        elif getattr(module, "num_heads", 1) > 1:
            given.append(normal(B, M, 8))
        found = module(*given, key_lengths=lengths)
        if isinstance(module, PointerHead):
            assert found[lengths == 0].isneginf().all()
            found = found.masked_fill(found.isneginf(), 0.0)
        floating = [x for x in tensors(found) if x.is_floating_point()]
        assert floating and all(x.isfinite().all() for x in floating)
        total = sum(x.square().sum() for x in floating)
        leaves = [*given, *module.parameters()]
        gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        assert all(x.isfinite().all() for x in gradients)


def tensors(found: Any) -> list[Tensor]:
    """Return the tensors of a result, which may have a state of a decoder in it."""
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, DecoderState):
        return tensors((found.cell, found.context))
    return [x for each in found for x in tensors(each)]
