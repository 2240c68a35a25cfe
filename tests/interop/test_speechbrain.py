"""SpeechBrain: its own modules swapped, and the deferred gradients of cached keys.

Tests of SpeechBrain itself are skipped if it is not installed.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from helpers.inputs import F32, F64
from helpers.interop_peers import QUIET, installed
from helpers.interop_swap import (
    A,
    D,
    E,
    SwapCase,
    batches,
    check,
    drive,
    plain,
    reselect,
    same,
    swapped,
)
from interop.libraries import SWAPS
from torch import Tensor

from attnkernels.interop import load_state_dict_from
from attnkernels.interop.core.live import KEPT
from attnkernels.nn import AdditiveAttention
from attnkernels.testing import assert_within_budget
from benchmarks.suite import peers

pytestmark = QUIET


def content() -> SwapCase:
    cls = installed(peers.speechbrain).ContentBasedAttention
    return SWAPS["speechbrain"]._replace(make=lambda: cls(E, D, A, 4, scaling=1.5))


def location() -> SwapCase:
    cls = installed(peers.speechbrain).LocationAwareAttention
    return SWAPS["speechbrain-location"]._replace(make=lambda: cls(E, D, A, 4, 3, 2))


SPEECHBRAIN = pytest.mark.parametrize("make", [content, location])


@SPEECHBRAIN
@pytest.mark.parametrize("dtype", [F32, F64])
def test_speechbrain(make: Callable[[], SwapCase], dtype: torch.dtype) -> None:
    case = make()
    check(case, swapped(case, dtype))
    check(case, swapped(case, dtype), reselect(case))


@SPEECHBRAIN
def test_speechbrain_keeps_its_attributes_and_copies(make: Callable[[], SwapCase]) -> None:
    case = make()
    module, inputs = swapped(case, F64), batches(case, F64, grad=False).values()
    original = plain(module)
    with torch.no_grad():
        same(drive(case)(module, *inputs), drive(case)(original, *inputs))
        assert set(vars(module)) - {KEPT} == set(vars(original))
        same(*([getattr(x, name) for name in case.cached] for x in (module, original)))
        for duplicate in copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)):
            twin = duplicate(module)
            assert isinstance(twin, type(original))
            same(drive(case)(twin, *inputs), drive(case)(module, *inputs))


def test_the_tables_names_are_those_of_speechbrain() -> None:
    module = content().make()
    ours = AdditiveAttention(D, E, A, scale=1.5)
    load_state_dict_from(ours, module.state_dict(), convention="speechbrain")
    memory, query = torch.randn(2, 6, E), torch.randn(2, D)
    lengths = torch.tensor([6, 2])
    _, weights = ours(query, memory, key_lengths=lengths, return_weights=True)
    torch.testing.assert_close(weights, module(memory, lengths, query)[1])


def losses(module: Any, inputs: dict[str, Tensor], backward: Callable[[int, Tensor], Any]) -> Any:
    """Return outputs and all gradients, passing each step's number and loss to ``backward``."""
    frames, states = inputs.values()
    lengths, outputs = torch.tensor([frames.shape[1], 2, 5], dtype=frames.dtype), []
    leaves = {**inputs, **dict(module.named_parameters())}
    for x in leaves.values():
        x.grad = None
    module.reset()
    for i, state in enumerate(states):
        context, weights = module(frames, lengths, state)
        outputs += [context.detach(), weights.detach()]
        backward(i, (context * (0.3 + i % 3)).sum() + (weights[:, 1] ** 2).sum())
    return outputs, {
        n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in leaves.items()
    }


class Kept:
    """The losses of the steps ``only``, summed and differentiated at the steps ``at``."""

    def __init__(self, at: Collection[int], only: Collection[int] | None = None) -> None:
        self.at, self.only, self.losses = at, only, []

    def __call__(self, step: int, loss: Tensor) -> None:
        if self.only is None or step in self.only:
            self.losses.append(loss)
        if step in self.at:
            torch.stack(self.losses).sum().backward(retain_graph=True)
            self.losses = []


MANY_STEPS = 70
PATTERNS: dict[str, Callable[[], Callable[[int, Tensor], Any]]] = {
    "all at the end": lambda: Kept([MANY_STEPS - 1]),
    "after each step": lambda: Kept(range(MANY_STEPS)),
    "in the middle and at the end": lambda: Kept([4, 30, MANY_STEPS - 1]),
    "of some steps": lambda: Kept([MANY_STEPS - 1], only=[1, 4, 5, 40]),
    "of some steps, twice": lambda: Kept([20, MANY_STEPS - 1], only=[0, 12, 13, 35]),
    "of the first step": lambda: Kept([MANY_STEPS - 1], only=[0]),
}


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_many_steps_whose_key_gradients_are_made_together(pattern: Any, dtype: torch.dtype) -> None:
    """The gradients are those of the library's module, whenever they are asked for."""
    module = swapped(SWAPS["speechbrain"], dtype)
    double = plain(copy.deepcopy(module)).double()
    sizes = {"frames": (3, 7, E), "states": (MANY_STEPS, 3, D)}
    inputs = {n: torch.randn(size, dtype=dtype, requires_grad=True) for n, size in sizes.items()}
    doubles = {n: x.detach().double().requires_grad_() for n, x in inputs.items()}
    outputs, found = losses(module, inputs, pattern())
    plain_outputs, wanted = losses(plain(module), inputs, pattern())
    exact_outputs, exact = losses(double, doubles, pattern())
    for x, y, z in zip(outputs, plain_outputs, exact_outputs, strict=True):
        assert_within_budget(x, y, z, magnitude=1.0)
    for name, z in exact.items():
        # a sum over the steps and the frames of the batch
        size = MANY_STEPS * max(1.0, z.abs().max().item())
        assert_within_budget(found[name], wanted[name], z, magnitude=size, name=name)


def test_the_gradients_of_inputs_that_want_none() -> None:
    """All parameters but one are frozen."""
    for wanting in ("mlp_attn.weight", "mlp_enc.bias", "mlp_dec.weight"):
        module = swapped(SWAPS["speechbrain"], F64)
        for name, x in module.named_parameters():
            x.requires_grad_(name == wanting)
        inputs = {"frames": torch.randn(3, 7, E, dtype=F64), "states": torch.randn(9, 3, D)}
        inputs["states"] = inputs["states"].double()
        _, found = losses(module, inputs, Kept([8]))
        _, exact = losses(plain(module), inputs, Kept([8]))
        assert [name for name, x in found.items() if x.any()] == [wanting]
        assert_within_budget(found[wanting], exact[wanting], exact[wanting], magnitude=70.0)
