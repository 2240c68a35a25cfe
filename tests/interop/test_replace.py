"""Modules of other libraries keep their results, gradients and attributes after a swap."""

from __future__ import annotations

import copy
import itertools
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F32, F64
from helpers.interop_swap import (
    LENGTHS,
    D,
    E,
    SwapCase,
    assert_rounded,
    batches,
    check,
    drive,
    keep,
    plain,
    reselect,
    same,
    select,
    swapped,
    tensors,
)
from helpers.nn_twins import check_twin
from interop.libraries import SWAPS
from torch import Tensor, nn

from attnkernels.interop import CONVENTIONS, replace_attention, restore_attention
from attnkernels.interop.core.live import KEPT, Fused

ALL = pytest.mark.parametrize("case", SWAPS.values(), ids=SWAPS)
CACHING = [name for name, case in SWAPS.items() if case.cached]


@ALL
@pytest.mark.parametrize("dtype", [F32, F64])
def test_results_and_gradients_are_those_of_the_library(case: SwapCase, dtype: torch.dtype) -> None:
    check(case, swapped(case, dtype))


@pytest.mark.parametrize("name", ["espnet-add", "joeynmt", "captioning", "gnmt"])
def test_half_precision(name: str) -> None:
    check(SWAPS[name], swapped(SWAPS[name], BF16))


@ALL
def test_autocast(case: SwapCase) -> None:
    """Dtypes are those of the library, and numbers as well in bfloat16, which it computes in."""
    module, inputs = swapped(case), batches(case, F32)
    double = plain(copy.deepcopy(module)).double()
    with torch.autocast("cpu", dtype=BF16):
        found, wanted = (
            tensors(drive(case)(each, *inputs.values())) for each in (module, plain(module))
        )
    exact = tensors(drive(case)(double, *(x.detach().double() for x in inputs.values())))
    assert_rounded(found, wanted, exact)
    sum(x.float().sum() for x in found).backward()
    assert all(x.grad is not None for x in inputs.values())


@ALL
def test_the_shapes_types_and_attributes_stay(case: SwapCase) -> None:
    """The swapped module has the library's attributes, with the same values."""
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
    """A beam search may select the cached attributes anew between steps."""
    case = SWAPS[name]
    module = swapped(case)
    if grad:
        check(case, module, reselect(case))
        return
    module, inputs = module.double(), batches(case, F64).values()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            run = drive(case, reselect(case))
            same(run(module, *inputs), run(plain(module), *inputs))


@pytest.mark.parametrize("name", CACHING)
def test_attributes_that_are_changed_in_place(name: str) -> None:
    case = SWAPS[name]

    def reorder(module: Any, carried: Any = None) -> Any:
        for attribute in case.cached:
            x = getattr(module, attribute)
            for each in x if isinstance(x, list) else [x]:
                each.copy_(select(each))
        return select(carried)

    module, inputs = swapped(case, F64), batches(case, F64).values()
    with torch.no_grad():
        given = [[x.clone() for x in inputs] for _ in range(2)]  # the memory may be an attribute
        same(
            *(
                drive(case, reorder)(x, *y)
                for x, y in zip((module, plain(module)), given, strict=True)
            )
        )


@ALL
def test_parameters_optimizers_and_hooks_stay(case: SwapCase) -> None:
    module, seen = case.make(), []
    before, keys = dict(module.named_parameters()), list(module.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.register_forward_hook(lambda *_: seen.append("hook"))
    module.register_forward_pre_hook(lambda *_: seen.append("pre"))
    report = replace_attention(module)
    assert report.swapped and not seen
    after = dict(module.named_parameters())
    assert list(module.state_dict()) == keys and list(after) == list(before)
    assert all(after[name] is x for name, x in before.items())
    found = drive(case)(module, *batches(case, F32).values())
    assert seen[:2] == ["pre", "hook"] and len(seen) == 2 * len(found)
    values = {name: x.detach().clone() for name, x in before.items()}
    sum(x.square().sum() for x in tensors(found)).backward()
    optimizer.step()
    for name, x in before.items():
        # a bias of all scores of a row has no gradient except for rounding
        assert not torch.equal(x, values[name]) or cancels(report.swapped[""], name), name


def cancels(source: str, name: str) -> bool:
    """Return True if the softmax cancels this parameter of a library's class."""
    (rules,) = (each for each in CONVENTIONS.values() if each.source == source)
    return any(fnmatchcase(name, each.replace("{}", "*")) for each in rules.cancels)


@ALL
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_script_is_the_librarys(case: SwapCase) -> None:
    """The code is the same, or there is none."""
    module = swapped(case)
    codes: list[Any] = []
    for each in plain(module), module:
        try:
            codes.append(torch.jit.script(each).code)
        except Exception as error:
            codes.append(type(error))
    assert codes[0] == codes[1]


@ALL
def test_restored(case: SwapCase) -> None:
    module = swapped(case)
    drive(case)(module, *batches(case, F32).values())  # it may keep keys
    own = type(plain(module))
    assert restore_attention(module) == ("",)
    assert type(module) is own and KEPT not in vars(module)


@ALL
@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy])
def test_copies_are_swapped(case: SwapCase, duplicate: Any) -> None:
    """A copy in the middle of a sequence leaves the prepared keys out and prepares them anew."""
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
    case = SWAPS[name]

    def call(module: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Take the first step, which caches the keys, and every second one without gradients."""
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


def test_rows_of_which_everything_is_masked_are_zeros() -> None:
    """The documentation states this difference."""
    module = swapped(SWAPS["joeynmt"])
    memory, mask = torch.randn(2, 4, E), torch.tensor([[[True] * 4], [[False] * 4]])
    module.compute_proj_keys(memory)
    context, weights = module(torch.randn(2, 1, D), mask, memory)
    assert not context[1].any() and not weights[1].any() and weights[0].any()
    assert plain(module)(torch.randn(2, 1, D), mask, memory)[0][1].isnan().all()


@ALL
def test_a_sequence_of_length_0(case: SwapCase) -> None:
    """Its weights are zeros, in every step, and no gradient is NaN."""
    module, inputs = swapped(case), batches(case, F32)
    memory, states = inputs["memory"], inputs["states"]
    found = tensors(case.run(module, memory, states, (memory.shape[1], 0, 4), keep))
    assert all(x.isfinite().all() for x in found)
    leaves = [memory, states, *module.parameters()]
    total = sum(x.square().sum() for x in found)
    gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    assert all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("name", ["speechbrain", "espnet-add"])
def test_second_derivatives_are_refused_where_keys_are_cached(name: str) -> None:
    case = SWAPS[name]
    module, inputs = swapped(case), batches(case, F32)
    found = tensors(drive(case)(module, *inputs.values()))
    with pytest.raises(RuntimeError, match="leave this module out of replace_attention"):
        torch.autograd.grad(found[-2].sum(), list(inputs.values()), create_graph=True)
