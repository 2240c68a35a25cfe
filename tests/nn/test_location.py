"""Location-sensitive and coverage attention: earlier weights enter the score."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, normal
from helpers.nn_twins import (
    COPIES,
    SIZES,
    check_twin,
    masked,
    memory_and_query,
    present,
    scores_of,
    with_weights,
)
from torch import Tensor, nn

from attnkernels.nn import CoverageAttention, LocationSensitiveAttention, coverage_loss
from attnkernels.testing import assert_within_budget

B, N, M = 3, 4, 13
LENGTHS = torch.tensor([5, 13, 1])
inputs = partial(memory_and_query, B, N, M)
LOCATION: dict[str, dict[str, Any]] = {
    "tacotron": {},
    "previous": {"cumulative": False, "initial": "uniform"},
    "both": {"cumulative": "both", "normalize": True, "bias": False},
    "detached": {"cumulative": "both", "initial": "uniform", "detach_weights": True},
    "scaled": {"scale": 2.0},
}
COVERAGE: dict[str, dict[str, Any]] = {
    "plain": {},
    "uniform": {"initial": "uniform", "normalize": True, "scale": -1.5},
}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "location": lambda: location("both"),
    "coverage": lambda: CoverageAttention(*SIZES),
}


def location(name: str) -> LocationSensitiveAttention:
    options = {"channels": 4, "kernel_size": 5} | LOCATION[name]
    module = LocationSensitiveAttention(*SIZES, **options)
    sharpen(module)
    return module


def sharpen(module: nn.Module) -> None:
    """Make weights far from uniform, so that earlier ones matter."""
    with torch.no_grad():
        module.weight.mul_(4)


def formula(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_lengths: Tensor | None = None,
    attn_mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    within = present(key_lengths, B, M)
    previous = torch.zeros(B, M, dtype=query.dtype)
    if module.initial == "uniform":
        previous = within.to(query.dtype) / within.sum(-1, keepdim=True)
    total, contexts, weights = previous, [], []
    for i in range(query.shape[1]):
        s = scores_of(module, query[:, i : i + 1], key, added(module, previous, total))
        mask = None if attn_mask is None else attn_mask.expand(B, N, M)[:, i : i + 1]
        previous = masked(module.scale * s, key_lengths, mask).squeeze(1).softmax(-1)
        total = total + previous
        weights.append(previous)
        contexts.append((previous.unsqueeze(1) @ value).squeeze(1))
    return torch.stack(contexts, 1), torch.stack(weights, 1)


def added(module: nn.Module, previous: Tensor, total: Tensor) -> Tensor:
    """Return the added keys, with the convolution written as a sum over its taps."""
    if isinstance(module, CoverageAttention):
        return total.unsqueeze(-1) * module.coverage_proj.weight.squeeze(-1)
    seen = {True: [total], False: [previous], "both": [previous, total]}[module.cumulative]
    if module.detach_weights:
        seen = [x.detach() for x in seen]
    taps = module.location_conv.weight  # (channels, seen, kernel)
    half = taps.shape[-1] // 2
    features = 0
    for c, x in enumerate(seen):
        padded = nn.functional.pad(x, (half, half)).unfold(-1, taps.shape[-1], 1)
        features = features + padded @ taps[:, c].mT
    return features @ module.location_proj.weight.mT


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("name", LOCATION)
def test_location_is_its_formula(name: str, lengths: Tensor | None) -> None:
    check_twin(location(name), formula, inputs(), call=with_weights, key_lengths=lengths)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("options", COVERAGE.values(), ids=COVERAGE)
def test_coverage_is_its_formula(options: dict[str, Any], lengths: Tensor | None) -> None:
    module = CoverageAttention(*SIZES, **options)
    sharpen(module)
    check_twin(module, formula, inputs(), call=with_weights, key_lengths=lengths)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_a_mask_for_every_step(make: Callable[[], nn.Module]) -> None:
    mask = normal(1, N, M, grad=False)
    check_twin(make(), formula, inputs(), call=with_weights, attn_mask=mask)
    keep = torch.rand(B, 1, M) < 0.6
    _, weights = make()(*inputs().values(), attn_mask=keep, return_weights=True)
    assert not weights.masked_select(~keep).any()


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_steps_are_the_loop(make: Callable[[], nn.Module]) -> None:
    module, mask = make(), normal(1, N, M, grad=False)

    def steps(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        state = module.prepare(key, LENGTHS, value)
        found = []
        for i in range(N):
            *each, state = module.step(query[:, i], state, attn_mask=mask[0, i].to(query))
            found.append(each)
        contexts, weights = (torch.stack(each, 1) for each in zip(*found, strict=True))
        return contexts, weights, state.previous, state.cumulative

    def loop(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
        context, weights = with_weights(
            module, *inputs, key_lengths=LENGTHS, attn_mask=mask.to(inputs[0])
        )
        return context, weights, weights[:, -1], weights.sum(1)

    check_twin(module, loop, inputs(), call=steps)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_beams_are_reordered(make: Callable[[], nn.Module]) -> None:
    module, beams = make(), torch.tensor([2, 0, 0, 1])
    query, key, value = inputs().values()
    *_, state = module.step(query[:, 0], module.prepare(key, LENGTHS, value))
    wanted = module.step(query[:, 1], state)
    chosen = state.index_select(beams)
    found = module.step(query[beams, 1], chosen)
    for a, b in zip(found[:2], wanted[:2], strict=True):  # rows elsewhere may round otherwise
        assert_within_budget(a, b[beams], b[beams].double())
    assert torch.equal(chosen.key_lengths, LENGTHS[beams])


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_nothing_beyond_the_length_is_seen(make: Callable[[], nn.Module]) -> None:
    """Not even a NaN has an effect; a memory of length 0 gives zeros."""
    module, lengths = make(), torch.tensor([5, 0, 13])
    query, key, value = inputs().values()
    with torch.no_grad():
        key[0, 5:], value[0, 5:], key[1] = float("nan"), float("nan"), float("nan")
    context, weights = module(query, key, value, key_lengths=lengths, return_weights=True)
    assert not weights[0, :, 5:].any() and not weights[1].any() and not context[1].any()
    leaves = [query, key, value, *module.parameters()]
    for gradient in torch.autograd.grad(context.square().sum(), leaves):
        assert gradient.isfinite().all()


def test_detached_weights_carry_no_gradient() -> None:
    query, key, value = inputs().values()
    for name, reaches in [("both", True), ("detached", False)]:
        context = location(name)(query, key, value)
        (gradient,) = torch.autograd.grad(context[:, -1].sum(), query)
        assert bool(gradient[:, :-1].any()) is reaches


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_round_trips(make: Callable[[], nn.Module]) -> None:
    module, given = make(), inputs().values()
    wanted = module(*given)
    other = make()
    other.load_state_dict(module.state_dict())
    for each in (other, *(copied(module) for copied in COPIES)):
        assert torch.equal(each(*given), wanted)
    state = COPIES[1](module.prepare(*list(given)[1:2]))
    assert torch.equal(state.keys, module.prepare(*list(given)[1:2]).keys)
    assert not torch.equal(other.reset_parameters() or other(*given), wanted)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_half_precision(make: Callable[[], nn.Module]) -> None:
    """Sums of weights stay in float32; autocast works throughout."""
    module, (query, key, value) = make(), (x.detach() for x in inputs().values())
    with torch.autocast("cpu", BF16):
        assert module(query, key, value).dtype == BF16
    module.to(BF16)
    query, key, value = (x.to(BF16) for x in (query, key, value))
    state = module.prepare(key, LENGTHS, value)
    context, weights, state = module.step(query[:, 0], state)
    assert context.dtype == weights.dtype == BF16 and state.cumulative.dtype == torch.float32
    assert module(query, key, value).isfinite().all()


def test_compiles_whole() -> None:
    module, given = location("both"), inputs()

    def compiled(module: nn.Module, *inputs: Tensor, **options: Any) -> tuple[Tensor, ...]:
        whole = torch.compile(module, fullgraph=True, backend="aot_eager")
        return whole(*inputs, **options, return_weights=True)

    check_twin(module, formula, given, call=compiled, key_lengths=LENGTHS)


@pytest.mark.parametrize("coverage", [None, torch.rand(B, M)], ids=["first", "later"])
def test_coverage_loss_is_its_sum(coverage: Tensor | None) -> None:
    weights = torch.rand(B, N, M, dtype=torch.float64)
    covered = torch.zeros(B, M, dtype=torch.float64) if coverage is None else coverage.double()
    found, wanted = coverage_loss(weights, coverage), []
    for i in range(N):
        wanted.append(torch.minimum(weights[:, i], covered).sum(-1))
        one = coverage_loss(weights[:, i : i + 1], covered)
        assert torch.equal(one.squeeze(1), wanted[-1])
        covered = covered + weights[:, i]
    wanted = torch.stack(wanted, 1)
    assert_within_budget(found, wanted, wanted)


def test_nothing_to_do() -> None:
    module = location("both")
    query, key, _ = inputs().values()
    context, weights = module(query[:, :0], key, return_weights=True)
    assert context.shape == (B, 0, SIZES[1]) and weights.shape == (B, 0, M)
    assert module(query, key[:, :0]).eq(0).all()
    assert coverage_loss(weights).shape == (B, 0)


REFUSED: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "kernel_size": (ValueError, lambda: LocationSensitiveAttention(*SIZES, kernel_size=4)),
    "channels": (ValueError, lambda: LocationSensitiveAttention(*SIZES, channels=0)),
    "cumulative": (ValueError, lambda: LocationSensitiveAttention(*SIZES, cumulative="all")),
    "initial": (ValueError, lambda: CoverageAttention(*SIZES, initial="ones")),
    "key": (ValueError, lambda: call(key=normal(B, M, 4))),
    "key ": (ValueError, lambda: call(key=normal(M, SIZES[1]))),
    "value": (ValueError, lambda: call(value=normal(B, M + 1, 4))),
    "query": (ValueError, lambda: call(query=normal(B + 1, N, SIZES[0]))),
    "query ": (ValueError, lambda: call(query=normal(B, SIZES[0]))),
    "query  ": (TypeError, lambda: call(query=[1.0])),
    "key_lengths": (ValueError, lambda: call(key_lengths=torch.tensor([1, 2]))),
    "key_lengths ": (ValueError, lambda: call(key_lengths=torch.tensor([1, 2, M + 1]))),
    "key_lengths  ": (TypeError, lambda: call(key_lengths=torch.tensor([1.0, 2.0, 3.0]))),
    "attn_mask": (ValueError, lambda: call(attn_mask=torch.ones(N, M + 1, dtype=torch.bool))),
    "attn_mask ": (TypeError, lambda: call(attn_mask=torch.ones(N, M, dtype=torch.int32))),
    "coverage": (ValueError, lambda: coverage_loss(torch.rand(B, N, M), torch.rand(B, N))),
    "weights": (ValueError, lambda: coverage_loss(torch.rand(M))),
}


def call(**changes: Any) -> Tensor:
    return location("both")(**(inputs() | changes))


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    error, attempt = REFUSED[name]
    with pytest.raises(error, match=f"^{name.strip()} must"):
        attempt()
