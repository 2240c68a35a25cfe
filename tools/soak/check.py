"""Run a case: hold its results to the error budget, and compare what must be equal bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnkernels.testing import check_attention, check_scores, check_varlen

from .calls import Call, call_of, naive_of, reference_of
from .case import Case
from .nans import shielded
from .tensors import Tensors

Ratios = dict[str, float]
_CHECKS = {"varlen": check_varlen, "scores": check_scores}


def check(case: Case) -> Ratios:
    """Run a case; return each result's error in units of its budget, at most 1.

    Raises:
        AssertionError: a result is out of its budget, or not the same where it must be.
        Exception: whatever the call raises.
    """
    with _setting(case):
        return _check(case)


@contextmanager
def _setting(case: Case) -> Iterator[None]:
    """Set torch's threads and determinism, which also fills uninitialised memory with NaN."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(case.threads)
    torch.use_deterministic_algorithms(case.deterministic)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def _check(case: Case) -> Ratios:
    tensors, tested = Tensors(case), call_of(case)
    if case.nan != "none":
        poisoned, tensors = tensors, Tensors(replace(case, nan="none"))
        others = naive_of(case), reference_of(case)
        tested = shielded(tested, *others, poisoned.inputs, poisoned.options)
    through = {} if case.call == "scores" else {"through": case.through}
    ratios = _CHECKS.get(case.call, check_attention)(
        *tensors.inputs.values(), backend=tested, **through, **tensors.options
    )
    if case.gradient_layout == "expanded":
        _assert_expanded_gradients_are_the_same(tested, tensors)
    if case.callers > 1:
        _assert_callers_agree(case, tested, tensors)
    return ratios


def _results(
    tested: Call, tensors: Tensors, expanded: bool = False
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the outputs, and the gradients that enter as ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        outputs = tested(*tensors.inputs.values(), **tensors.options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    every: tuple[Any, ...] = (*tensors.inputs.values(), *tensors.options.values())
    leaves = [x for x in every if isinstance(x, Tensor) and x.requires_grad]
    roots = [x for x in outputs if x.requires_grad]
    if not roots:
        return outputs, ()
    ones = [x.new_ones(()).expand(x.shape) if expanded else torch.ones_like(x) for x in roots]
    return outputs, torch.autograd.grad(roots, leaves, ones, materialize_grads=True)


def _assert_expanded_gradients_are_the_same(tested: Call, tensors: Tensors) -> None:
    _, dense = _results(tested, tensors)
    _, expanded = _results(tested, tensors, expanded=True)
    _assert_same(dense, expanded, "a gradient changes if the incoming ones are expanded")


def _assert_callers_agree(case: Case, tested: Call, tensors: Tensors) -> None:
    """Run the case in several Python threads at once, and compare with one run before them."""

    def call(_: int) -> tuple[Tensor, ...]:
        torch.set_num_threads(case.threads)  # each thread has its own number
        outputs, gradients = _results(tested, tensors)
        return *outputs, *gradients

    alone = call(0)
    with ThreadPoolExecutor(case.callers) as pool:
        for together in pool.map(call, range(case.callers)):
            _assert_same(alone, together, "a result changes if several threads call at once")


def _assert_same(wanted: tuple[Tensor, ...], found: tuple[Tensor, ...], sentence: str) -> None:
    for place, (a, b) in enumerate(zip(wanted, found, strict=True)):
        if not torch.equal(a.nan_to_num(0), b.nan_to_num(0)) or not a.isnan().equal(b.isnan()):
            off = (a.double() - b.double()).abs().max()
            raise AssertionError(f"{sentence}: number {place} by up to {off:.3g}")
