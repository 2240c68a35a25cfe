"""torch.compile around the transforms of torch.func: every one and every pair equals eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.inputs import cumulative, make
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves, tree_map

from attnkernels import (
    additive_attention,
    additive_attention_varlen,
    additive_scores,
    prepare_keys,
)

SHAPE = (2, 3, 4, 5, 2)
ALL = (0, 1, 2, 3)
Call = Callable[..., Any]
Tensors = tuple[Tensor, ...]


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.compiler.reset()


def attention(backend: str) -> Call:
    return lambda *inputs: additive_attention(*inputs, backend=backend)


def all_results(backend: str) -> Call:
    options = {"return_weights": True, "return_lse": True, "backend": backend}
    return lambda *inputs: additive_attention(*inputs, key_lengths=torch.tensor(3), **options)


def scores(backend: str) -> Call:
    return lambda q, k, _, w: additive_scores(q, k, w, backend=backend)


def varlen(backend: str) -> Call:
    ends = cumulative([1, 2]), cumulative([3, 1])
    return lambda *inputs: additive_attention_varlen(*inputs, *ends, backend=backend)


def prepared(backend: str) -> Call:
    return lambda q, *memory: prepare_keys(*memory, backend=backend).attend(q, return_weights=True)


CASES = {"attention": attention, "all": all_results, "scores": scores, "varlen": varlen}
CASES |= {"prepared": prepared}


def squared(call: Call) -> Call:
    return lambda *inputs: sum(x.pow(2).sum() for x in tree_leaves(call(*inputs)))


def of_examples(call: Call) -> Call:
    """Map over examples of the query alone."""
    return lambda q, *others: vmap(call, (0, None, None, None))(torch.stack([q, 2 * q]), *others)


def by_vjp(call: Call) -> Call:
    def way(*inputs: Tensor) -> Any:
        outputs, pull = vjp(call, *inputs)
        return outputs, pull(tree_map(torch.ones_like, outputs))

    return way


def by_jvp(call: Call) -> Call:
    return lambda *inputs: jvp(call, inputs, tuple(x.cos() for x in inputs))


def by_grad(call: Call) -> Call:
    return lambda *inputs: grad(squared(call), ALL)(*inputs)


def by_jacrev(call: Call) -> Call:
    return lambda *inputs: jacrev(call, ALL)(*inputs)


def by_jacfwd(call: Call) -> Call:
    return lambda *inputs: jacfwd(call, ALL)(*inputs)


def by_hessian(call: Call) -> Call:
    return lambda *inputs: hessian(squared(call), (0, 3))(*inputs)


WAYS: dict[str, Callable[[Call], Call]] = {
    "vmap": of_examples,
    "grad": by_grad,
    "vjp": by_vjp,
    "jvp": by_jvp,
    "jacrev": by_jacrev,
    "jacfwd": by_jacfwd,
    "hessian": by_hessian,
}
FIRST = ("vmap", "grad", "vjp", "jvp")


def check(way: Call, *, learning: bool = False) -> None:
    """Compare compiled with eager results, and, learning, the gradients that autograd takes."""
    inputs = make(SHAPE, grad=learning)
    compiled = torch.compile(way, fullgraph=True, backend="aot_eager")
    found, expected = tree_leaves(compiled(*inputs)), tree_leaves(way(*inputs))
    if learning:
        for outputs in (found, expected):
            loss = sum(x.pow(2).sum() for x in outputs)
            outputs += torch.autograd.grad(loss, inputs, allow_unused=True)
    assert any((x != 0).any() for x in expected if x is not None)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("way", WAYS)
def test_transforms(backend: str, way: str) -> None:
    check(WAYS[way](attention(backend)))


@pytest.mark.parametrize("outer", FIRST)
@pytest.mark.parametrize("inner", FIRST)
def test_pairs(fused: str, inner: str, outer: str) -> None:
    check(WAYS[outer](WAYS[inner](attention(fused))))


@pytest.mark.parametrize("way", ["vmap", "grad"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "attention"])
def test_other_calls(fused: str, case: str, way: str) -> None:
    check(WAYS[way](CASES[case](fused)))


@pytest.mark.parametrize("way", FIRST)
def test_gradients_through_transforms(fused: str, way: str) -> None:
    check(WAYS[way](attention(fused)), learning=True)


def test_without_gradients(fused: str) -> None:
    with torch.no_grad():
        check(of_examples(attention(fused)))
        check(by_grad(attention(fused)))


def test_a_tensor_given_twice(fused: str) -> None:
    """Keys that are the values, and boundaries of the keys that are those of the queries."""
    ends = cumulative([1, 2])

    def attend(query: Tensor, key: Tensor, _: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        keys = key[:, :3]
        return (
            additive_attention(query, key, key, weight, backend=fused),
            additive_attention_varlen(query, keys, keys, weight, ends, ends, backend=fused),
        )

    check(attend, learning=True)
