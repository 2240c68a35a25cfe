"""Small problems of many hidden units, which CUDA kernels cut into slices of these.

The emulated device has three processors: one or two tiles of 64 x 64 are fewer.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.inputs import ACTIVATIONS, BF16, BUT_TANH, F16, F32, make, normal, transposed
from torch import Tensor

from attnkernels import additive_attention, additive_scores
from attnkernels.backends import native
from attnkernels.testing import check_attention, check_scores

EMULATED = native.build_info().get("instruction set") == "emulated CUDA"

pytestmark = [
    pytest.mark.parametrize("backend", ["native"]),
    pytest.mark.skipif(not EMULATED, reason="the emulator runs these kernels"),
]

# (B, n, m, d, dv), with n above that of a decoder step
SHAPES = [
    (1, 50, 50, 256, 70),
    (2, 9, 64, 260, 33),
    (1, 64, 128, 300, 8),
    (1, 65, 7, 257, 129),
    (1, 5, 1, 256, 1),
]
EVERYTHING: dict[str, Any] = {"return_weights": True, "return_lse": True, "scale": 0.7}
SHAPE = SHAPES[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_shapes(backend: str, shape: Any, dtype: torch.dtype) -> None:
    check_attention(*make(shape, dtype), backend=backend, **EVERYTHING)
    query, key, _, weight = make(shape, dtype)
    check_scores(query, key, weight, backend=backend, scale=0.7)


@pytest.mark.parametrize("size", [20.0, 60.0, 1e4])
def test_large_inputs(backend: str, size: float) -> None:
    """Exponentials that are bounded, and sums of inputs without any."""
    check_attention(*make(SHAPE, size=size), backend=backend, **EVERYTHING)
    query, key, value, weight = make((1, 20, 20, 256, 4))
    opposite = (query.detach() + size).requires_grad_(), (key.detach() - size).requires_grad_()
    check_attention(*opposite, value, weight, backend=backend, **EVERYTHING)
    check_scores(*opposite, weight, backend=backend)


@pytest.mark.parametrize("activation", BUT_TANH)
def test_activations(backend: str, activation: str) -> None:
    check_attention(*make(SHAPE), backend=backend, activation=activation, **EVERYTHING)
    query, key, _, weight = make(SHAPE)
    check_scores(query, key, weight, backend=backend, activation=activation)


@pytest.mark.parametrize("through", ["context", "weights", "lse"])
def test_one_gradient_at_a_time(backend: str, through: str) -> None:
    check_attention(*make(SHAPE), backend=backend, through=(through,), **EVERYTHING)


@pytest.mark.parametrize("wanted", ["query", "key", "value", "weight"])
def test_one_input_at_a_time(backend: str, wanted: str) -> None:
    inputs = dict(zip(("query", "key", "value", "weight"), make(SHAPE, grad=False), strict=True))
    inputs[wanted].requires_grad_()
    check_attention(**inputs, backend=backend, **EVERYTHING)


def bool_mask(n: int, m: int) -> Tensor:
    mask = torch.rand(n, m) < 0.7
    mask[3] = False
    mask[:, 5] = False
    mask[7] = torch.arange(m) == 2  # a row that sees one key
    return mask


@pytest.mark.parametrize(
    "options",
    [
        {"dropout_p": 0.3},
        {"is_causal": True},
        {"window_size": (9, 4)},
        {"key_lengths": torch.tensor([0])},
        {"key_lengths": torch.tensor([70])},
        {"attn_mask": "bool"},
        {"attn_mask": "float", "dropout_p": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_masks(backend: str, options: dict[str, Any], activation: str) -> None:
    given = dict(options)
    inputs = make((1, 50, 100, 256, 20))
    if given.get("attn_mask") == "bool":
        given["attn_mask"] = bool_mask(50, 100)
    elif given.get("attn_mask") == "float":
        mask = torch.where(bool_mask(50, 100), torch.randn(50, 100), -torch.inf)
        given["attn_mask"] = mask.requires_grad_()
    check_attention(*inputs, backend=backend, activation=activation, **given, **EVERYTHING)


def test_what_is_masked_may_be_nan(backend: str) -> None:
    query, key, value, weight = make((1, 50, 100, 256, 20))
    with torch.no_grad():
        key[:, 60:] = value[:, 60:] = torch.nan
    options = EVERYTHING | {"key_lengths": torch.tensor([60])}
    check_attention(query, key, value, weight, backend=backend, **options)


def test_layouts_and_broadcasts(backend: str) -> None:
    query, key, value, weight = make((2, 20, 30, 256, 12))
    check_attention(*map(transposed, (query, key, value)), weight, backend=backend, **EVERYTHING)
    shared = normal(1, 30, 256)
    check_attention(query, shared, value, weight, backend=backend, **EVERYTHING)


def test_most_of_a_row(backend: str) -> None:
    """Gradients of rows that see one key are exactly 0, and rows that nearly do are within them."""
    query, key, value, weight = make((1, 40, 60, 256, 20))
    see_one = torch.eye(40, 60).bool()
    context = additive_attention(query, key, value, weight, attn_mask=see_one, backend=backend)
    gradients = torch.autograd.grad(context.sum(), (query, key, weight))
    assert all((x == 0).all() for x in gradients)
    mask = torch.where(see_one, 6.0, 0.0).requires_grad_()
    check_attention(query, key, value, weight, backend=backend, attn_mask=mask, **EVERYTHING)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_deterministic(backend: str, activation: str) -> None:
    """The forward is cut into slices, and the backward is not."""
    torch.use_deterministic_algorithms(True)
    try:
        check_attention(*make(SHAPE), backend=backend, activation=activation, **EVERYTHING)
    finally:
        torch.use_deterministic_algorithms(False)


def test_nan(backend: str) -> None:
    query, key, value, weight = make(SHAPE, grad=False)
    query[0, 3, 200] = torch.nan
    found = additive_scores(query, key, weight, backend=backend).isnan()
    assert found[0, 3].all() and found.sum() == 50
    context = additive_attention(query, key, value, weight, backend=backend).isnan()
    assert context[0, 3].all() and context.sum() == 70
