"""Monotonic attention: expected alignment in training, the first stop in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F32, F64, normal
from helpers.nn_twins import (
    COPIES,
    SIZES,
    check_twin,
    masked,
    memory_and_query,
    results,
    scores_of,
    with_weights,
)
from torch import Tensor, nn

from attnkernels.nn import MonotonicAttention, expected_alignment
from attnkernels.testing import assert_within_budget

B, N, M = 3, 4, 11
LENGTHS = torch.tensor([5, 11, 1])
inputs = partial(memory_and_query, B, N, M)


def attention(**options: Any) -> MonotonicAttention:
    module = MonotonicAttention(*SIZES, **({"noise": 0.0, "score_bias": -0.5} | options))
    with torch.no_grad():
        if module.gain is not None:
            module.gain.fill_(3.0)
            module.bias.normal_()
    return module


def recurrence(energy: Tensor, previous: Tensor) -> Tensor:
    """Return the alignment of section 2.3 as written, one position after another."""
    p, q, alpha = energy.sigmoid(), torch.zeros_like(previous[..., 0]), []
    for j in range(energy.shape[-1]):
        q = (1 - p[..., j - 1]) * q + previous[..., j] if j else previous[..., 0]
        alpha.append(p[..., j] * q)
    return torch.stack(alpha, -1)


def algorithm_1(energy: Tensor, previous: Tensor) -> Tensor:
    """Return the first position with p > 1/2 from the previous one on, in plain Python."""
    alpha = torch.zeros_like(previous)
    for b in range(len(energy)):
        starts = previous[b].nonzero().flatten().tolist()
        for j in range(starts[0], energy.shape[1]) if starts else ():
            if energy[b, j] > 0:
                alpha[b, j] = 1
                break
    return alpha


def formula(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    **masks: Any,
) -> tuple[Tensor, ...]:
    energy = masked(scores_of(module, query, key) + module.score_bias, **masks)
    align = recurrence if module.training or module.evaluation == "expected" else algorithm_1
    alpha, weights = torch.eye(M)[:1].expand(B, M).to(energy), []
    for i in range(N):
        alpha = align(energy[:, i], alpha)
        weights.append(alpha)
    weights = torch.stack(weights, 1)
    return weights @ value, weights


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    "options", [{}, {"normalize": False, "bias": True}, {"evaluation": "expected"}], ids=str
)
def test_it_is_its_formula(options: dict[str, Any], training: bool, lengths: Tensor | None) -> None:
    module, mask = attention(**options).train(training), normal(1, N, M, grad=False)
    check_twin(module, formula, inputs(), call=with_weights, key_lengths=lengths, attn_mask=mask)


@pytest.mark.parametrize("n, m", [(1, 1), (1, 5), (3, 1), (3, 4), (4, 5)])
def test_expectation_is_that_over_all_paths(n: int, m: int) -> None:
    """Sum over paths t_1 <= ... <= t_n by probability; those that pass the end add nothing."""
    energy = normal(n, m, dtype=F64, size=1.5, grad=False)
    p = energy.sigmoid()
    wanted = torch.zeros(n, m, dtype=F64)
    for i in range(n):
        for path in combinations_with_replacement(range(m), i + 1):
            probability, start = torch.ones((), dtype=F64), 0
            for row, stop in enumerate(path):
                probability = probability * (1 - p[row, start:stop]).prod() * p[row, stop]
                start = stop
            wanted[i, path[-1]] += probability
    alpha = torch.eye(m, dtype=F64)[0]
    for i in range(n):
        alpha = expected_alignment(energy[i], alpha)
        assert_within_budget(alpha, wanted[i], wanted[i], magnitude=1.0)


def test_draws_have_the_expected_alignment() -> None:
    """Simulate the process: stop with probability p, or move on."""
    draws, energy = 20_000, normal(3, 6, dtype=F64, grad=False)
    alpha = torch.eye(6, dtype=F64)[0]
    at, over = torch.zeros(draws, dtype=torch.long), 6
    for row in energy:
        alpha = expected_alignment(row, alpha)
        stops = torch.rand(draws, 6) < row.sigmoid()
        stops &= torch.arange(6) >= at.unsqueeze(1)
        at = torch.where(stops.any(1), stops.int().argmax(1), over)
        found = at.bincount(minlength=7)[:6] / draws
        assert ((found - alpha).abs() < 5 * (alpha * (1 - alpha) / draws).sqrt() + 1e-9).all()


@pytest.mark.parametrize(
    "shift, spread", [(0.0, 1.0), (-12.0, 2.0), (12.0, 2.0), (0.0, 60.0), (-200.0, 1.0)]
)
def test_long_memories_and_certain_energies(shift: float, spread: float) -> None:
    """Cover energies where cumulative products underflow, or 1 - p loses all its bits."""
    energy = normal(2, 700, dtype=F64, size=spread, grad=False) + shift
    previous = torch.rand(2, 700, dtype=F64).softmax(-1)
    given = {"energy": energy.to(F32).requires_grad_(), "previous": previous.to(F32)}
    given["previous"].requires_grad_()

    def call(_: nn.Module, *tensors: Tensor) -> tuple[Tensor, ...]:
        return (expected_alignment(*tensors),)

    def exact(_: nn.Module, energy: Tensor, previous: Tensor) -> tuple[Tensor, ...]:
        """Compute 1 - p to the last bit, for which float64 has room."""
        p, go_on = energy.sigmoid(), (-energy).sigmoid()
        q, alpha = previous[:, 0], [p[:, 0] * previous[:, 0]]
        for j in range(1, energy.shape[-1]):
            q = go_on[:, j - 1] * q + previous[:, j]
            alpha.append(p[:, j] * q)
        return (torch.stack(alpha, -1),)

    check_twin(nn.Module(), exact, given, call=call)
    found = results(call, nn.Module(), given, {})["output 0"]
    assert (found >= 0).all() and (found.sum(-1) <= 1 + 1e-5).all()


def test_what_hardly_ever_goes_on_keeps_its_bits() -> None:
    """Each position is reached 6e-6 times as often as the last: no large number hides errors."""
    energy = torch.full((6,), 12.0)
    alpha = expected_alignment(energy, torch.eye(6)[0])
    exact = energy.double().neg().sigmoid().pow(torch.arange(6)) * energy.double().sigmoid()
    one = torch.ones(6, dtype=F64)
    assert_within_budget((alpha / exact).to(F32), one.to(F32), one, magnitude=6.0)


def test_what_passed_the_end_looks_at_nothing_ever_after() -> None:
    module = attention().eval()
    query, key, value = inputs().values()
    masks = torch.ones(1, N, M, dtype=torch.bool)
    masks[:, 1] = False
    context, weights = module(query, key, value, attn_mask=masks, return_weights=True)
    assert not weights[:, 1:].any() and not context[:, 1:].any()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_nothing_beyond_the_length_is_looked_at(training: bool) -> None:
    module, lengths = attention(score_bias=2.0).train(training), torch.tensor([5, 0, 11])
    query, key, value = inputs().values()
    with torch.no_grad():
        key[0, 5:], value[0, 5:], key[1] = float("nan"), float("nan"), float("nan")
    keep = torch.rand(B, N, M) < 0.7
    context, weights = module(
        query, key, value, key_lengths=lengths, attn_mask=keep, return_weights=True
    )
    assert not weights[0, :, 5:].any() and not weights[1].any() and not context[1].any()
    assert not weights[~keep].any() and weights[2].any()
    leaves = [query, key, value, *module.parameters()]
    gradients = torch.autograd.grad(context.square().sum(), leaves, materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_hard_weights_move_on_only(training: bool) -> None:
    """In evaluation a step takes one position, never before the last; in training, fractions."""
    module = attention().train(training)
    _, weights = with_weights(module, *inputs().values())
    if training:
        assert ((weights > 0) & (weights < 1)).any()
        return
    assert set(weights.unique().tolist()) == {0.0, 1.0}
    where = torch.where(weights.any(-1), weights.argmax(-1), M)
    assert (where.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_steps_are_the_loop(noise: float, training: bool) -> None:
    module, mask = attention(noise=noise).train(training), normal(1, N, M, grad=False)

    def steps(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        state, generator, found = module.prepare(key, LENGTHS, value), seeded(query), []
        for i in range(N):
            *each, state = module.step(
                query[:, i], state, attn_mask=mask[0, i].to(query), generator=generator
            )
            found.append(each)
        contexts, weights = (torch.stack(each, 1) for each in zip(*found, strict=True))
        return contexts, weights

    def loop(module: nn.Module, query: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        options = {"attn_mask": mask.to(query), "generator": seeded(query)}
        return with_weights(module, query, *rest, key_lengths=LENGTHS, **options)

    def seeded(_: Tensor) -> torch.Generator:
        return torch.Generator().manual_seed(4)

    if noise:  # other dtypes draw other numbers
        module, given = module.double(), {n: x.double() for n, x in inputs().items()}
        for a, b in zip(steps(module, *given.values()), loop(module, *given.values()), strict=True):
            assert_within_budget(a, b, b, magnitude=10.0)
    else:
        check_twin(module, loop, inputs(), call=steps)


def test_noise_is_for_training_and_follows_the_generator() -> None:
    module, given = attention(noise=1.0), list(inputs().values())
    first, again = (module(*given, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(module(*given), first)
    for evaluation in ("hard", "expected"):
        module.eval().evaluation = evaluation
        assert torch.equal(module(*given), module(*given))


def test_beams_are_reordered() -> None:
    module, beams = attention().eval(), torch.tensor([2, 0, 0, 1])
    query, key, value = inputs().values()
    *_, state = module.step(query[:, 0], module.prepare(key, LENGTHS, value))
    wanted = module.step(query[:, 1], state)
    found = module.step(query[beams, 1], state.index_select(beams))
    for a, b in zip(found[:2], wanted[:2], strict=True):
        assert torch.equal(a, b[beams])


def test_round_trips() -> None:
    module, given = attention(), list(inputs().values())
    wanted = module(*given)
    other = attention()
    other.load_state_dict(module.state_dict())
    for each in (other, *(copied(module) for copied in COPIES)):
        assert torch.equal(each(*given), wanted)
    with torch.no_grad():
        other.score_bias.fill_(9.0)
    other.reset_parameters()
    assert other.score_bias == -0.5 and not torch.equal(other(*given), wanted)


def test_half_precision() -> None:
    """Alignments stay in float32 from step to step; autocast runs through."""
    module, given = attention(noise=1.0), list(inputs().values())
    with torch.autocast("cpu", BF16):
        assert module(*given).isfinite().all()
    module.to(BF16)
    query, key, value = (x.to(BF16) for x in given)
    context, weights, state = module.step(query[:, 0], module.prepare(key, LENGTHS, value))
    assert context.dtype == weights.dtype == BF16 and state.previous.dtype == F32
    assert module(query, key, value).dtype == BF16


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_compiles_whole(training: bool) -> None:
    def compiled(module: nn.Module, *inputs: Tensor, **options: Any) -> tuple[Tensor, ...]:
        whole = torch.compile(module, fullgraph=True, backend="aot_eager")
        return whole(*inputs, **options, return_weights=True)

    module = attention().train(training)
    check_twin(module, formula, inputs(), call=compiled, key_lengths=LENGTHS)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_nothing_to_do(training: bool) -> None:
    module, (query, key, _) = attention().train(training), inputs().values()
    assert module(query[:, :0], key).shape == (B, 0, SIZES[1])
    context, weights = module(query, key[:, :0], return_weights=True)
    assert not context.any() and weights.shape == (B, N, 0)


REFUSED: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "evaluation": (ValueError, lambda: MonotonicAttention(*SIZES, evaluation="soft")),
    "noise": (ValueError, lambda: MonotonicAttention(*SIZES, noise=-1.0)),
    "previous": (ValueError, lambda: expected_alignment(torch.rand(2, 3), torch.rand(3))),
    "query": (ValueError, lambda: attention()(normal(B, N, 2), normal(B, M, SIZES[1]))),
    "key": (ValueError, lambda: attention()(normal(B, N, SIZES[0]), normal(B, M, 2))),
    "attn_mask": (TypeError, lambda: attention()(**inputs(), attn_mask=[True])),
    "key_lengths": (
        ValueError,
        lambda: attention()(**inputs(), key_lengths=torch.tensor([1, 2, 99])),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    error, attempt = REFUSED[name]
    with pytest.raises(error, match=f"^{name} must"):
        attempt()
