"""Location-sensitive and coverage attention compute the keys of a step again in the backward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from helpers.gradients import close, close_gradients, gradients
from helpers.inputs import BF16, F32, F64, normal
from torch import Tensor, nn

from attnkernels.functional import aligned
from attnkernels.nn import AttentionRNN, CoverageAttention, LocationSensitiveAttention
from attnkernels.testing import assert_within_budget

B, T, M, E, KEY, UNITS = 3, 5, 33, 4, 6, 5
SIZES = UNITS, KEY, 8
LENGTHS = torch.tensor([M, 7, 0])
ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "location": lambda: LocationSensitiveAttention(
        *SIZES, channels=3, kernel_size=5, cumulative="both", initial="uniform", scale=1.5
    ),
    "detached": lambda: LocationSensitiveAttention(
        *SIZES, channels=2, kernel_size=3, detach_weights=True, normalize=True
    ),
    "many channels": lambda: LocationSensitiveAttention(
        *SIZES, channels=9, kernel_size=3, cumulative="both"
    ),
    "coverage": lambda: CoverageAttention(*SIZES),
}
every_attention = pytest.mark.parametrize("kind", ATTENTIONS)


def make(kind: str, dtype: torch.dtype = F64) -> AttentionRNN:
    return AttentionRNN(nn.GRUCell(E + KEY, UNITS), ATTENTIONS[kind]()).to(dtype)


def tensors(dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    """Return inputs (B, T, E) and a memory (B, M, KEY)."""
    return normal(B, T, E, dtype=dtype), normal(B, M, KEY, dtype=dtype)


def results(rnn: AttentionRNN, inputs: Tensor, memory: Tensor) -> list[Tensor]:
    outputs, contexts, _, weights = rnn(inputs, memory, LENGTHS, return_weights=True)
    return [outputs, contexts, weights]


@pytest.fixture(params=["kernels", "tensors"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compute the steps by the compiled kernels, if there are any, and by tensors of keys."""
    if request.param == "tensors":
        monkeypatch.setattr(aligned, "has_kernel", lambda *_: False)
    return request.param


def pair(kind: str, dtype: torch.dtype = F64) -> tuple[AttentionRNN, AttentionRNN]:
    """Return a decoder that computes keys again and one that keeps what autograd saves."""
    rnn = make(kind, dtype)
    plain = copy.deepcopy(rnn)
    plain.defer_gradients = False
    return rnn, plain


@every_attention
def test_gradients_are_those_of_autograd(kind: str, way: str) -> None:
    inputs, memory = tensors()
    found = []
    for rnn in pair(kind):
        outputs = results(rnn, inputs, memory)
        found.append([*outputs, *gradients(outputs, [inputs, memory, *rnn.parameters()])])
    close(*found)


@every_attention
def test_float32_is_within_the_budget(kind: str, way: str) -> None:
    rnn = make(kind, F32)
    inputs, memory = tensors(F32)
    found = []
    for backend, dtype in ((None, F32), ("reference", F32), ("reference", F64)):
        each = copy.deepcopy(rnn).to(dtype)
        each.attention.backend = backend
        x, h = (y.detach().to(dtype).requires_grad_() for y in (inputs, memory))
        outputs = results(each, x, h)
        found.append([*outputs, *gradients(outputs, [x, h, *each.parameters()])])
    for x, y, z in zip(*found, strict=True):
        assert_within_budget(x, y, z, magnitude=30 * max(1.0, z.abs().max().item()))


@every_attention
def test_several_backwards(kind: str, way: str) -> None:
    """Stop short of the keys, take some steps only, all of them twice, and none at all."""
    inputs, memory = tensors()
    (rnn, plain), at = pair(kind), [inputs, memory]
    found, wanted = results(rnn, inputs, memory), results(plain, inputs, memory)

    both = partial(close_gradients, found, wanted)
    both(lambda x: x, [inputs])
    both(lambda x: [x[1][:, 2]], at)
    both(lambda x: [x[2][:, 3]], at)
    both(lambda x: [x[0][:, :1]], at)
    both(lambda x: x, at)
    both(lambda x: x, at)
    gradients(found, at)
    with pytest.raises(RuntimeError, match="second time"):
        gradients(found, at)
    with torch.no_grad():
        assert not rnn(inputs, memory, LENGTHS)[0].requires_grad


@every_attention
@pytest.mark.parametrize("frozen", ["memory", "attention", "all but the memory"])
def test_gradients_of_some_inputs_only(kind: str, frozen: str, way: str) -> None:
    inputs, memory = tensors()
    memory.requires_grad_(frozen != "memory")
    found = []
    for rnn in pair(kind):
        rnn.attention.requires_grad_(frozen == "memory")
        rnn.cell.requires_grad_(frozen != "all but the memory")
        at = [x for x in (inputs, memory, *rnn.parameters()) if x.requires_grad]
        found.append(gradients(results(rnn, inputs, memory), at))
    close(*found)


@every_attention
def test_second_derivatives(kind: str, way: str) -> None:
    inputs, memory = tensors()
    seconds = []
    for rnn in pair(kind):
        at = [inputs, memory, *rnn.attention.parameters()]
        first = gradients(results(rnn, inputs, memory), at, create_graph=True)
        seconds.append([*first, *gradients(first, at)])
    close(*seconds)


@every_attention
@pytest.mark.parametrize("autocast", [False, True])
def test_sixteen_bits(kind: str, autocast: bool) -> None:
    dtype = F32 if autocast else BF16
    inputs, memory = tensors(dtype)
    found = []
    for rnn in pair(kind, dtype):
        with torch.autocast("cpu", BF16, enabled=autocast):
            outputs = results(rnn, inputs, memory)
        grads = gradients(outputs, [inputs, memory, *rnn.parameters()])
        assert [x.dtype for x in grads] == [dtype] * len(grads)
        found.append([*outputs, *grads])
    for x, y in zip(*found, strict=True):
        size = max(1.0, y.abs().max().item())
        torch.testing.assert_close(x.float() / size, y.float() / size, atol=0.05, rtol=0)


@every_attention
def test_a_call_with_all_queries_recomputes_too(kind: str) -> None:
    attention = ATTENTIONS[kind]().to(F64)
    query, key = normal(B, T, UNITS, dtype=F64), normal(B, M, KEY, dtype=F64)
    mask = torch.rand(B, T, M) < 0.8
    for options in ({}, {"attn_mask": mask}, {"attn_mask": normal(B, T, M, dtype=F64)}):
        found = []
        for backend in (None, "reference"):
            attention.backend = backend
            outputs = list(attention(query, key, return_weights=True, **options))
            found.append([*outputs, *gradients(outputs, [query, key, *attention.parameters()])])
        close(*found)


@every_attention
def test_keys_of_steps_are_not_kept(kind: str, way: str) -> None:
    inputs, memory = tensors()
    kept = [
        {x.data_ptr() for x in saved(results(rnn, inputs, memory)[1].grad_fn, B * M * SIZES[2])}
        for rnn in pair(kind)
    ]
    assert len(kept[0]) == 1 and len(kept[1]) >= T  # the keys of the memory alone


def saved(node: Any, elements: int) -> list[Tensor]:
    """Return the tensors of so many elements that a graph keeps."""
    found, todo, seen = [], [node], set()
    while todo:
        each = todo.pop()
        if each is None or each in seen:
            continue
        seen.add(each)
        names = [x for x in dir(each) if x.startswith("_saved_")]
        values = [getattr(each, x) for x in names] + list(getattr(each, "saved_tensors", ()))
        found += [x for x in values if isinstance(x, Tensor) and x.numel() == elements]
        todo += [following for following, _ in each.next_functions]
    return found


@pytest.mark.parametrize("kind", ["location", "many channels"])
def test_a_step_takes_as_few_products_as_it_can(kind: str) -> None:
    attention = ATTENTIONS[kind]()
    conv, filter = attention.location_conv, attention.filter()
    channels, taps, _ = filter.shape
    assert channels * taps == min(conv.in_channels * conv.kernel_size[0], conv.out_channels)


REPLACED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "biased": ("location_conv", lambda: nn.Conv1d(2, 9, 3, padding=1)),
    "dilated": ("location_conv", lambda: nn.Conv1d(2, 9, 3, padding=2, dilation=2, bias=False)),
    "circular": (
        "location_conv",
        lambda: nn.Conv1d(2, 9, 3, padding=1, padding_mode="circular", bias=False),
    ),
    "biased projection": ("location_proj", lambda: nn.Linear(9, SIZES[2])),
}


@pytest.mark.parametrize("name", REPLACED)
def test_other_layers_in_their_place_are_called(name: str) -> None:
    layer, replacement = REPLACED[name]
    rnn = make("many channels")
    setattr(rnn.attention, layer, replacement().to(F64))
    plain = copy.deepcopy(rnn)
    plain.defer_gradients = False
    inputs, memory = tensors()
    found, wanted = (results(each, inputs, memory) for each in (rnn, plain))
    leaves = [[inputs, memory, *each.parameters()] for each in (rnn, plain)]
    close([*found, *gradients(found, leaves[0])], [*wanted, *gradients(wanted, leaves[1])])


@pytest.mark.parametrize("kind", ["location", "many channels"])
@pytest.mark.parametrize("layer", ["location_conv", "location_proj"])
def test_hooks_of_layers_see_every_step(kind: str, layer: str) -> None:
    rnn, calls = make(kind), []
    getattr(rnn.attention, layer).register_forward_hook(lambda *_: calls.append(1))
    rnn(*tensors(), LENGTHS)
    assert len(calls) == T


def test_checkpoints_compute_steps_again() -> None:
    inputs, memory = tensors()
    rnn, plain = pair("location")
    outputs = torch.utils.checkpoint.checkpoint(results, rnn, inputs, memory, use_reentrant=False)
    wanted = results(plain, inputs, memory)
    close(gradients(outputs, [inputs, memory]), gradients(wanted, [inputs, memory]))
