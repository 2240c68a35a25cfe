"""The pointer network: searches against brute force, gradients, and learning."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from helpers.inputs import F32, F64, normal
from scipy.spatial import ConvexHull
from torch import Tensor, nn

from attnkernels.models.pointer import PointerNetwork
from attnkernels.testing import assert_within_budget

B, M, FEATURES, HIDDEN = 3, 6, 2, 9
LENGTHS = torch.tensor([M, 4, 1])
TARGET = torch.tensor([[2, 5, 1, 6, 0, 0], [4, 3, 2, 1, 0, 0], [1, 0, 0, 0, 0, 0]])


def make(dtype: torch.dtype = F64, **options: Any) -> PointerNetwork:
    network = PointerNetwork(FEATURES, hidden_dim=HIDDEN, **options).to(dtype)
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.mul_(3.0)  # scores far enough apart to differ
    return network


def points(dtype: torch.dtype = F64, batch: int = B) -> Tensor:
    return normal(batch, M, FEATURES, dtype=dtype)


def hulls(count: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return points (count, n, 2) of the unit square and their convex hulls, ended and padded.

    A hull runs counterclockwise from its point of lowest number (Vinyals et al., section 3.1).
    """
    drawn = np.random.default_rng(seed).random((count, n, 2))
    target = torch.zeros(count, n + 1, dtype=torch.int64)
    for row, each in zip(target, drawn, strict=True):
        corners = ConvexHull(each).vertices
        corners = np.roll(corners, -corners.argmin()) + 1
        row[: len(corners)] = torch.from_numpy(corners)
    return torch.from_numpy(drawn).float(), target


def numbers(count: int, n: int) -> tuple[Tensor, Tensor]:
    """Return numbers (count, n, 1) and their positions in ascending order, ended."""
    drawn = torch.rand(count, n, 1)
    order = drawn.squeeze(-1).argsort(1) + 1
    return drawn, torch.cat([order, torch.zeros(count, 1, dtype=torch.int64)], 1)


def train(network: nn.Module, steps: int, batch: Any, rate: float) -> float:
    """Train, and return the loss of the last step."""
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for _ in range(steps):
        source, target = batch()
        loss = network.loss(source, torch.full((len(source),), source.shape[1]), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
    return loss.item()


def test_sorts_five_numbers() -> None:
    network = PointerNetwork(1, hidden_dim=32, distinct=True)
    train(network, 350, lambda: numbers(64, 5), 1e-2)
    source, target = numbers(500, 5)
    found = network.greedy_search(source, torch.full((500,), 5), max_length=6).tokens[:, 0]
    assert (found == target).all(1).double().mean() > 0.8  # there are 120 orders


def test_overfits_hulls() -> None:
    source, target = hulls(8, 6, seed=1)
    network = PointerNetwork(2, hidden_dim=64)
    assert train(network, 200, lambda: (source, target), 1e-2) < 0.02
    found = network.beam_search(source, torch.full((8,), 6), max_length=7, beams=3)
    assert torch.equal(found.tokens[:, 0], target[:, : found.tokens.shape[2]])
    assert torch.equal(found.lengths[:, 0], (target > 0).sum(1) + 1)


def test_the_distribution_is_that_of_the_formula() -> None:
    """Compute one source at a time, without padding, step by step."""
    network = make()
    source = points()
    found = network(source, LENGTHS, TARGET)
    for b, n in enumerate(LENGTHS.tolist()):
        e, state = network.encoder(source[b : b + 1, :n])
        e = torch.cat([network.end, e[0].flatten()]).view(n + 1, HIDDEN)
        fed = network.begin
        for t, position in enumerate(TARGET[b].tolist()):
            d, state = network.decoder(fed.view(1, 1, -1), state)
            head = network.head
            u = torch.tanh(head.query_proj(d[0]) + head.key_proj(e)) @ head.weight
            log_p = u.log_softmax(0)
            assert_within_budget(found[b, t, : n + 1], log_p, log_p, magnitude=100.0)
            assert (found[b, t, n + 1 :] == -torch.inf).all()
            fed = network.begin if position == 0 else source[b, position - 1]


@pytest.mark.parametrize("distinct", [False, True])
def test_float32_is_within_the_budget(distinct: bool) -> None:
    network, source = make(F32, distinct=distinct), points(F32)
    results = []
    for backend, dtype in ((None, F32), ("reference", F32), ("reference", F64)):
        each = copy.deepcopy(network).to(dtype)
        each.head.backend = backend
        x = source.detach().to(dtype).requires_grad_()
        loss = each.loss(x, LENGTHS, TARGET)
        at = [x, *each.parameters()]
        results.append([each(x, LENGTHS, TARGET), loss, *torch.autograd.grad(loss, at)])
    for x, y, z in zip(*results, strict=True):
        size = z[z.isfinite()].abs().max().item()
        assert_within_budget(x, y, z, magnitude=30 * max(1.0, size))


def test_padding_is_not_read() -> None:
    network, source = make(), points()
    spoilt = source.detach().clone()
    spoilt[1, 4:], spoilt[2, 1:] = torch.nan, torch.inf
    spoilt.requires_grad_()
    log_p = network(spoilt, LENGTHS, TARGET)
    assert torch.equal(log_p, network(source, LENGTHS, TARGET))
    network.loss(spoilt, LENGTHS, TARGET).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in network.parameters())
    longer = torch.cat([TARGET, TARGET.new_zeros(B, 4)], 1)  # padding of targets is not read either
    assert_within_budget(
        network.loss(source, LENGTHS, longer), *[network.loss(source, LENGTHS, TARGET)] * 2
    )


@pytest.mark.parametrize("distinct", [False, True])
def test_a_wide_beam_is_brute_force(distinct: bool) -> None:
    """Find all outputs of up to three positions, in order of their teacher-forced probability."""
    network, n, longest = make(distinct=distinct), 3, 3
    source, lengths = points(batch=2)[:, :n], torch.tensor([n, n])
    outputs = [
        output
        for length in range(1, longest + 1)
        for output in product(range(n + 1), repeat=length)
        if 0 not in output[:-1]
        and (output[-1] == 0 or length == longest)
        and not (distinct and len(set(output)) < len(output))
    ]
    assert len(outputs) == (16 if distinct else 40)
    log_probs = []
    with torch.no_grad():
        for output in outputs:
            log_p = network(source, lengths, torch.tensor([output, output]))
            log_probs.append(log_p[:, range(len(output)), output].sum(-1))
    wanted, order = torch.stack(log_probs, 1).sort(1, descending=True)
    found = network.beam_search(source, lengths, max_length=longest, beams=len(outputs) + 2)
    torch.testing.assert_close(found.log_probs[:, : len(outputs)], wanted)
    assert found.log_probs[:, len(outputs) :].isneginf().all()
    for b, ranks in enumerate(order.tolist()):
        for rank, at in enumerate(ranks):
            padded = [*outputs[at], 0, 0][:longest]
            assert found.tokens[b, rank].tolist() == padded


@pytest.mark.parametrize("distinct", [False, True])
def test_a_beam_of_one_is_greedy(distinct: bool) -> None:
    network, source = make(distinct=distinct), points()
    with torch.no_grad():
        network.end.sub_(5.0)
    found = network.beam_search(source, LENGTHS, max_length=8, beams=1)
    wanted = network.greedy_search(source, LENGTHS, max_length=8)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y)
    for row, length in zip(wanted.tokens[:, 0].tolist(), LENGTHS.tolist(), strict=True):
        pointed = [position for position in row if position]
        assert max(pointed, default=0) <= length
        if distinct:
            assert len(set(pointed)) == len(pointed)


def test_a_checkpoint_brings_it_back(tmp_path: Any) -> None:
    network, source = make(), points()
    torch.save(network.state_dict(), tmp_path / "network.pt")
    other = make()
    other.load_state_dict(torch.load(tmp_path / "network.pt", weights_only=True))
    assert torch.equal(network(source, LENGTHS, TARGET), other(source, LENGTHS, TARGET))


def test_refusals() -> None:
    network, source = make(), points()
    with pytest.raises(ValueError, match="hidden_dim must be an int of at least 1, got 0"):
        PointerNetwork(2, hidden_dim=0)
    with pytest.raises(
        ValueError,
        match=r"source must have shape \(B, m, features\) = \(\*, \*, 2\), got \(3, 6, 1\)",
    ):
        network(source[..., :1], LENGTHS, TARGET)
    with pytest.raises(ValueError, match=r"source must have shape .*, got \(6, 2\)"):
        network(source[0], LENGTHS, TARGET)
    with pytest.raises(TypeError, match="source_lengths must be int64, got torch.float32"):
        network(source, LENGTHS.float(), TARGET)
    with pytest.raises(
        ValueError, match=r"source_lengths must lie in \[1, 6\] .*, got values from 0 to 7"
    ):
        network(source, torch.tensor([0, 7, 1]), TARGET)
    with pytest.raises(TypeError, match="target must be int64, got torch.float64"):
        network(source, LENGTHS, TARGET.double())
    with pytest.raises(
        ValueError, match=r"target must have tokens in \[0, 7\), got tokens from -1"
    ):
        network(source, LENGTHS, TARGET - 1)
    with pytest.raises(
        ValueError, match=r"target must have shape \(B, T\) = \(3, \*\), got \(2, 6\)"
    ):
        network(source, LENGTHS, TARGET[:2])
    with pytest.raises(ValueError, match="target must point within source_lengths"):
        network(source, LENGTHS, TARGET.flip(0))
    network.distinct = True
    with pytest.raises(ValueError, match="target must be distinct positions"):
        network(source, LENGTHS, torch.tensor([[2, 5, 2]]).expand(B, -1).clamp(max=1))
    with pytest.raises(ValueError, match="beams must be an int of at least 1, got 0"):
        network.beam_search(source, LENGTHS, max_length=3, beams=0)
