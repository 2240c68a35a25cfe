"""The CUDA kernels of precision="fast": scores as products of sines, (E14) and (E15).

The emulated device has three processors: few tiles of many hidden units are cut into slices.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from helpers.fast import assert_as_good_as_bfloat16
from helpers.inputs import BF16, F16, cumulative, make, normal, transposed
from torch import Tensor

from attnkernels import additive_attention, additive_attention_varlen, additive_scores
from attnkernels.backends import native
from attnkernels.ops.codes import FAST
from attnkernels.ops.series import SERIES, VALUE_ERROR
from attnkernels.testing import assert_within_budget

EMULATED = native.build_info().get("instruction set") == "emulated CUDA"

pytestmark = [
    pytest.mark.parametrize("backend", ["native"]),
    pytest.mark.skipif(not EMULATED, reason="the emulator runs these kernels"),
]

LOGISTIC = {"tanh": 1.0, "sigmoid": 2.0}  # and how much longer its series reach
FAR = SERIES[-1].reach
# (B, n, m, d, dv), with n above that of a decoder step: slices, and tiles
SHAPES = [(1, 50, 70, 256, 20), (2, 70, 140, 64, 33), (1, 5, 1, 33, 1), (3, 66, 65, 7, 5)]
SHAPE = SHAPES[1]


def both(function: Any, *inputs: Tensor, **options: Any) -> tuple[Any, Any]:
    """Return the results of precision "fast" and "exact"."""
    fast, exact = (function(*inputs, precision=x, **options) for x in ("fast", "exact"))
    return fast, exact


def same(fast: Tensor, exact: Tensor) -> bool:
    return torch.equal(fast.nan_to_num(1e9), exact.nan_to_num(1e9))


def close(fast: Tensor, exact: Tensor, weight: Tensor) -> bool:
    """Return True if scores differ, by the error of the sines and of their 16 bits at most."""
    error = (fast - exact).abs().max()
    return bool(0 < error <= 2 * VALUE_ERROR * weight.abs().sum())


def results(function: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return scores, context and gradients of a function of inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    scores, context = function(*leaves)
    towards = torch.linspace(-1, 1, context.numel()).reshape(context.shape).to(context)
    gradients = torch.autograd.grad((context * towards).sum(), leaves)
    return [scores.detach(), context.detach(), *gradients]


@pytest.mark.parametrize("activation", LOGISTIC)
@pytest.mark.parametrize("d", [64, 256, 1024])
def test_errors_are_below_those_of_inputs_in_bfloat16(
    backend: str, d: int, activation: str
) -> None:
    """Gradients of sigmoid come near to them, here and by the plain formula of the same sines."""
    inputs = make((1, 20, 70, d, 8) if d > 256 else (1, 66, 70, d, 8), grad=False)

    def call(by: str, *inputs: Tensor) -> Any:
        query, key, value, weight = inputs
        options: Any = {"activation": activation, "backend": by, "precision": "fast"}
        context = additive_attention(query, key, value, weight, **options)
        return additive_scores(query, key, weight, **options), context

    def formula(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Any:
        f = getattr(torch, activation)
        scores = f(query.unsqueeze(-2) + key.unsqueeze(-3)) @ weight
        return scores, scores.softmax(-1) @ value

    found = results(partial(call, backend), inputs)
    plain = results(partial(call, "reference"), inputs)
    wanted = results(formula, tuple(x.double() for x in inputs))
    rounded = results(formula, tuple(x.to(BF16).double() for x in inputs))
    for x, y, z, exact in zip(found, plain, rounded, wanted, strict=True):
        error = (x - exact).norm()
        assert error < (z - exact).norm() or error < 1.1 * (y - exact).norm()
    for x, z, exact in zip(found[:2], rounded, wanted, strict=False):
        assert (x - exact).norm() < (z - exact).norm()


@pytest.mark.parametrize("activation", LOGISTIC)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(backend: str, shape: Any, activation: str) -> None:
    inputs = make(shape, grad=False)
    query, key, _, weight = inputs
    options: Any = {"activation": activation, "scale": 1.7}
    scores = both(additive_scores, query, key, weight, backend=backend, **options)
    assert close(*scores, 1.7 * weight)
    # a sigmoid feels a rounding half as much as tanh does
    assert_as_good_as_bfloat16(
        additive_attention, list(inputs), backend, LOGISTIC[activation], **options
    )


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_dtypes_and_layouts(backend: str, dtype: torch.dtype) -> None:
    query, key, _, weight = make(SHAPE, grad=False)
    call = {"backend": backend, "precision": "fast"}
    halves = [x.to(dtype) for x in (query, key, weight)]
    whole = additive_scores(*(x.float() for x in halves), **call)
    assert torch.equal(additive_scores(*halves, **call), whole.to(dtype))
    whole = additive_scores(query, key, weight, **call)
    assert torch.equal(
        additive_scores(transposed(query), transposed(key), weight, **call).detach(), whole
    )


@pytest.mark.parametrize("activation", LOGISTIC)
@pytest.mark.parametrize("reach", [each.reach for each in SERIES])
@pytest.mark.parametrize("by", [1 - 1e-6, 1 + 1e-6])
@pytest.mark.parametrize("sign", [1, -1])
def test_seams_of_the_ranges(
    backend: str, reach: float, by: float, sign: int, activation: str
) -> None:
    """A chunk of hidden units takes the series for its own range, on both sides of 0."""
    query, key, _, weight = make((1, 8, 9, 128, 1), size=0.1, grad=False)
    query[0, 3, 5] = key[0, 4, 5] = sign * reach * by * LOGISTIC[activation] / 2
    fast, exact = both(additive_scores, query, key, weight, backend=backend, activation=activation)
    if reach * by > FAR:
        assert torch.equal(fast, exact)
    else:
        assert close(fast, exact, weight)


def test_every_chunk_has_its_series(backend: str) -> None:
    query, key, _, weight = make((1, 20, 30, 200, 1), size=0.3, grad=False)
    alone = both(additive_scores, query, key, weight, backend=backend)
    query[..., 64:128] += 5
    key[..., 64:128] += 5
    fast, exact = both(additive_scores, query, key, weight, backend=backend)
    assert close(*alone, weight) and close(fast, exact, weight)


def test_a_tile_out_of_reach_is_exact_and_others_are_not(backend: str) -> None:
    query, key, _, weight = make((1, 130, 70, 40, 1), grad=False)
    query[0, 64:128] *= 9
    fast, exact = both(additive_scores, query, key, weight, backend=backend)
    assert torch.equal(fast[0, 64:128], exact[0, 64:128])
    assert close(fast[0, :64], exact[0, :64], weight) and (fast[0, 128:] != exact[0, 128:]).any()


def test_large_inputs_that_cancel(backend: str) -> None:
    query, key, _, weight = make(SHAPE, grad=False)
    for size in (30.0, 60.0):  # whose exponentials float32 holds, and does not
        fast, exact = both(additive_scores, query + size, key - size, weight, backend=backend)
        assert torch.equal(fast, exact) if size > 43 else close(fast, exact, weight)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", ["query", "key", "weight"])
def test_numbers_that_are_not_finite(backend: str, side: str, bad: float) -> None:
    query, key, value, weight = make(SHAPE, grad=False)
    {"query": query, "key": key, "weight": weight[None, None]}[side][0, 0, 9] = bad
    assert same(*both(additive_scores, query, key, weight, backend=backend)) == (side == "weight")
    for fast, exact in (
        both(additive_scores, query, key, weight, backend=backend),
        both(additive_attention, query, key, value, weight, backend=backend),
    ):
        assert torch.equal(fast.isnan(), exact.isnan()) and torch.equal(fast.isinf(), exact.isinf())


def test_weights_of_any_size(backend: str) -> None:
    query, key, _, weight = make(SHAPE, grad=False)
    for size in (1e-30, 1e30):
        fast, exact = both(additive_scores, query, key, weight * size, backend=backend)
        assert close(fast / size, exact / size, weight)
    assert not both(additive_scores, query, key, weight * 0, backend=backend)[0].any()


@pytest.mark.parametrize(
    "options",
    [
        {"dropout_p": 0.3},
        {"is_causal": True},
        {"window_size": (9, 4)},
        {"key_lengths": torch.tensor([0, 70])},
        {"attn_mask": "bool"},
        {"attn_mask": "float", "dropout_p": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("d", [40, 256])
def test_masks_and_dropout_are_those_of_exact_calls(
    backend: str, d: int, options: dict[str, Any]
) -> None:
    given = dict(options)
    query, key, value, weight = make((2, 70, 70, d, 20), grad=False)
    mask = torch.rand(70, 70) < 0.7
    mask[3] = False
    if given.get("attn_mask") == "bool":
        given["attn_mask"] = mask
    elif given.get("attn_mask") == "float":
        given["attn_mask"] = torch.where(mask, torch.randn(70, 70), -torch.inf)

    def call(*inputs: Tensor, **more: Any) -> Any:
        mask = given.get("attn_mask")
        if mask is not None and mask.is_floating_point():
            more["attn_mask"] = mask.to(inputs[0].dtype)
        return additive_attention(*inputs, return_weights=True, **(given | more))

    found = []
    for precision in ("fast", "exact"):
        torch.manual_seed(5)
        found.append(call(query, key, value, weight, backend=backend, precision=precision)[1])
    weights, exact_weights = found
    assert torch.equal(weights == 0, exact_weights == 0)
    assert (weights != exact_weights).any() or given.get("key_lengths") is not None
    assert_as_good_as_bfloat16(call, [query, key, value, weight], backend)


def test_what_is_masked_may_be_nan(backend: str) -> None:
    query, key, value, weight = make((1, 50, 100, 40, 20), grad=False)
    key[:, 60:] = value[:, 60:] = torch.nan
    lengths = torch.tensor([60])
    options = {"key_lengths": lengths, "backend": backend, "precision": "fast"}
    context = additive_attention(query, key, value, weight, **options)
    cut = additive_attention(
        query, key[:, :60], value[:, :60], weight, backend=backend, precision="fast"
    )
    assert_within_budget(context, cut, cut.double())


def test_broadcasts(backend: str) -> None:
    query, key = normal(3, 1, 6, 40, grad=False), normal(2, 9, 40, grad=False)
    weight = normal(3, 1, 40, grad=False)
    fast = additive_scores(query, key, weight, backend=backend, precision="fast")
    for a in range(3):
        for b in range(2):
            alone = additive_scores(
                query[a, 0], key[b], weight[a, 0], backend=backend, precision="fast"
            )
            assert torch.equal(fast[a, b], alone)


def test_packed_sequences(backend: str) -> None:
    query, key, value, weight = make((1, 70, 150, 40, 12), grad=False)
    ends = cumulative([5, 0, 65]), cumulative([80, 3, 67])
    inputs = [query[0], key[0], value[0], weight]

    def call(*inputs: Tensor, **options: Any) -> Any:
        return additive_attention_varlen(*inputs, *ends, **options)

    fast, exact = both(call, *inputs, backend=backend)
    assert (fast != exact).any()
    assert_as_good_as_bfloat16(call, inputs, backend)


def gradients(inputs: tuple[Tensor, ...], through: Any = None, **options: Any) -> Any:
    """Return the gradients of a call, of those inputs that have one."""
    context = additive_attention(*inputs, **options)
    wanted = [x for x in inputs if x.requires_grad]
    return torch.autograd.grad(
        context.square().sum() if through is None else context, wanted, through
    )


def near(found: Tensor, exact: Tensor) -> bool:
    return bool(0 < (found - exact).norm() <= 0.01 * exact.norm())


@pytest.mark.parametrize("activation", LOGISTIC)
@pytest.mark.parametrize("shape", [(2, 70, 140, 64, 33), (3, 66, 65, 7, 5), (1, 130, 90, 131, 4)])
def test_gradients(backend: str, shape: Any, activation: str) -> None:
    inputs = make(shape)
    query, key, _, weight = inputs
    options = {"backend": backend, "activation": activation, "scale": 0.7}
    for fast, exact in zip(*both(partial(gradients, inputs), **options), strict=True):
        assert near(fast, exact)
    towards = torch.randn(shape[0], shape[1], shape[2])
    scores = both(additive_scores, query, key, weight, **options)
    found = (torch.autograd.grad(s, (query, key, weight), towards) for s in scores)
    for fast, exact in zip(*found, strict=True):
        assert near(fast, exact)


def test_one_gradient_at_a_time(backend: str) -> None:
    options: Any = {"backend": backend, "precision": "fast"}
    inputs = make(SHAPE)
    every = gradients(inputs, **options)
    for k, wanted in enumerate(every):
        alone = tuple(x.detach().requires_grad_(k == i) for i, x in enumerate(inputs))
        assert torch.equal(gradients(alone, **options)[0], wanted)


def test_gradients_of_tiles_within_reach_and_beyond(backend: str) -> None:
    inputs = make((1, 130, 140, 40, 6))
    with torch.no_grad():
        inputs[1][0, 64:128] *= 9
    for fast, exact in zip(*both(partial(gradients, inputs), backend=backend), strict=True):
        assert near(fast, exact)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_gradients_that_are_not_finite(backend: str, bad: float) -> None:
    inputs = make(SHAPE)
    through = torch.ones(2, 70, 33)
    through[1, 3, 4] = bad
    found = both(partial(gradients, inputs, through), backend=backend)
    for fast, exact in zip(*found, strict=True):
        assert torch.equal(fast.isnan(), exact.isnan()) and torch.equal(fast.isinf(), exact.isinf())


def test_small_gradients(backend: str) -> None:
    """16 bits hold them over the largest of their row."""
    inputs, options = make(SHAPE), {"backend": backend, "precision": "fast"}
    through = torch.randn(2, 70, 33)
    for size in (2.0**-66, 2.0**66):
        found, wanted = (gradients(inputs, x, **options) for x in (through * size, through))
        for x, y in zip(found, wanted, strict=True):
            assert torch.equal(x / size, y)


def test_a_unit_of_zeros_adds_nothing_to_its_weight(backend: str) -> None:
    inputs = make(SHAPE)
    with torch.no_grad():
        inputs[0][..., 5] = inputs[1][..., 5] = 0
    assert gradients(inputs, backend=backend, precision="fast")[3][5] == 0


@pytest.mark.parametrize("shape", [(1, 20, 70, 256, 12), (1, 130, 140, 40, 12)], ids=str)
def test_deterministic(backend: str, shape: Any) -> None:
    """The backward is not cut into slices, and the forward is."""
    torch.use_deterministic_algorithms(True)
    try:
        inputs, options = make(shape), {"backend": backend, "precision": "fast"}
        fast, again = (gradients(inputs, **options) for _ in range(2))
        exact = gradients(inputs, backend=backend)
        assert all(map(torch.equal, fast, again)) and all(map(near, fast, exact))
    finally:
        torch.use_deterministic_algorithms(False)


def test_what_has_no_sines_is_exact(backend: str) -> None:
    query, key, value, weight = make((2, 4, 70, 40, 8), grad=False)
    assert torch.equal(*both(additive_attention, query, key, value, weight, backend=backend))
    query = normal(2, 9, 40, grad=False)
    options = {"activation": "relu", "backend": backend}
    assert torch.equal(*both(additive_scores, query, key, weight, **options))


@pytest.mark.parametrize("code", [4, -1, FAST + 2, FAST + 4, 2 * FAST])
def test_unknown_codes_raise(backend: str, code: int) -> None:
    query, key, _, weight = make(SHAPE, grad=False)
    with pytest.raises(RuntimeError, match=f"activation must be one of .*, got {code}"):
        native.ops.scores(query, key, weight, code, 0.2, 1.0)
