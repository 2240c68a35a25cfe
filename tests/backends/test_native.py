"""A compact battery over every fused kernel, option, dtype and direction.

It is small enough to run once per instruction set (test_isa.py) and under the sanitizers; the other
files go deeper. Each shape exercises one path: rows, panels, their tails, several tiles.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.inputs import (
    ACTIVATIONS,
    BF16,
    F16,
    F32,
    F64,
    Shape,
    batch_last,
    cumulative,
    make,
    normal,
    sliced,
    transposed,
)
from torch import Tensor

from attnkernels import additive_attention, additive_scores, prepare_keys
from attnkernels.testing import check_attention, check_scores, check_varlen

DTYPES = [F32, BF16, F16, F64]

SHAPES: dict[str, Shape] = {
    "one": (1, 1, 1, 1, 1),
    "a step": (3, 1, 70, 37, 5),
    "a step, split over keys": (1, 1, 900, 16, 16),
    "a step, long values": (2, 1, 70, 19, 203),
    "two queries": (2, 2, 33, 65, 17),
    "tails everywhere": (2, 7, 45, 19, 3),
    "whole vectors": (1, 8, 64, 32, 32),
    "few queries": (2, 5, 71, 70, 18),
    "a short rest of keys": (1, 18, 50, 36, 40),
    "past the tiles": (1, 261, 133, 5, 2),
    "deep": (1, 3, 5, 1027, 1),
    "no values": (2, 3, 4, 5, 0),
    "no keys": (2, 3, 0, 5, 4),
    "no queries": (2, 0, 3, 5, 4),
}
# added to q and subtracted from k, this makes a tile factored, bounded, direct
RANGES: dict[str, tuple[float, float]] = {
    "factored": (0.0, 0.0),
    "bounded": (15.0, 0.0),
    "too large for a pair": (30.0, 0.0),
    "negative": (-30.0, 0.0),
    "direct": (60.0, 0.0),
    "opposed": (60.0, -60.0),
    "opposed the other way": (-1e4, 1e4),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(fused: str, shape: Shape) -> None:
    check_attention(*make(shape), backend=fused)
    query, key, _, weight = make(shape)
    check_scores(query, key, weight, backend=fused)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dtypes_and_activations(fused: str, activation: str, dtype: torch.dtype) -> None:
    for name in ("a step", "tails everywhere"):
        query, key, value, weight = make(SHAPES[name], dtype)
        check_attention(query, key, value, weight, activation=activation, backend=fused)
        check_scores(query, key, weight, activation=activation, backend=fused)


@pytest.mark.parametrize("offsets", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_ranges(fused: str, dtype: torch.dtype, offsets: tuple[float, float]) -> None:
    stretch = 8.0 if dtype == F64 else 1.0  # float64 overflows eight times later
    for activation in ("tanh", "sigmoid"):
        for name in ("a step", "tails everywhere"):
            query, key, value, weight = make(SHAPES[name], dtype)
            with torch.no_grad():
                query += stretch * offsets[0]
                key += stretch * offsets[1]
            check_attention(query, key, value, weight, activation=activation, backend=fused)


KEEP = torch.rand(2, 7, 45, generator=torch.Generator().manual_seed(1)) < 0.5
OPTIONS: dict[str, dict[str, Any]] = {
    "bool mask": {"attn_mask": KEEP},
    "bool mask, broadcast": {"attn_mask": KEEP[:, :, :1]},
    "causal": {"is_causal": True},
    "lengths": {"key_lengths": torch.tensor([0, 44])},
    "all": {"attn_mask": KEEP[:1], "key_lengths": torch.tensor([45, 7]), "is_causal": True},
    "scale": {"scale": -2.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(fused: str, options: dict[str, Any]) -> None:
    inputs = make(SHAPES["tails everywhere"])
    check_attention(*inputs, **options, backend=fused)
    check_attention(*inputs, **options, return_weights=True, return_lse=True, backend=fused)
    check_attention(*make(SHAPES["tails everywhere"], BF16), **options, backend=fused)


@pytest.mark.parametrize("form", [(2, 7, 45), (7, 45), (2, 1, 45), (7, 1), (45,), ()], ids=str)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_float_masks(fused: str, dtype: torch.dtype, form: tuple[int, ...]) -> None:
    mask = normal(*form, dtype=dtype)
    with torch.no_grad():
        mask.masked_fill_(torch.rand(form) < 0.3, float("-inf"))
    check_attention(
        *make(SHAPES["tails everywhere"], dtype), attn_mask=mask, return_lse=True, backend=fused
    )


@pytest.mark.parametrize("name", ["a step, split over keys", "tails everywhere", "past the tiles"])
@pytest.mark.parametrize("dtype", [F32, BF16, F64])
def test_dropout(fused: str, dtype: torch.dtype, name: str) -> None:
    """The mask is the reference's, forward and backward, so differences are due to rounding."""
    options = {"dropout_p": 0.4, "return_lse": True, "backend": fused}
    check_attention(*make(SHAPES[name], dtype), **options)
    check_attention(*make(SHAPES[name], dtype), return_weights=True, **options)


@pytest.mark.parametrize("output", ["context", "weights", "lse"])
def test_gradients_through_one_output(fused: str, output: str) -> None:
    for name in ("a step", "tails everywhere"):
        check_attention(
            *make(SHAPES[name]),
            return_weights=True,
            return_lse=True,
            through=(output,),
            backend=fused,
        )


@pytest.mark.parametrize("wanted", range(4))
def test_one_gradient_alone(fused: str, wanted: int) -> None:
    inputs = make(SHAPES["tails everywhere"], grad=False)
    inputs[wanted].requires_grad_()
    check_attention(*inputs, backend=fused)


@pytest.mark.parametrize("layout", [transposed, sliced, batch_last])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_layouts(fused: str, dtype: torch.dtype, layout: Any) -> None:
    query, key, value, weight = make(SHAPES["tails everywhere"], dtype)
    check_attention(layout(query), layout(key), layout(value), weight, backend=fused)


def test_broadcast_leads(fused: str) -> None:
    def attend(*leads: tuple[int, ...]) -> None:
        q, k, v, w = leads
        check_attention(
            normal(*q, 5, 18), normal(*k, 37, 18), normal(*v, 37, 6), normal(*w, 18), backend=fused
        )

    attend((2, 1), (1, 3), (), (3,))
    attend((), (), (2,), ())
    attend((), (), (), (4,))


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"activation": "relu"}, {"dropout_p": 0.4}], ids=str
)
def test_varlen(fused: str, options: dict[str, Any]) -> None:
    for dtype in (F32, BF16, F64):
        inputs = (
            normal(2, 9, 19, dtype=dtype),
            normal(52, 19, dtype=dtype),
            normal(2, 52, 7, dtype=dtype),
            normal(19, dtype=dtype, size=0.3),
        )
        ends = cumulative([1, 0, 5, 3]), cumulative([40, 3, 0, 9])
        check_varlen(*inputs, *ends, return_lse=True, backend=fused, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_prepared_keys(fused: str, dtype: torch.dtype) -> None:
    """Prepared keys give the results of a plain call, inside and outside the range of exp."""

    def call(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, **options: Any) -> Tensor:
        return prepare_keys(key, value, weight, backend=fused, **options).attend(query)

    for shift in (0.0, 60.0):
        for activation in ACTIVATIONS:
            query, key, value, weight = make((3, 1, 70, 37, 5), dtype)
            with torch.no_grad():
                query -= shift
                key += shift
            lengths = torch.tensor([70, 0, 33])
            check_attention(
                query,
                key,
                value,
                weight,
                activation=activation,
                key_lengths=lengths,
                backend=call,
            )


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
def test_equal_keys_have_equal_scores(fused: str, activation: str, n: int) -> None:
    """For any number of keys: rounding of large scores must not tell equal keys apart."""
    query, key = (normal(rows, 65, size=1e4, grad=False) for rows in (n, 1))
    weight = normal(65, grad=False)
    for m in range(1, 36):
        keys = key.expand(m, 65)
        scores = additive_scores(query, keys, weight, activation=activation, backend=fused)
        assert (scores == scores[:, :1]).all()


@pytest.mark.parametrize("shift", [0.0, 20.0, 50.0])
@pytest.mark.parametrize(
    "n, m, d", [(1, 3, 8), (1, 16, 33), (2, 13, 65), (2, 7, 200), (3, 7, 33), (9, 16, 8)]
)
def test_backward_has_the_weights_of_the_forward(
    fused: str, n: int, m: int, d: int, shift: float
) -> None:
    """To the last bit, in the context of unit vectors and in their gradient."""
    for seed in range(5):
        torch.manual_seed(seed)
        query, key = normal(2, n, d, grad=False), normal(2, m, d, grad=False)
        key[0, 0] -= shift
        key[1, -1] += shift
        value = torch.eye(m).expand(2, m, m).contiguous().requires_grad_()
        weight = normal(d, grad=False)
        context = additive_attention(query, key, value, weight, backend=fused)
        for i in range(n):
            (grad,) = torch.autograd.grad(
                context[:, i].sum(-1), value, torch.ones(2), retain_graph=True
            )
            assert torch.equal(grad[..., 0], context[:, i].detach())


def test_padding_holds_anything(fused: str) -> None:
    def call(filler: float) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        inputs = make((2, 7, 45, 19, 3))
        with torch.no_grad():
            for x in inputs[1:3]:
                x[0, 33:], x[1] = filler, filler
        context = additive_attention(*inputs, key_lengths=torch.tensor([33, 0]), backend=fused)
        return context, *torch.autograd.grad(context.sum(), inputs)

    for clean, dirty in zip(call(0.0), call(float("nan")), strict=True):
        assert torch.equal(clean, dirty)
