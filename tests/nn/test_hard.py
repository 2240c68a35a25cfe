"""Hard attention: draw one position, with an unbiased score-function gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F64, normal
from helpers.nn_twins import COPIES, SIZES, check_twin, masked, memory_and_query, scores_of
from torch import Tensor, nn

from attnkernels.nn import HardAttention, HardChoice, score_function_loss
from attnkernels.testing import assert_within_budget

B, N, M = 3, 4, 6
LENGTHS = torch.tensor([4, 6, 1])
inputs = partial(memory_and_query, B, N, M)


def hard(**options: Any) -> HardAttention:
    module = HardAttention(*SIZES, **options)
    with torch.no_grad():
        module.weight.mul_(3)
    return module


def log_probabilities(module: nn.Module, query: Tensor, key: Tensor, **masks: Any) -> Tensor:
    return masked(module.scale * scores_of(module, query, key), **masks).log_softmax(-1)


def formula(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    positions: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, ...]:
    """Return context, log-probability and entropy of the positions, by default the likeliest."""
    log_p = log_probabilities(module, query, key, **options)
    at = log_p.argmax(-1) if positions is None else positions
    context = torch.stack([value[b, at[b]] for b in range(B)])
    if module.evaluation == "expected":
        context = log_p.exp() @ value
    entropy = -(log_p.exp() * log_p.nan_to_num(0, 0, 0)).sum(-1)
    return context, log_p.gather(-1, at.unsqueeze(-1)).squeeze(-1), entropy


def without_positions(choice: HardChoice) -> tuple[Tensor, ...]:
    return choice.context, choice.log_prob, choice.entropy


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize(
    "options",
    [{}, {"evaluation": "expected", "normalize": True}, {"scale": 2.0, "bias": False}],
    ids=str,
)
def test_in_evaluation_it_is_its_formula(options: dict[str, Any], lengths: Tensor | None) -> None:
    def call(module: nn.Module, *inputs: Tensor, **options: Any) -> tuple[Tensor, ...]:
        return without_positions(module(*inputs, **options))

    mask = normal(1, N, M, grad=False)
    check_twin(
        hard(**options).eval(), formula, inputs(), call=call, key_lengths=lengths, attn_mask=mask
    )


def test_in_training_it_is_its_formula_at_what_was_drawn() -> None:
    module, given = hard(), inputs()
    drawn = module(*given.values(), generator=torch.Generator().manual_seed(5)).positions
    assert len(drawn.unique()) > 1

    def call(module: nn.Module, *inputs: Tensor, **_: Any) -> tuple[Tensor, ...]:
        choice = module(*inputs, key_lengths=LENGTHS, generator=torch.Generator().manual_seed(5))
        assert torch.equal(choice.positions, positions)
        return without_positions(choice)

    generator = torch.Generator().manual_seed(5)
    positions = module(*given.values(), key_lengths=LENGTHS, generator=generator).positions
    check_twin(module, formula, given, call=call, positions=positions, key_lengths=LENGTHS)


def test_draws_follow_the_distribution_and_the_generator() -> None:
    module, (query, key, _) = hard(), inputs().values()
    many = query[:1, :1].expand(1, 20_000, -1)
    generator = torch.Generator().manual_seed(1)
    positions = module(many, key[:1], generator=generator).positions
    p = log_probabilities(module, query, key)[0, 0].exp()
    found = positions.flatten().bincount(minlength=M) / 20_000
    assert ((found - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt()).all()
    again = module(many, key[:1], generator=generator.manual_seed(1)).positions
    assert torch.equal(again, positions)
    torch.manual_seed(1)
    first = module(many, key[:1]).positions
    torch.manual_seed(1)
    assert torch.equal(module(many, key[:1]).positions, first)
    assert not torch.equal(module(many, key[:1]).positions, first)


@pytest.mark.parametrize("baseline", [0.0, 0.7, "of each query"], ids=str)
def test_the_score_function_gradient_is_not_biased(baseline: Any) -> None:
    """All positions are enumerated: sum_j p_j * estimate_j is the gradient of -sum_j p_j r_j."""
    module = hard().double()
    query, key = normal(B, N, SIZES[0], dtype=F64), normal(B, M, SIZES[1], dtype=F64)
    reward = normal(B, N, M, dtype=F64, grad=False)
    if baseline == "of each query":
        baseline = reward.mean(-1)
    leaves = [query, key, *module.parameters()]
    log_p = log_probabilities(module, query, key, key_lengths=LENGTHS)
    p = log_p.exp()
    wanted = torch.autograd.grad(-(p * reward).sum(), leaves)

    estimated = [torch.zeros_like(x) for x in leaves]
    for j in range(M):
        choice = chosen(module, query, key, j)
        loss = score_function_loss(choice.log_prob, reward[..., j], baseline)
        taken = p[..., j].detach() * loss  # every query weighs its own estimate
        gradients = torch.autograd.grad(taken.sum(), leaves, materialize_grads=True)
        estimated = [a + b for a, b in zip(estimated, gradients, strict=True)]
    for a, b in zip(estimated, wanted, strict=True):
        assert_within_budget(a, b, b, magnitude=50.0)


def chosen(module: HardAttention, query: Tensor, key: Tensor, j: int) -> HardChoice:
    """Return the module's choice if the draw is j, or 0 where j is beyond the length."""

    def draw(rows: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.where(rows[:, j : j + 1] > 0, j, 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "multinomial", draw)
        return module(query, key, key_lengths=LENGTHS)


def test_a_baseline_takes_variance_away() -> None:
    """A constant reward has a gradient of 0; with it as the baseline, so has every sample."""
    log_prob = normal(B, N)
    assert not score_function_loss(log_prob, 3.0, 3.0).any()
    reward = torch.full((B, 1), 2.0, requires_grad=True)
    loss = score_function_loss(log_prob, reward, torch.ones((), requires_grad=True))
    assert torch.equal(loss, -log_prob)
    loss.sum().backward()
    assert reward.grad is None and torch.equal(log_prob.grad, -torch.ones(B, N))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("evaluation", ["argmax", "expected"])
def test_nothing_beyond_the_length_is_chosen(evaluation: str, training: bool) -> None:
    module, lengths = hard(evaluation=evaluation).train(training), torch.tensor([2, 0, 6])
    _, key, value = inputs().values()
    query = normal(B, 500, SIZES[0])
    with torch.no_grad():
        key[0, 2:], value[0, 2:], key[1] = float("nan"), float("nan"), float("nan")
    keep = torch.rand(B, 500, M) < 0.8
    keep[0, 7] = False
    choice = module(query, key, value, key_lengths=lengths, attn_mask=keep)
    assert (choice.positions < lengths.unsqueeze(-1)).all()
    some = choice.positions >= 0
    assert not some[1].any() and not some[0, 7] and some[2].any()
    assert keep.gather(-1, choice.positions.clamp(min=0).unsqueeze(-1)).squeeze(-1)[some].all()
    for each in (choice.context, choice.log_prob, choice.entropy):
        assert each.isfinite().all() and not each[1].any() and not each[0, 7].any()
    total = choice.context.sum() + choice.log_prob.sum() + choice.entropy.sum()
    for gradient in torch.autograd.grad(total, [query, key, value, *module.parameters()]):
        assert gradient.isfinite().all()


def test_steps_are_the_call() -> None:
    module, mask = hard().eval(), normal(1, N, M, grad=False)

    def steps(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        prepared, found = module.prepare(key, LENGTHS, value), []
        for i in range(N):
            choice = module.step(query[:, i], prepared, attn_mask=mask[0, i].to(query))
            found.append(without_positions(choice))
        return tuple(torch.stack(each, 1) for each in zip(*found, strict=True))

    def call(module: nn.Module, query: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        found = module(query, *rest, key_lengths=LENGTHS, attn_mask=mask.to(query))
        return without_positions(found)

    check_twin(module, call, inputs(), call=steps)
    query, key, value = inputs().values()
    module.train()
    first, second = (torch.Generator().manual_seed(2) for _ in range(2))
    for i in range(N):
        stepped = module.step(query[:, i], module.prepare(key), generator=first)
        called = module(query[:, i : i + 1], key, generator=second)
        assert torch.equal(stepped.positions, called.positions.squeeze(1))


def test_beams_are_reordered() -> None:
    module, beams = hard().eval(), torch.tensor([2, 0, 0])
    query, key, value = inputs().values()
    prepared = module.prepare(key, LENGTHS, value)
    wanted = module.step(query[:, 0], prepared)
    found = module.step(query[beams, 0], prepared.index_select(beams))
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b[beams])


def test_round_trips_and_half_precision() -> None:
    module, given = hard(normalize=True).eval(), list(inputs().values())
    wanted = module(*given)
    other = hard(normalize=True).eval()
    other.load_state_dict(module.state_dict())
    for each in (other, *(copied(module) for copied in COPIES)):
        assert all(torch.equal(a, b) for a, b in zip(each(*given), wanted, strict=True))
    narrow = module.to(BF16).train()(*(x.to(BF16) for x in given), key_lengths=LENGTHS)
    assert narrow.context.dtype == BF16 and narrow.log_prob.dtype == torch.float32
    with torch.autocast("cpu", BF16):
        assert hard()(*given).log_prob.isfinite().all()


def test_compiles_whole() -> None:
    module, given = hard().eval(), list(inputs().values())
    whole = torch.compile(module, fullgraph=True, backend="aot_eager")
    found, wanted = (each(*given, key_lengths=LENGTHS) for each in (whole, module))
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_to_do(training: bool) -> None:
    module, (query, key, _) = hard().train(training), inputs().values()
    assert module(query[:, :0], key).context.shape == (B, 0, SIZES[1])
    choice = module(query, key[:, :0])
    assert not choice.context.any() and (choice.positions == -1).all()


REFUSED: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "evaluation": (ValueError, lambda: HardAttention(*SIZES, evaluation="mean")),
    "query": (ValueError, lambda: hard()(normal(B, N, 2), normal(B, M, SIZES[1]))),
    "key": (TypeError, lambda: hard()(normal(B, N, SIZES[0]), None)),
    "attn_mask": (
        ValueError,
        lambda: hard()(**inputs(), attn_mask=torch.ones(2, M, dtype=torch.bool)),
    ),
    "key_lengths": (ValueError, lambda: hard()(**inputs(), key_lengths=torch.tensor([-1, 2, 3]))),
    "log_prob": (TypeError, lambda: score_function_loss(1.0, 1.0)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    error, attempt = REFUSED[name]
    with pytest.raises(error, match=f"^{name} must"):
        attempt()
