"""Forward-mode derivatives: those of float64's formula, or one sentence, and never zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.inputs import ACTIVATIONS, F64, cumulative, make, normal, supports
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils._pytree import tree_leaves

from attnkernels import (
    additive_attention,
    additive_attention_varlen,
    additive_scores,
    prepare_keys,
)
from attnkernels.testing import assert_within_budget

pytestmark = pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # linearize

SHAPE = (2, 3, 4, 5, 2)
Call = Callable[..., Any]
Tensors = tuple[Tensor, ...]


def scores(backend: str) -> tuple[Call, Tensors]:
    query, key, _, weight = make(SHAPE, grad=False)
    return lambda *x: additive_scores(*x, scale=0.7, backend=backend), (query, key, weight)


def attention(**options: Any) -> Callable[[str], tuple[Call, Tensors]]:
    def case(backend: str) -> tuple[Call, Tensors]:
        def call(*inputs: Tensor) -> Any:
            torch.manual_seed(7)
            return additive_attention(*inputs, backend=backend, **options)

        return call, make(SHAPE, grad=False)

    return case


def masked(*shape: int) -> Callable[[str], tuple[Call, Tensors]]:
    def case(backend: str) -> tuple[Call, Tensors]:
        def call(*inputs: Tensor) -> Any:
            *inputs, mask = inputs
            return additive_attention(
                *inputs, attn_mask=mask, return_weights=True, return_lse=True, backend=backend
            )

        return call, (*make(SHAPE, grad=False), normal(*shape, grad=False))

    return case


def varlen(**options: Any) -> Callable[[str], tuple[Call, Tensors]]:
    def case(backend: str) -> tuple[Call, Tensors]:
        ends = cumulative([2, 0, 1]), cumulative([3, 1, 0])

        def call(*inputs: Tensor) -> Any:
            torch.manual_seed(7)
            return additive_attention_varlen(
                *inputs, *ends, return_lse=True, backend=backend, **options
            )

        return call, make(SHAPE, grad=False)

    return case


def prepared(backend: str) -> tuple[Call, Tensors]:
    def call(query: Tensor, *inputs: Tensor) -> Any:
        memory = prepare_keys(*inputs, key_lengths=torch.tensor([4, 2]), backend=backend)
        memory = memory.index_select(0, torch.tensor([1, 1]))
        return memory.attend(query, return_weights=True)

    return call, make(SHAPE, grad=False)


CASES: dict[str, Callable[[str], tuple[Call, Tensors]]] = {
    "scores": scores,
    "context": attention(),
    "all results": attention(return_weights=True, return_lse=True),
    "causal": attention(is_causal=True),
    "a window": attention(window_size=(1, 0), return_lse=True),
    "lengths": attention(key_lengths=torch.tensor([0, 3]), return_lse=True),
    "a bool mask": attention(attn_mask=torch.tensor([[True, False] * 2, [False] * 4, [True] * 4])),
    "dropout": attention(dropout_p=0.4, return_weights=True),
    "a float mask": masked(2, 3, 4),
    "a broadcast mask": masked(1, 4),
    "varlen": varlen(),
    "causal varlen": varlen(is_causal=True, dropout_p=0.3),
    "prepared": prepared,
} | {name: attention(activation=name) for name in ACTIVATIONS}


def by_jvp(call: Call, inputs: Tensors, tangents: Tensors) -> Any:
    return jvp(call, inputs, tangents)[1]


def by_linearize(call: Call, inputs: Tensors, tangents: Tensors) -> Any:
    linear = linearize(call, *inputs)[1]
    linear(*tangents)
    return linear(*tangents)  # calls may not change what they share


def by_jacfwd(call: Call, inputs: Tensors, tangents: Tensors) -> Any:
    """Multiply the Jacobians with the tangents."""
    outputs = jacfwd(call, tuple(range(len(inputs))), randomness="same")(*inputs)
    outputs = outputs if isinstance(outputs[0], tuple) else (outputs,)
    return [
        sum(torch.tensordot(j, t, t.dim()) for j, t in zip(blocks, tangents, strict=True))
        for blocks in outputs
    ]


def by_vmap(call: Call, inputs: Tensors, tangents: Tensors) -> Any:
    """Map over examples of tangents, which share the inputs."""
    stacked = tuple(torch.stack([2 * t, t]) for t in tangents)
    mapped = vmap(lambda *t: jvp(call, inputs, t)[1], randomness="same")(*stacked)
    return [x[1] for x in tree_leaves(mapped)]


def by_vmap_of_both(call: Call, inputs: Tensors, tangents: Tensors) -> Any:
    twice = tuple(torch.stack([x, x]) for x in inputs)
    stacked = tuple(torch.stack([2 * t, t]) for t in tangents)
    mapped = vmap(lambda x, t: jvp(call, x, t)[1], randomness="same")(twice, stacked)
    return [x[1] for x in tree_leaves(mapped)]


def by_duals(requires_grad: bool, grad_mode: bool) -> Call:
    def way(call: Call, inputs: Tensors, tangents: Tensors) -> Any:
        inputs = tuple(x.clone().requires_grad_(requires_grad) for x in inputs)
        with forward_ad.dual_level(), torch.set_grad_enabled(grad_mode):
            outputs = call(*map(forward_ad.make_dual, inputs, tangents))
            return [forward_ad.unpack_dual(x).tangent for x in tree_leaves(outputs)]

    return way


def by_two_backwards(call: Call, inputs: Tensors, tangents: Tensors) -> Any:
    """Return the oracle's tangents, without forward mode."""
    return torch.autograd.functional.jvp(call, inputs, tangents)[1]


WAYS: dict[str, Call] = {
    "jvp": by_jvp,
    "linearize": by_linearize,
    "jacfwd": by_jacfwd,
    "vmap of tangents": by_vmap,
    "vmap of both": by_vmap_of_both,
    "duals": by_duals(False, True),
    "duals with grad": by_duals(True, True),
    "duals under no_grad": by_duals(True, False),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_tangents(backend: str, case: str, way: str) -> None:
    """Every input has a tangent, and every result has that of float64."""
    call, inputs = CASES[case](backend)
    tangents = tuple(normal(*x.shape, grad=False) for x in inputs)
    if way == "linearize" and case in ("dropout", "causal varlen"):
        with pytest.raises(NotImplementedError, match="dropout_p must be 0 under .*linearize"):
            WAYS[way](call, inputs, tangents)
        return
    formula, _ = CASES[case]("reference")
    doubles = tuple(x.double() for x in inputs), tuple(x.double() for x in tangents)
    found = tree_leaves(WAYS[way](call, inputs, tangents))
    reference = tree_leaves(by_two_backwards(formula, inputs, tangents))
    exact = tree_leaves(by_two_backwards(formula, *doubles))
    for actual, close, true in zip(found, reference, exact, strict=True):
        assert_within_budget(actual, close, true, magnitude=10 * true.abs().max().item() + 10)


@pytest.mark.parametrize("place", range(4), ids=["query", "key", "value", "weight"])
@pytest.mark.parametrize("way", ["jvp", "linearize", "duals"])
def test_one_tangent_alone(backend: str, way: str, place: int) -> None:
    whole, inputs = CASES["context"](backend)
    formula, _ = CASES["context"]("reference")
    inputs = tuple(x.double() for x in inputs) if supports(backend, F64) else inputs
    tangent = (normal(*inputs[place].shape, dtype=inputs[0].dtype, grad=False),)

    def of_one(call: Call) -> Call:
        return lambda x: call(*inputs[:place], x, *inputs[place + 1 :])

    (found,) = tree_leaves(WAYS[way](of_one(whole), (inputs[place],), tangent))
    exact = by_two_backwards(of_one(formula), (inputs[place],), tangent)
    assert found.abs().max() > 0.01
    torch.testing.assert_close(found, exact)


@pytest.fixture
def backend64(backend: str) -> str:
    if not supports(backend, F64):
        pytest.skip("no float64")
    return backend


@pytest.mark.parametrize("case", CASES)
def test_finite_differences(backend64: str, case: str) -> None:
    """Test the tangents, those of a batch, and forward over reverse."""
    call, inputs = CASES[case](backend64)
    inputs = tuple(x.double().requires_grad_() for x in inputs)

    def finite(*inputs: Tensor) -> Any:
        return tuple(
            torch.where(x.isneginf(), torch.zeros_like(x), x) for x in tree_leaves(call(*inputs))
        )

    batched = case not in ("dropout", "causal varlen")  # gradcheck's vmap refuses random numbers
    assert gradcheck(
        finite,
        inputs,
        check_forward_ad=True,
        check_backward_ad=False,
        check_undefined_grad=False,
        check_batched_forward_grad=batched,
    )
    assert gradgradcheck(
        finite,
        inputs,
        check_fwd_over_rev=True,
        check_rev_over_rev=False,
        check_undefined_grad=False,
        fast_mode=True,
    )


SECOND: dict[str, Call] = {
    "hessian": hessian,
    "jacrev of jacfwd": lambda f, argnums: jacrev(jacfwd(f, argnums), argnums),
    "jacfwd of jacfwd": lambda f, argnums: jacfwd(jacfwd(f, argnums), argnums),
    "jacfwd of grad": lambda f, argnums: jacfwd(grad(f, argnums), argnums),
}


@pytest.mark.parametrize("case", ["scores", "context", "a float mask", "varlen", "prepared"])
@pytest.mark.parametrize("second", SECOND)
def test_second_derivatives(backend: str, second: str, case: str) -> None:
    def loss(name: str) -> Call:
        call, _ = CASES[case](name)
        return lambda *inputs: sum(
            torch.where(x.isfinite(), x, 0.0).pow(2).sum() for x in tree_leaves(call(*inputs))
        )

    _, inputs = CASES[case](backend)
    dtype = F64 if supports(backend, F64) else torch.float32
    inputs = tuple(x.to(dtype) for x in inputs)
    found = SECOND[second](loss(backend), tuple(range(len(inputs))))(*inputs)
    exact = torch.autograd.functional.hessian(loss("reference"), inputs)
    for actual, true in zip(tree_leaves(found), tree_leaves(exact), strict=True):
        torch.testing.assert_close(actual, true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transform", ["duals", "jvp"])
@pytest.mark.parametrize("case", ["scores", "all results", "a float mask", "varlen", "prepared"])
def test_tangents_of_incoming_gradients(backend: str, case: str, transform: str) -> None:
    """The call has no tangents; the gradients that enter its backward have."""

    def derivative(name: str) -> Any:
        torch.manual_seed(3)
        call, inputs = CASES[case](name)
        inputs = tuple(x.requires_grad_() for x in inputs)
        if transform == "jvp":
            outputs, pull = vjp(call, *inputs)
            into = torch.utils._pytree.tree_map(torch.randn_like, outputs)
            return jvp(pull, (into,), (into,))[1]
        outputs = tree_leaves(call(*inputs))
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(torch.ones_like(x), torch.randn_like(x)) for x in outputs]
            grads = torch.autograd.grad(outputs, inputs, duals, allow_unused=True)
            return [None if g is None else forward_ad.unpack_dual(g).tangent for g in grads]

    found, exact = (tree_leaves(derivative(name)) for name in (backend, "reference"))
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)


def test_views_and_writes_in_place(backend: str) -> None:
    call, (query, *others) = CASES["context"](backend)
    tangent = normal(*query.shape, grad=False)
    expected = jvp(lambda q: call(q, *others), (query,), (tangent,))[1]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(query, tangent)
        rows = torch.zeros(2, 6, 5)
        rows[:, ::2] = dual
        written = torch.zeros_like(query).add_(dual)
        out = torch.zeros(2, 3, 2)
        out.copy_(call(rows[:, ::2], *others))
        for result in (out, call(written, *others), call(dual.mT.contiguous().mT, *others)):
            torch.testing.assert_close(forward_ad.unpack_dual(result).tangent, expected)


def test_calls_without_tangents_are_as_before(backend: str) -> None:
    call, inputs = CASES["all results"](backend)
    before = call(*inputs)
    with forward_ad.dual_level():
        within = call(*inputs)
        assert all(forward_ad.unpack_dual(x).tangent is None for x in within)
    assert all(map(torch.equal, before, within))


def test_the_result_and_its_mask_are_those_of_the_call(backend: str) -> None:
    call, inputs = CASES["dropout"](backend)
    expected = call(*inputs)
    found, tangents = jvp(call, inputs, inputs)
    torch.testing.assert_close(found, expected)
    dropped = expected[1] == 0
    assert dropped.any()
    assert (tangents[1][dropped] == 0).all() and (tangents[1][~dropped] != 0).all()


def test_autocast(backend: str) -> None:
    call, inputs = CASES["context"](backend)
    expected = jvp(call, inputs, inputs)[1]
    with torch.autocast("cpu"):
        found = jvp(call, inputs, inputs)[1]
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_ends_of_every_example_are_refused(backend: str) -> None:
    inputs = make(SHAPE, grad=False)
    ends = cumulative([3]).expand(2, 2)

    def tangent(ends_q: Tensor) -> Tensor:
        def call(*inputs: Tensor) -> Any:
            return additive_attention_varlen(*inputs, ends_q, cumulative([4]), backend=backend)

        return jvp(call, inputs, inputs)[1]

    with pytest.raises((ValueError, RuntimeError), match="cu_seqlens_q must be shared|storage"):
        vmap(tangent)(ends)
