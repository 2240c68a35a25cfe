"""Recurrent visual attention: the sensor, the recurrence, and which loss teaches what."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.inputs import F64, normal
from helpers.nn_twins import COPIES, check_twin
from torch import Tensor

from attnkernels.models.glimpse import Glimpses, RecurrentAttentionModel, glimpse, hybrid_loss
from attnkernels.testing import assert_within_budget

B, CHANNELS, CLASSES, GLIMPSES = 3, 2, 4, 3
HEIGHT, WIDTH = 10, 14


def make(**options: Any) -> RecurrentAttentionModel:
    sizes = {"channels": CHANNELS, "size": 3, "scales": 2, "glimpses": GLIMPSES}
    return RecurrentAttentionModel(CLASSES, **(sizes | {"features": 6, "hidden": 10} | options))


def moved(**options: Any) -> RecurrentAttentionModel:
    """Return a model that does not look at the centre, with biases other than 0."""
    model = make(**options)
    torch.nn.init.normal_(model.locator.weight)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def image(dtype: torch.dtype = F64, grad: bool = False) -> Tensor:
    return normal(B, CHANNELS, HEIGHT, WIDTH, dtype=dtype, grad=grad)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_windows_are_slices(size: int) -> None:
    """Compare all windows whose edges lie on pixel edges, outside the image included."""
    images, scales, around = image(), 3, 20
    padded = F.pad(images, [around] * 4)
    for top in range(-size, HEIGHT + 1):
        for left in range(-size, WIDTH + 1):
            x, y = left + size / 2, top + size / 2
            at = torch.tensor([[2 * x / WIDTH - 1, 2 * y / HEIGHT - 1]], dtype=F64).expand(B, 2)
            seen = glimpse(images, at, size, scales)
            assert seen.shape == (B, scales, CHANNELS, size, size)
            for k in range(scales):
                side = size * 2**k
                row, column = (round(c - side / 2) + around for c in (y, x))
                if (c := x - side / 2) != round(c):
                    continue  # a wider window of odd size is half a pixel off
                window = padded[..., row : row + side, column : column + side]
                wanted = window.unflatten(-1, (size, -1)).unflatten(-3, (size, -1)).mean((-1, -3))
                assert_within_budget(seen[:, k], wanted, wanted, magnitude=10.0 * WIDTH)


def test_each_image_has_its_own_window() -> None:
    images = image()
    locations = normal(B, 2, dtype=F64, grad=False)
    together = glimpse(images, locations, 3, 2)
    for b in range(B):
        alone = glimpse(images[b : b + 1], locations[b : b + 1], 3, 2)
        assert torch.equal(together[b : b + 1], alone)
    assert not glimpse(images, torch.full((B, 2), 9.0, dtype=F64), 3, 2).any()


def twin(model: RecurrentAttentionModel, images: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    """Run the recurrence in plain operations, with this noise (T - 1, B, 2) in its locations."""
    location = images.new_zeros(len(images), 2)
    state = images.new_zeros(len(images), model.core.hidden_size)
    locations, log_probs, baselines = [location], [], []
    core = model.core
    for t in range(GLIMPSES):
        seen = glimpse(images, location, model.size, model.scales).flatten(1)
        what, where = model.what(seen).clamp(min=0), model.where(location).clamp(min=0)
        g = model.glimpse_from_what(what) + model.glimpse_from_where(where)
        state = g.clamp(min=0) @ core.weight_ih.mT + core.bias_ih + core.bias_hh + (
            state @ core.weight_hh.mT
        )  # fmt: skip
        state = state.clamp(min=0)
        if t + 1 < GLIMPSES:
            mean = model.locator(state).tanh()
            location = (mean + model.std * noise[t]).detach()
            density = -(((location - mean) / model.std) ** 2) / 2
            density = density - math.log(model.std) - math.log(2 * math.pi) / 2
            locations.append(location)
            log_probs.append(density.sum(-1))
            baselines.append(model.baseline(state.detach())[:, 0])
    stacked = (torch.stack(x, 1) for x in (locations, log_probs, baselines))
    return model.classifier(state), *stacked


@pytest.mark.parametrize("training", [True, False])
def test_against_a_twin(training: bool) -> None:
    noise = normal(GLIMPSES - 1, B, 2, dtype=F64, grad=False)

    def call(model: RecurrentAttentionModel, images: Tensor) -> tuple[Tensor, ...]:
        draws = iter(noise)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn", lambda *_, **__: next(draws))
            return tuple(model(images))

    def formula(model: RecurrentAttentionModel, images: Tensor) -> tuple[Tensor, ...]:
        return twin(model, images, noise.to(images) * training)

    inputs = {"images": image(torch.float32, grad=True)}
    check_twin(moved().train(training), formula, inputs, call=call)


def looks_right(**options: Any) -> RecurrentAttentionModel:
    """Return a model that answers 1 if its last glimpse, a point, is brighter than 0.5, else 0."""
    model = RecurrentAttentionModel(2, size=1, scales=1, features=1, hidden=1, **options).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name in ("what.weight", "glimpse_from_what.weight") else 0.0)
        model.core.weight_ih.fill_(0.5)
        model.classifier.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.classifier.bias.copy_(torch.tensor([0.5, -0.5]))
        model.locator.bias.copy_(torch.tensor([-0.1, 0.3]))
    return model


@pytest.mark.parametrize("glimpses, baseline", [(2, 0.0), (2, 0.5), (4, 0.5)])
def test_the_score_function_gradient_is_not_biased(glimpses: int, baseline: float) -> None:
    """On an image that is bright on the right the expected reward is Phi(mean_x / std)."""
    model, rows, std = looks_right(glimpses=glimpses, std=0.1), 200_000, 0.1
    with torch.no_grad():
        model.baseline.bias.fill_(baseline)
    images = (torch.arange(8) >= 4).double().expand(rows, 1, 8, 8)
    found = model(images, generator=torch.Generator().manual_seed(0))
    _, loss, _ = hybrid_loss(found, torch.ones(rows, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(loss, [model.locator.bias])

    mean = torch.tensor([-0.1, 0.3], dtype=F64).tanh()
    phi = torch.exp(-((mean[0] / std) ** 2) / 2) / math.sqrt(2 * math.pi) / std
    wanted = torch.stack([-phi, torch.zeros_like(phi)]) * (1 - mean**2)
    right = (found.locations[:, -1, 0] > 0).double()
    per_row = ((found.locations[:, 1:] - mean) / std**2).sum(1) * (1 - mean**2)
    per_row = -(right - baseline).unsqueeze(-1) * per_row
    error = per_row.std(0) / math.sqrt(rows)
    assert ((gradient - wanted).abs() < 4 * error).all()
    assert (error < 0.02 * phi).all()  # otherwise the line above would show little


def test_what_learns_from_what() -> None:
    model = moved()
    result = model(image(torch.float32))
    names = dict(model.named_parameters())
    seen = {"what", "where", "glimpse_from_what", "glimpse_from_where", "core"}
    learners = seen | {"classifier"}, seen | {"locator"}, {"baseline"}
    losses = hybrid_loss(result, torch.tensor([0, 1, 2]))
    for loss, wanted in zip(losses, learners, strict=True):
        gradients = torch.autograd.grad(
            loss, list(names.values()), retain_graph=True, allow_unused=True
        )
        learns = {
            name.split(".")[0]
            for name, g in zip(names, gradients, strict=True)
            if g is not None and g.any()
        }
        assert learns == wanted


def test_the_losses() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    log_prob, baseline = torch.tensor([[1.0, 2.0], [4.0, 8.0]]), torch.tensor([[0.5, 0], [0, 0.25]])
    result = Glimpses(logits, torch.zeros(2, 3, 2), log_prob, baseline)
    _, policy, regression = hybrid_loss(result, torch.tensor([0, 0]))  # right, wrong
    assert policy.item() == (-0.5 * 1 - 1.0 * 2 + 0.25 * 8) / 2
    assert regression.item() == (0.5**2 + 1.0 + 0.25**2) / 2


def train(model: RecurrentAttentionModel, steps: int, batch: Any, rate: float = 3e-3) -> None:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        images, labels = batch()
        loss = sum(hybrid_loss(model(images), labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_overfits_a_small_batch() -> None:
    model = make(features=32, hidden=64)
    images, labels = torch.rand(8, CHANNELS, HEIGHT, WIDTH), torch.arange(8) % CLASSES
    train(model, 150, lambda: (images, labels))
    assert torch.equal(model.eval()(images).logits.argmax(-1), labels)


def stripes(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (B, 1, 8, 24) with stripes at one end, their direction, and the end.

    The end is -1 for the left one and 1 for the right one.

    From the centre both kinds are the same: the finest window does not reach them, and those that
    do pool them.
    """
    right, labels = torch.randint(2, (2, batch))
    bars = torch.tensor([1.0, 0.0]).repeat(2).expand(4, 4)
    patches = torch.where(labels.bool()[:, None, None], bars, bars.mT)
    left, middle = (patches.new_zeros(batch, 4, n) for n in (4, 16))
    images = torch.cat([patches, middle, left], -1)
    images = torch.where(right.bool()[:, None, None], images.flip(-1), images)
    return F.pad(images.unsqueeze(1), (0, 0, 2, 2)), labels, 2 * right - 1


def test_learns_to_look_where_the_answer_is() -> None:
    """Learn one choice: the end where the coarsest window of the first glimpse sees stripes."""
    model = RecurrentAttentionModel(2, scales=3, glimpses=2, features=32, hidden=64)
    train(model, 300, lambda: stripes(64)[:2])
    images, labels, side = stripes(1000)
    found = model.eval()(images)
    assert (found.logits.argmax(-1) == labels).float().mean() > 0.95
    assert torch.equal(found.locations[:, -1, 0].sign(), side.float())


def test_draws() -> None:
    """Draws are reproducible, around the means with the given width; eval mode has no noise."""
    model, images = moved(std=0.3), image(torch.float32)[:1]
    many = images.expand(4000, *images.shape[1:])
    first, again = (model(many, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.locations, again.locations)
    assert not torch.equal(first.locations, model(many).locations)
    mean = model.eval()(images).locations
    assert torch.equal(mean, model(images).locations)
    drawn = first.locations[:, 1] - mean[:, 1]
    assert (drawn.mean(0).abs() < 5 * 0.3 / math.sqrt(4000)).all()
    assert ((drawn.std(0) / 0.3 - 1).abs() < 5 / math.sqrt(8000)).all()


def test_one_glimpse_chooses_nothing() -> None:
    model = make(glimpses=1)
    result = model(image(torch.float32))
    assert result.locations.shape == (B, 1, 2) and not result.locations.any()
    assert result.log_prob.shape == result.baseline.shape == (B, 0)
    losses = hybrid_loss(result, torch.zeros(B, dtype=torch.int64))
    assert losses[0] > 0 and not losses[1] and not losses[2]


def test_round_trips() -> None:
    model, images = moved().eval(), image(torch.float32)
    wanted = model(images)
    other = make().eval()
    other.load_state_dict(model.state_dict())
    for each in (other, *(copied(model) for copied in COPIES)):
        assert all(torch.equal(a, b) for a, b in zip(each(images), wanted, strict=True))
    assert model.windows == [3, 6]


def test_refusals() -> None:
    images = image()
    at = torch.zeros(B, 2, dtype=F64)
    for name in ("classes", "channels", "size", "scales", "glimpses", "features", "hidden"):
        with pytest.raises(ValueError, match=f"^{name} must be an int of at least 1, got 0"):
            RecurrentAttentionModel(**({"classes": 2} | {name: 0}))
    for std in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="^std must"):
            make(std=std)
    with pytest.raises(
        ValueError, match=r"^images must have shape \(B, C, H, W\) = \(\*, 2, \*, \*\)"
    ):
        make()(images[:, :1].float())
    with pytest.raises(TypeError, match="^images must be floating, got torch.int64"):
        make()(images.long())
    with pytest.raises(ValueError, match="^size must be an int of at least 1, got 0"):
        glimpse(images, at, 0)
    with pytest.raises(ValueError, match="^images must have shape"):
        glimpse(images[0], at, 3)
    for wrong, error in ((at[:1], ValueError), (at.float(), TypeError)):
        with pytest.raises(error, match="^locations must"):
            glimpse(images, wrong, 3)
