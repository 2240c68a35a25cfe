"""Modules of other libraries, swapped: the results, gradients and attributes that they had."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F32, F64
from helpers.interop_cases import (
    CASES,
    LENGTHS,
    Case,
    D,
    E,
    batches,
    check,
    drive,
    plain,
    same,
    select,
    swapped,
    tensors,
)
from helpers.interop_twins_text import OpenNmt
from helpers.nn_twins import COPIES, check_twin
from torch import Tensor, nn

from attnkernels.interop import replace_attention
from attnkernels.interop.core.live import KEPT, Fused
from attnkernels.testing import assert_within_budget

ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
CACHING = [name for name, case in CASES.items() if case.cached]


@ALL
@pytest.mark.parametrize("dtype", [F32, F64])
def test_results_and_gradients_are_those_of_the_library(case: Case, dtype: torch.dtype) -> None:
    check(case, swapped(case, dtype))


@pytest.mark.parametrize("name", ["espnet-add", "joeynmt", "captioning", "gnmt"])
def test_half_precision(name: str) -> None:
    check(CASES[name], swapped(CASES[name], BF16))


@ALL
def test_autocast(case: Case) -> None:
    """To bfloat16: the dtypes are those of the library, and so are the numbers."""
    module, inputs = swapped(case), batches(case, F32)
    double = plain(copy.deepcopy(module)).double()
    with torch.autocast("cpu", dtype=BF16):
        found, wanted = (
            tensors(drive(case)(each, *inputs.values())) for each in (module, plain(module))
        )
    exact = tensors(drive(case)(double, *(x.detach().double() for x in inputs.values())))
    for x, y, z in zip(found, wanted, exact, strict=True):
        assert_within_budget(x, y, z, magnitude=1.0)
    sum(x.float().sum() for x in found).backward()
    assert all(x.grad is not None for x in inputs.values())


@ALL
def test_the_shapes_types_and_attributes_stay(case: Case) -> None:
    """Whatever the library keeps in its module is there as well, with the same values."""
    original = case.make().double()
    module = copy.deepcopy(original)
    replace_attention(module)
    inputs = batches(case, F64).values()
    same(drive(case)(module, *inputs), drive(case)(original, *inputs))
    names = {name for name in vars(module) if name != KEPT}
    assert names == set(vars(original))
    for name in names - set(vars(nn.Module())):
        same(getattr(module, name), getattr(original, name))
    assert all(getattr(module, name) is not None for name in case.cached)


@pytest.mark.parametrize("name", CACHING)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_reordered_beams(name: str, grad: bool) -> None:
    """The attributes that the library caches, taken anew between steps."""
    case = CASES[name]

    def reorder(module: Any, carried: Any = None) -> Any:
        for attribute in case.cached:
            setattr(module, attribute, select(getattr(module, attribute)))
        return select(carried)

    module = swapped(case)
    if grad:
        check(case, module, reorder)
        return
    module, inputs = module.double(), batches(case, F64).values()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            run = drive(case, reorder)
            same(run(module, *inputs), run(plain(module), *inputs))


@pytest.mark.parametrize("name", CACHING)
def test_attributes_that_are_changed_in_place(name: str) -> None:
    case = CASES[name]

    def reorder(module: Any, carried: Any = None) -> Any:
        for attribute in case.cached:
            x = getattr(module, attribute)
            for each in x if isinstance(x, list) else [x]:
                each.copy_(select(each))
        return select(carried)

    module, inputs = swapped(case, F64), batches(case, F64).values()
    with torch.no_grad():
        given = [[x.clone() for x in inputs] for _ in range(2)]  # attributes may be the memory
        same(
            *(
                drive(case, reorder)(x, *y)
                for x, y in zip((module, plain(module)), given, strict=True)
            )
        )


@ALL
def test_parameters_optimizers_and_hooks_stay(case: Case) -> None:
    module, seen = case.make(), []
    before, keys = dict(module.named_parameters()), list(module.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.register_forward_hook(lambda *_: seen.append("hook"))
    module.register_forward_pre_hook(lambda *_: seen.append("pre"))
    assert replace_attention(module).swapped and not seen
    after = dict(module.named_parameters())
    assert list(module.state_dict()) == keys and list(after) == list(before)
    assert all(after[name] is x for name, x in before.items())
    found = drive(case)(module, *batches(case, F32).values())
    assert seen[:2] == ["pre", "hook"] and len(seen) == 2 * len(found)
    values = {name: x.detach().clone() for name, x in before.items()}
    sum(x.square().sum() for x in tensors(found)).backward()
    optimizer.step()
    for name, x in before.items():
        # what adds the same to all scores of a row has no gradient but roundings
        assert not torch.equal(x, values[name]) or CANCELS.search(name), name


CANCELS = re.compile(r"(gvec|gvec\.\d|proj_out\.1|full_att)\.bias")


@ALL
@pytest.mark.parametrize("duplicate", [*COPIES, copy.copy], ids=["deepcopy", "pickle", "copy"])
def test_copies_are_swapped(case: Case, duplicate: Any) -> None:
    """In the middle of a sequence; what is prepared is not in them, it is made anew."""
    original = case.make()
    module = copy.deepcopy(original)
    replace_attention(module)
    inputs = batches(case, F32, grad=False).values()
    with torch.no_grad():
        found = drive(case)(module, *inputs)
        twin = duplicate(module)
        assert type(twin) is type(module) and KEPT not in vars(twin)
        assert isinstance(twin, Fused) and isinstance(twin, type(original))
        pairs = zip(twin.parameters(), module.parameters(), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)
        again = drive(case)(twin, *inputs)
    assert all(torch.equal(x, y) for x, y in zip(tensors(found), tensors(again), strict=True))
    assert repr(twin) == repr(module) == repr(original)
    names = [(x.__name__, x.__qualname__, x.__module__) for x in (type(twin), type(original))]
    assert names[0] == names[1]
    assert replace_attention(twin).left == {"": "it is swapped already"}


@pytest.mark.parametrize("name", ["speechbrain", "espnet-add", "espnet-heads", "joeynmt"])
def test_keys_cached_without_gradients_and_used_with_them(name: str) -> None:
    case = CASES[name]

    def call(module: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The first step without gradients, which caches the keys; every second one with them."""
        steps = itertools.count(1)

        def reorder(_: Any, carried: Any = None) -> Any:
            torch.set_grad_enabled(next(steps) % 2 == 1)
            return carried

        with torch.no_grad():
            return tensors(case.run(module, *inputs, LENGTHS, reorder))

    inputs = {name: x for name, x in batches(case, F32).items() if "second" not in name}
    check_twin(
        swapped(case),
        lambda module, *inputs: call(plain(module), *inputs),
        inputs,
        call=call,
    )


def test_a_coverage_that_is_given_is_the_libraries_own_matter() -> None:
    module = OpenNmt.GlobalAttention(E, coverage=True)
    assert replace_attention(module).swapped
    src, memory, lengths = torch.randn(2, E), torch.randn(2, 5, E), torch.tensor([5, 3])
    coverage = torch.rand(2, 5)
    found = module(src, memory, lengths, coverage)
    wanted = plain(module)(src, memory, lengths, coverage)
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
    assert not torch.allclose(found[1], module(src, memory, lengths)[1])


def test_a_window_of_frames_is_the_libraries_own_matter() -> None:
    """And the steps before and after it are fused."""
    module = swapped(CASES["espnet-loc"])
    library, frames, states = plain(module), torch.randn(1, 9, E), torch.randn(3, 1, D)
    weights = {module: None, library: None}
    for state, window in zip(states, ({}, {"last_attended_idx": 4}, {}), strict=True):
        found = {
            each: each(frames, [9], state, past, 2.0, **window) for each, past in weights.items()
        }
        weights = {each: w for each, (_, w) in found.items()}
        for x, y in zip(found[module], found[library], strict=True):
            torch.testing.assert_close(x, y)
        assert int((weights[module] == 0).sum()) == (5 if window else 0)
    windowed = module(frames, [9], state, None, 2.0, 2, backward_window=0, forward_window=1)
    assert windowed[1].argmax() == 2 and windowed[1].max() == 1


def test_rows_of_which_everything_is_masked_are_zeros() -> None:
    """The difference that the documentation names."""
    module = swapped(CASES["joeynmt"])
    memory, mask = torch.randn(2, 4, E), torch.tensor([[[True] * 4], [[False] * 4]])
    module.compute_proj_keys(memory)
    context, weights = module(torch.randn(2, 1, D), mask, memory)
    assert not context[1].any() and not weights[1].any() and weights[0].any()
    assert plain(module)(torch.randn(2, 1, D), mask, memory)[0][1].isnan().all()


def losses(module: Any, inputs: dict[str, Tensor], backward: Callable[[int, Tensor], Any]) -> Any:
    """Gradients of everything, after `backward` got each step's number and its loss."""
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
    """Losses that are summed, and differentiated in the steps of `at`."""

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
    """Whenever somebody asks for gradients, they are those of the library's module."""
    module = swapped(CASES["speechbrain"], dtype)
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
    """Frozen keys, or nothing but the vector that scores."""
    for wanting in ("mlp_attn.weight", "mlp_enc.bias", "mlp_dec.weight"):
        module = swapped(CASES["speechbrain"], F64)
        for name, x in module.named_parameters():
            x.requires_grad_(name == wanting)
        inputs = {"frames": torch.randn(3, 7, E, dtype=F64), "states": torch.randn(9, 3, D)}
        inputs["states"] = inputs["states"].double()
        _, found = losses(module, inputs, Kept([8]))
        _, exact = losses(plain(module), inputs, Kept([8]))
        assert [name for name, x in found.items() if x.any()] == [wanting]
        assert_within_budget(found[wanting], exact[wanting], exact[wanting], magnitude=70.0)


@pytest.mark.parametrize("name", ["speechbrain", "espnet-add"])
def test_second_derivatives_are_refused_where_keys_are_cached(name: str) -> None:
    case = CASES[name]
    module, inputs = swapped(case), batches(case, F32)
    found = tensors(drive(case)(module, *inputs.values()))
    with pytest.raises(RuntimeError, match="leave this module out of replace_attention"):
        torch.autograd.grad(found[-2].sum(), list(inputs.values()), create_graph=True)
