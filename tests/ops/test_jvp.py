"""The operators of forward-mode derivatives: results and tangents against float64's formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.inputs import (
    ACTIVATIONS,
    BF16,
    CORNERS,
    EMPTY,
    F16,
    F64,
    MANY,
    POINTWISE,
    batch_last,
    cumulative,
    make,
    normal,
    sliced,
    supports,
    transposed,
)
from torch import Tensor
from torch.func import jvp

from attnkernels.ops import codes, formula
from attnkernels.ops.shapes import accumulate_dtype
from attnkernels.ops.signature import FORWARD_JVP, SCORES_JVP, TANGENT, Options
from attnkernels.testing import assert_within_budget

SHAPE = (2, 9, MANY, 13, 5)
NAMES = ("query", "key", "value", "weight")
INF, NAN = float("inf"), float("nan")
Tensors = dict[str, Tensor]


def named(*inputs: Tensor) -> Tensors:
    return dict(zip(NAMES, inputs, strict=True))


def like(inputs: Tensors) -> Tensors:
    """Return random tangents."""
    return {name: normal(*x.shape, dtype=x.dtype, grad=False) for name, x in inputs.items()}


def run(fused: str, inputs: Tensors, tangents: Tensors, options: Options) -> Tensors:
    """Return the results of the operator by name; inputs without a value give raw scores."""
    name, signature = ("forward", FORWARD_JVP) if "value" in inputs else ("scores", SCORES_JVP)
    given: dict[str, Any] = dict(options._asdict(), **inputs)
    given |= {name + TANGENT: x for name, x in tangents.items()}
    given["activation"] = codes.ACTIVATIONS[options.activation].code
    operator = getattr(torch.ops.attnkernels, f"{fused}_{name}_jvp")
    results = operator(*(given.get(each) for each in signature.names))
    found = dict(zip(signature.results, results, strict=True))
    return {name: x for name, x in found.items() if options.return_weights or "weights" not in name}


def expected(inputs: Tensors, tangents: Tensors, options: Options, dtype: torch.dtype) -> Tensors:
    """Return what the formula gives in the arithmetic of `dtype`."""
    primals = tuple(x.to(dtype).contiguous() for x in inputs.values())  # duals are not expanded
    moves = tuple(
        tangents[name].to(dtype).contiguous() if name in tangents else torch.zeros_like(x)
        for name, x in zip(inputs, primals, strict=True)
    )
    names = ["scores"] if "value" not in inputs else ["context", "lse"]
    names += ["weights"] * (options.return_weights and "value" in inputs)

    def results(*args: Tensor) -> tuple[Tensor, ...]:
        by_name = dict(zip(inputs, args, strict=True))
        masked = options._replace(attn_mask=by_name.pop("attn_mask", options.attn_mask))
        if "value" not in inputs:
            return (formula.scores(**by_name, options=masked),)
        context, weights, lse = formula.attention(**by_name, options=masked)
        return (context, lse) if weights is None else (context, lse, weights)

    outputs = jvp(results, primals, moves)
    every = [name + suffix for suffix in ("", TANGENT) for name in names]
    return dict(zip(every, [x for each in outputs for x in each], strict=True))


def magnitudes(inputs: Tensors, tangents: Tensors, options: Options) -> dict[str, float]:
    """Return bounds of the terms of each result, by the largest entries; see attnkernels.testing.

    The tangents of scores are sums of |w'| |f| + |w| max |f'| (|q'| + |k'|).
    """

    def largest(x: Tensor | None, summed: bool = False) -> float:
        if x is None or not x.numel():
            return 0.0
        x = x.detach().double().abs().nan_to_num(0.0, 0.0, 0.0)
        return (x.sum(-1) if summed else x).max().item()

    f, slope = largest(inputs["query"]) + largest(inputs["key"]), 1.0
    activation = codes.ACTIVATIONS[options.activation]
    if activation.family == "logistic":
        f, slope = 1.0, activation.span * activation.gain / 4
    moved = largest(tangents.get("query")) + largest(tangents.get("key"))
    s = abs(options.scale) * largest(inputs["weight"], True) * f
    ds = abs(options.scale) * largest(tangents.get("weight"), True) * f
    ds += abs(options.scale) * largest(inputs["weight"], True) * slope * moved
    s, ds = s + largest(inputs.get("attn_mask")), ds + largest(tangents.get("attn_mask"))
    kept = 0.0 if options.dropout_p == 1 else 1 / (1 - options.dropout_p)
    u, du = largest(inputs.get("value")), largest(tangents.get("value"))
    found = {"scores": s, "lse": s, "weights": kept * (1 + s), "context": kept * u * (1 + s)}
    found |= {"scores_tangent": ds, "lse_tangent": ds * (1 + s)}
    found["weights_tangent"] = 2 * kept * ds * (1 + s)
    found["context_tangent"] = kept * (2 * ds * u + du) * (1 + s)
    return found


def check(fused: str, inputs: Tensors, tangents: Tensors | None = None, **given: Any) -> Tensors:
    """Assert that all results are within the budget, and return them."""
    options = Options(**given)
    tangents = like(inputs) if tangents is None else tangents
    actual = run(fused, inputs, tangents, options)
    own = accumulate_dtype(inputs["query"].dtype)
    close, exact = (expected(inputs, tangents, options, dtype) for dtype in (own, F64))
    sizes = magnitudes(inputs, tangents, options)
    assert actual.keys() == exact.keys()
    for name, found in actual.items():
        size = sizes[name]
        assert_within_budget(found, close[name], exact[name], magnitude=size, name=name)
    return actual


@pytest.mark.parametrize("shape", [*CORNERS, *EMPTY])
def test_shapes(fused: str, shape: tuple[int, ...]) -> None:
    check(fused, named(*make(shape, grad=False)), return_weights=True)


@pytest.mark.parametrize("dtype", [F64, BF16, F16])
def test_dtypes(fused: str, dtype: torch.dtype) -> None:
    check(fused, named(*make(SHAPE, dtype, grad=False)), return_weights=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(fused: str, activation: str) -> None:
    inputs = named(*make(SHAPE, grad=False))
    check(fused, inputs, activation=activation, scale=0.7, negative_slope=0.3, return_weights=True)


@pytest.mark.parametrize("names", [(name,) for name in NAMES] + [(), ("query", "value")], ids=str)
def test_tangents_that_are_not_given_are_zero(fused: str, names: tuple[str, ...]) -> None:
    inputs = named(*make(SHAPE, grad=False))
    tangents = like(inputs)
    check(fused, inputs, {name: tangents[name] for name in names}, return_weights=True)


def float_mask(*shape: int) -> Tensor:
    mask = normal(*shape, grad=False)
    return mask.masked_fill_(torch.rand(shape) < 0.3, -INF)


OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "causal": lambda: {"window_right": 0},
    "a window": lambda: {"window_left": 5, "window_right": 30},
    "lengths": lambda: {"key_lengths": torch.tensor([0, MANY - 5])},
    "bool mask": lambda: {"attn_mask": torch.rand(1, 9, MANY) < 0.3},
    "dropout": lambda: {"seed": torch.tensor(5), "dropout_p": 0.4},
    "all dropped": lambda: {"seed": torch.tensor(5), "dropout_p": 1.0},
    "everything": lambda: {
        "window_right": 0,
        "key_lengths": torch.tensor([MANY, 4]),
        "attn_mask": torch.rand(9, MANY) < 0.6,
        "seed": torch.tensor(1 << 40),
        "dropout_p": 0.2,
    },
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options(fused: str, options: str) -> None:
    inputs = named(*make(SHAPE, grad=False))
    check(fused, inputs, return_weights=True, **OPTIONS[options]())


@pytest.mark.parametrize("alone", [False, True], ids=["with all", "alone"])
@pytest.mark.parametrize("shape", [(2, 9, MANY), (9, 1), (MANY,), (3, 1, 1, MANY)], ids=str)
def test_float_masks(fused: str, shape: tuple[int, ...], alone: bool) -> None:
    """The tangent of an excluded pair does not count, whatever it is."""
    inputs = named(*make(SHAPE, grad=False)) | {"attn_mask": float_mask(*shape)}
    tangents = like(inputs)
    tangents = {"attn_mask": tangents["attn_mask"]} if alone else tangents
    tangents["attn_mask"][inputs["attn_mask"] == -INF] = NAN
    clean = tangents | {"attn_mask": tangents["attn_mask"].nan_to_num()}
    found = run(fused, inputs, tangents, Options(attn_mask=inputs["attn_mask"]))
    wanted = check(fused, inputs, clean, attn_mask=inputs["attn_mask"])
    assert all(torch.equal(found[name], x) for name, x in wanted.items())


def test_leading_dimensions_and_strides(fused: str) -> None:
    """Tangents have strides of their own, and may be expanded."""
    m, d = MANY, 13
    inputs = named(
        sliced(normal(2, 1, 9, d, grad=False)).expand(2, 3, 9, d),
        transposed(normal(3, m, d, grad=False)),
        batch_last(normal(2, 1, m, 5, grad=False)),
        normal(3, 2 * d, size=0.2, grad=False)[:, ::2],
    )
    tangents = {
        "query": batch_last(normal(2, 3, 9, d, grad=False)),
        "key": normal(m, 1, grad=False).expand(3, m, d),
        "value": transposed(normal(2, 1, m, 5, grad=False)),
        "weight": normal(1, d, grad=False).expand(3, d),
    }
    check(fused, inputs, tangents, return_weights=True)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("left, right", [(None, None), (None, 0), (2, 5)])
def test_packed_sequences(
    fused: str, left: int | None, right: int | None, dropout_p: float
) -> None:
    rows, columns = [9, 0, 1, 25], [MANY, 5, 0, 3]
    shapes = ((2, sum(rows), 13), (sum(columns), 13), (2, sum(columns), 5), (13,))
    inputs = named(*(normal(*shape, grad=False) for shape in shapes))
    ends = {"cu_seqlens_q": cumulative(rows), "cu_seqlens_k": cumulative(columns)}
    seed = torch.tensor(3) if dropout_p else None
    options = {"window_left": left, "window_right": right, "dropout_p": dropout_p}
    check(fused, inputs, seed=seed, **options, **ends)


SEAMS = [0.0, 1e-8, 9.0, 11.0, 22.0, 43.0, 44.0, 60.0, 87.0, 1e4]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_ranges(fused: str, activation: str) -> None:
    """Every sum q + k from tiny to huge, of both signs, and for a logistic activation infinity."""
    sizes = torch.tensor([*SEAMS, *([] if activation in POINTWISE else [INF])])
    sizes = torch.cat([sizes, -sizes])
    inputs = named(*make((1, len(sizes), len(sizes), 5, 3), size=0.1, grad=False))
    inputs["query"][0, :, 1] = sizes
    inputs["key"][0, :, 2] = sizes
    inputs["key"][0, ::2, 1] = -sizes[::2].clamp(-1e4, 1e4)
    check(fused, inputs, activation=activation, return_weights=True)


def test_nan_stays_in_its_rows(fused: str) -> None:
    inputs = named(*make(SHAPE, grad=False))
    tangents = like(inputs)
    clean = run(fused, inputs, tangents, Options(return_weights=True))
    tangents["query"][0, 3, 2] = NAN
    found = run(fused, inputs, tangents, Options(return_weights=True))
    for name, x in found.items():
        rows = torch.zeros_like(x, dtype=torch.bool)
        rows[0, 3] = name.endswith(TANGENT)
        assert x[rows].isnan().all() and torch.equal(x[~rows], clean[name][~rows]), name


@pytest.mark.parametrize("of", ["inputs", "tangents"])
def test_nan_of_excluded_keys_does_not_leak(fused: str, of: str) -> None:
    inputs = named(*make(SHAPE, grad=False))
    tangents = like(inputs)
    lengths = torch.tensor([4, MANY - 1])
    for each in (inputs, tangents):
        each["key"][0, 4:] = each["key"][1, -1] = 0
        each["value"][0, 4:] = each["value"][1, -1] = 0
    wanted = run(fused, inputs, tangents, Options(key_lengths=lengths, return_weights=True))
    dirty = inputs if of == "inputs" else tangents
    dirty["key"][0, 4:] = dirty["key"][1, -1] = NAN
    dirty["value"][0, 4:] = dirty["value"][1, -1] = NAN
    found = run(fused, inputs, tangents, Options(key_lengths=lengths, return_weights=True))
    assert all(torch.equal(found[name], x) for name, x in wanted.items())


def test_a_row_with_one_key_does_not_move(fused: str) -> None:
    """Only the value's tangent reaches the context, and only the score's reaches lse."""
    inputs = named(*make((2, 9, 1, 33, 5), grad=False))
    tangents = like(inputs)
    du = tangents.pop("value")
    found = run(fused, inputs, tangents, Options(return_weights=True))
    assert (found["context_tangent"] == 0).all() and (found["weights_tangent"] == 0).all()
    scores = {name: x for name, x in inputs.items() if name != "value"}
    moved = run(fused, scores, tangents, Options())["scores_tangent"]
    torch.testing.assert_close(found["lse_tangent"], moved.squeeze(-1))
    found = run(fused, inputs, tangents | {"value": du}, Options())
    torch.testing.assert_close(found["context_tangent"], du.expand(2, 9, 5))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_scores(fused: str, activation: str) -> None:
    query, key, _, weight = make(SHAPE, grad=False)
    inputs = {"query": query[:, None], "key": key, "weight": weight.expand(2, 1, 13)}
    check(fused, inputs, activation=activation, scale=-0.7)


@pytest.mark.parametrize("names", [("query",), ("key",), ("weight",), ()], ids=str)
def test_scores_without_some_tangents(fused: str, names: tuple[str, ...]) -> None:
    query, key, _, weight = make((2, 3, 70, 9, 1), BF16, grad=False)
    inputs = {"query": query, "key": key, "weight": weight}
    tangents = like(inputs)
    check(fused, inputs, {name: tangents[name] for name in names})


@pytest.mark.parametrize("operator", ["forward", "scores"])
def test_a_tangent_of_another_shape_or_dtype_is_refused(fused: str, operator: str) -> None:
    inputs = named(*make((1, 2, 3, 4, 5), grad=False))
    if operator == "scores":
        del inputs["value"]
    for wrong in (normal(2, 4, grad=False), normal(1, 2, 4, dtype=F16, grad=False)):
        with pytest.raises((RuntimeError, ValueError), match="query_tangent must have the shape"):
            run(fused, inputs, {"query": wrong}, Options())


def test_float64_is_as_exact(fused: str) -> None:
    if not supports(fused, F64):
        pytest.skip("no float64")
    inputs = named(*make((1, 5, 70, 9, 3), F64, grad=False))
    check(fused, inputs, return_weights=True, attn_mask=torch.rand(5, 70) < 0.5)
