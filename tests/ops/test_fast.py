"""precision="fast": scores by sines, (E14), within the error that is promised.

The promise is relative to the exact result: errors are at most those that rounding all inputs to
bfloat16 causes, measured here in the same call. All else, such as masks and NaN, is as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fast import assert_as_good_as_bfloat16, outcome
from helpers.inputs import BF16, F32, F64, cumulative, make, normal
from torch import Tensor

from attnkernels import additive_attention, additive_attention_varlen, additive_scores
from attnkernels.backends import native
from attnkernels.ops import sines
from attnkernels.ops.series import SERIES, SLOPE_ERROR, VALUE_ERROR
from attnkernels.testing import check_attention, check_scores

EMULATED = native.build_info().get("instruction set") == "emulated CUDA"
NAMES = ("query", "key", "value", "weight")
WIDTHS = (64, 256, 1024)


@pytest.fixture(params=["reference", "triton", "native"], autouse=True)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return a backend that scores by sines, and have it do so for problems of any size."""
    name: str = request.param
    if name == "native" and not EMULATED:
        pytest.skip("the emulator runs these kernels")
    if name == "triton":
        from attnkernels.backends import triton
        from attnkernels.backends.base import Problem

        if sentence := triton.why_not(Problem("cpu", F32)):
            pytest.skip(sentence)
        from attnkernels.backends.triton.host import configs

        monkeypatch.setattr(configs, "SINE_COSTS", dict.fromkeys(configs.SINE_COSTS, 0.0))
    yield name


def inputs(shape: tuple[int, int, int, int, int], dtype: torch.dtype = F64) -> list[Tensor]:
    """Return query, key, value and weight of unit size; the scores are of unit size, too."""
    query, key, value, weight = make(shape, dtype)
    weight = torch.randn_like(weight) / shape[3] ** 0.5
    return [query, key, value, weight.requires_grad_()]


@pytest.mark.parametrize("series", SERIES, ids=lambda each: f"{each.reach:g}")
def test_the_table(series: Any) -> None:
    """The scan bounds the errors: between two points they change by less than the slopes allow."""
    y, h = np.linspace(0, series.reach, 100_001, retstep=True)
    p = series.step * np.arange(1, len(series.sines) + 1)
    c = np.array(series.sines)
    value = np.sin(np.outer(y, p)) @ c + series.linear * y - np.tanh(y)
    slope = np.cos(np.outer(y, p)) @ (c * p) + series.linear - 1 / np.cosh(y) ** 2
    curvature = np.abs(c) @ p**2 + 0.77
    assert np.abs(value).max() + np.abs(slope).max() * h <= VALUE_ERROR
    assert np.abs(slope).max() + curvature * h <= SLOPE_ERROR


@pytest.mark.parametrize("d", WIDTHS)
def test_errors_are_below_those_of_bfloat16(name: str, d: int) -> None:
    tensors = inputs((1, 40, 48, d, 24))
    assert_as_good_as_bfloat16(additive_attention, tensors, name)


@pytest.mark.parametrize("d", WIDTHS)
def test_scores_are_below_those_of_bfloat16(name: str, d: int) -> None:
    query, key, _, weight = inputs((1, 40, 48, d, 1))
    assert_as_good_as_bfloat16(additive_scores, [query, key, weight], name)


def bias() -> Tensor:
    """Return a floating mask with a row that sees nothing."""
    mask = torch.randn(2, 9, 14)
    mask[torch.rand(mask.shape) < 0.3] = -torch.inf
    mask[0, 3] = -torch.inf
    return mask


OPTIONS: dict[str, Any] = {
    "sigmoid": lambda: {"activation": "sigmoid", "scale": 3.0},
    "scale": lambda: {"scale": -1.7},
    "bool": lambda: {"attn_mask": torch.rand(9, 14) < 0.6},
    "floating": lambda: {"attn_mask": bias()},
    "lengths": lambda: {"key_lengths": torch.tensor([0, 11])},
    "causal": lambda: {"is_causal": True},
    "window": lambda: {"window_size": (1, 2)},
    "outputs": lambda: {"return_weights": True, "return_lse": True},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options(name: str, option: str) -> None:
    options = OPTIONS[option]()
    mask = options.get("attn_mask")

    def call(*tensors: Tensor, **more: Any) -> Any:
        if mask is not None and mask.is_floating_point():
            more["attn_mask"] = mask.to(tensors[0].dtype)
        return additive_attention(*tensors, **more)

    # a sigmoid feels a rounding half as much as tanh does
    times = 2.0 if option == "sigmoid" else 1.0
    assert_as_good_as_bfloat16(call, inputs((2, 9, 14, 19, 5)), name, times, **options)


def test_the_gradient_of_a_mask(name: str) -> None:
    mask = torch.randn(2, 9, 14, dtype=F64)

    def call(*tensors: Tensor, **options: Any) -> Tensor:
        *four, attn_mask = tensors
        return additive_attention(*four, attn_mask=attn_mask, **options)

    assert_as_good_as_bfloat16(call, [*inputs((2, 9, 14, 19, 5)), mask], name)


def test_several_tiles_and_sequences(name: str) -> None:
    """More rows than a tile has; sequences that begin anywhere, one of them empty."""
    assert_as_good_as_bfloat16(additive_attention, inputs((1, 133, 150, 18, 3)), name)
    ends_q, ends_k = cumulative([70, 0, 9, 54]), cumulative([40, 3, 91, 16])

    def packed(*tensors: Tensor, **options: Any) -> Any:
        query, key, value = (x.squeeze(0) for x in tensors[:3])
        return additive_attention_varlen(query, key, value, tensors[3], ends_q, ends_k, **options)

    assert_as_good_as_bfloat16(packed, inputs((1, 133, 150, 18, 3)), name)


def test_windows_of_queries(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of few queries at a time fit into the memory that a backward may take."""
    if name == "triton":
        from attnkernels.backends.triton.host import configs

        monkeypatch.setattr(configs, "SCRATCH", 1)
    assert_as_good_as_bfloat16(additive_attention, inputs((2, 270, 5, 18, 3)), name)


def test_leading_dimensions_broadcast(name: str) -> None:
    query, key, value = normal(3, 2, 9, 17), normal(2, 14, 17), normal(3, 1, 14, 4)
    weight = torch.randn(2, 17) / 4
    tensors = [x.detach().double() for x in (query, key, value, weight)]
    assert_as_good_as_bfloat16(additive_attention, tensors, name)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_dropout_drops_the_same_pairs(name: str, dtype: torch.dtype) -> None:
    tensors = [x.detach() for x in inputs((2, 9, 14, 19, 5), dtype)]
    weights = []
    for precision in ("exact", "fast"):
        torch.manual_seed(3)
        options: dict[str, Any] = {"dropout_p": 0.4, "return_weights": True, "backend": name}
        weights.append(additive_attention(*tensors, **options, precision=precision)[1])
    assert weights[0].dtype == dtype and torch.equal(weights[0] == 0, weights[1] == 0)


@pytest.mark.parametrize("reach", [2.0, 8.0, 18.0, 20.0])
@pytest.mark.parametrize("side", [-1e-3, 1e-3])
def test_seams(name: str, reach: float, side: float) -> None:
    """Sums on both sides of where a series ends; beyond the last one, exactly."""
    d = 17
    x = torch.linspace(-reach, reach, 29) * (1 + side)
    query = x.view(-1, 1).expand(-1, d).contiguous()
    key = torch.zeros(3, d)
    weight = torch.ones(d)
    scores = additive_scores(query, key, weight, backend=name, precision="fast")
    error = (scores.double() - d * torch.tanh(x.double()).unsqueeze(-1)).abs().max().item()
    if reach * (1 + side) > SERIES[-1].reach:
        assert error <= 1e-5 * d
    else:
        assert error <= (VALUE_ERROR + 2.0**-10) * d


@pytest.mark.parametrize("shift", [0.0, 40.0, 60.0, 1e4])
def test_what_cancels(name: str, shift: float) -> None:
    """Queries and keys are far apart from 0, and their sums are not."""
    query, key, _, weight = inputs((1, 9, 14, 33, 1))
    query, key = query + shift, key - shift
    exact = additive_scores(query, key, weight, backend="reference")
    single = [x.float() for x in (query, key, weight)]
    found = additive_scores(*single, backend=name, precision="fast")
    size = weight.abs().sum().item()
    assert (found - exact).abs().max() <= size * (VALUE_ERROR + 2.0**-10 + shift * 2.0**-21)


@pytest.mark.parametrize("where", NAMES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_not_a_number(name: str, where: str, value: float) -> None:
    """NaN and infinities come out where they do exactly."""
    tensors = [x.detach().float() for x in inputs((1, 9, 14, 19, 5))]
    tensors[NAMES.index(where)].view(-1)[7] = value
    found = [
        outcome(additive_attention, tensors, F32, backend=name, precision=precision)
        for precision in ("exact", "fast")
    ]
    for exact, fast in zip(*found, strict=True):
        assert torch.equal(exact.isnan(), fast.isnan())
        assert torch.equal(exact.isinf(), fast.isinf())


def test_zeros_stay_zeros(name: str) -> None:
    """A single key has no gradient of its score, a unit of zeros none of its weight."""
    tensors = [x.detach().float() for x in inputs((2, 9, 1, 19, 5))]
    _, *gradients = outcome(additive_attention, tensors, F32, backend=name, precision="fast")
    assert all((gradients[NAMES.index(x)] == 0).all() for x in ("query", "key", "weight"))
    tensors = [x.detach().float() for x in inputs((2, 9, 14, 19, 5))]
    for x in tensors[:2]:
        x[..., 4] = 0
    _, *gradients = outcome(additive_attention, tensors, F32, backend=name, precision="fast")
    assert gradients[3][4] == 0 and (gradients[3] != 0).sum() == 18


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_other_activations_stay_exact(name: str, activation: str) -> None:
    query, key, value, weight = make((2, 9, 14, 19, 5))

    def fast(*args: Any, **options: Any) -> Any:
        return additive_attention(*args, **(options | {"backend": name}), precision="fast")

    check_attention(query, key, value, weight, backend=fast, activation=activation)


def test_beyond_the_table_is_exact(name: str) -> None:
    query, key, _, weight = make((1, 9, 14, 19, 1))
    with torch.no_grad():
        query[0, 3] = 50.0

    def fast(*args: Any, **options: Any) -> Any:
        return additive_scores(*args, **(options | {"backend": name}), precision="fast")

    check_scores(query, key, weight, backend=fast)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["trace", "export", "vmap"])
def test_a_trace_is_not_bound_to_a_series(name: str, how: str) -> None:
    """Other inputs may be larger than those that were traced."""
    if name != "reference":
        pytest.skip("the kernels choose on the device")

    class Scores(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, weight: Tensor) -> Tensor:
            return additive_scores(query, key, weight, precision="fast", backend="reference")

    query, key, weight = torch.randn(2, 4, 8), torch.randn(2, 5, 8), torch.randn(8)
    small = query / 9, key / 9, weight
    if how == "trace":
        traced = torch.jit.trace(Scores(), small, check_trace=False)
    elif how == "export":
        traced = torch.export.export(Scores(), small).module()
    else:
        traced = torch.vmap(Scores(), in_dims=(0, 0, None))
    for times in (1, 9):
        given = query * times, key * times, weight
        check_scores(*given, backend=lambda *args, **_: traced(*args))


def test_which_units_the_reference_takes_by_sines(name: str) -> None:
    """Those whose sums are in the table; the others are left to the formula, all at once."""
    if name != "reference":
        pytest.skip("the kernels choose on the device")
    left: list[int] = []

    def exact(q: Tensor, k: Tensor, w: Tensor) -> Tensor:
        left.append(w.shape[-1])
        return torch.tanh(q.unsqueeze(-2) + k.unsqueeze(-3)) @ w

    def found(q: Tensor, k: Tensor, w: Tensor) -> int | None:
        left.clear()
        scores = sines.scores(q, k, w, "tanh", exact)
        if scores is None:
            return None
        assert (scores - exact(q, k, w)).abs().max() <= 3 * VALUE_ERROR * w.abs().sum()
        return sum(left[:-1])

    q, k, w = torch.randn(4, 8), torch.randn(5, 8), torch.randn(8)
    far, nan, weighty = torch.zeros(8), torch.zeros(8), torch.ones(8)
    far[:3], nan[2], weighty[:] = 60, torch.nan, torch.inf
    assert found(q, k, w) == 0
    assert found(q + far, k, w) == 3
    assert found(q + far, k - far, w) == 3  # sums are small, and the angles are not
    assert sines.scores(q + nan, k, w, "tanh", exact) is not None and left[-1] == 1
    assert sines.scores(q, k, w * weighty, "tanh", exact) is None
    assert sines.scores(q[:0], k, w, "tanh", exact) is None
    assert sines.scores(q, k, w, "relu", exact) is None
    for place, each in enumerate(SERIES):
        assert sines.chosen(each.reach) is each
        assert sines.chosen(each.reach + 1e-3) is (SERIES[place + 1 :] or [None])[0]
