"""Show, Attend and Tell: equations, learning and decoding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.nn_twins import check_twin
from torch import Tensor, nn

from attnkernels.models.show_attend_tell import ConvEncoder, ShowAttendTell
from attnkernels.nn import beam_search

BEGIN, END, VOCABULARY = 1, 2, 6
COLOURS = VOCABULARY - 3
KINDS = ["soft", "hard"]


def make(attention: str = "soft", **options: Any) -> ShowAttendTell:
    sizes = {"annotation_dim": 16, "embed_dim": 12, "hidden_dim": 24, "attention_dim": 10}
    options = sizes | {"begin": BEGIN, "end": END} | options
    return ShowAttendTell(ConvEncoder(COLOURS, 16), VOCABULARY, attention=attention, **options)


def patches(batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images 8 x 24 with one or two coloured patches, and what a caption says of them.

    These are the colours from left to right, the lengths, and the columns (B, 2) of the patches,
    counted in annotations.
    """
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(COLOURS, (batch, 2), generator=generator)
    column = torch.stack(
        [torch.randint(low, low + 3, (batch,), generator=generator) for low in (0, 3)], 1
    )
    two = torch.rand(batch, generator=generator) < 0.5
    images = torch.zeros(batch, COLOURS, 8, 24)
    for b in range(batch):
        for i in range(1 + int(two[b])):
            x = 4 * int(column[b, i])
            images[b, colours[b, i], 2:6, x : x + 4] = 1.0
    captions = torch.zeros(batch, 4, dtype=torch.int64)
    captions[:, 0] = BEGIN
    captions[:, 1] = colours[:, 0] + 3
    captions[:, 2] = torch.where(two, colours[:, 1] + 3, END)
    captions[:, 3] = torch.where(two, END, 0)
    return images, captions, 3 + two.long(), column


def learn(model: ShowAttendTell, batches: int, steps: int) -> None:
    """Run Adam over the batches in turn; the first half of the steps has expected contexts."""
    torch.set_num_threads(1)  # too small to share
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    data = [patches(32, seed) for seed in range(batches)]
    for step in range(steps):
        images, captions, lengths, _ = data[step % batches]
        model.expected_chance = 1.0 if step < steps // 2 else 0.5
        loss = model.loss(images, captions, lengths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def equations(module: ShowAttendTell, images: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """Return logits, weights and hard attention's choice by equations 1 to 9, without kernels."""
    decoder = module.decoder
    a = module.encoder(images).flatten(2).transpose(1, 2)
    h, c = module.first(a.mean(1)).chunk(2, 1)
    attention, cell = decoder.attention, decoder.cell
    found = []
    for token in tokens.unbind(1):
        word = module.embed(token)
        e = torch.tanh(attention.query_proj(h)[:, None] + attention.key_proj(a)) @ attention.weight
        alpha = e.softmax(1)
        position = alpha.argmax(1)
        looked = alpha if decoder.hard is None else nn.functional.one_hot(position, e.shape[1])
        context = torch.einsum("bl,bld->bd", looked.to(a), a)
        z = torch.sigmoid(decoder.gate(h)) * context
        gates = cell.weight_ih @ torch.cat([word, z], 1).T + cell.weight_hh @ h.T
        i, f, g, o = (gates + (cell.bias_ih + cell.bias_hh)[:, None]).T.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        logits = module.output(word + decoder.from_hidden(h) + decoder.from_context(z))
        log_p = alpha.gather(1, position[:, None]).log().squeeze(1)
        found.append((logits, alpha, log_p, -(alpha * alpha.log()).sum(1)))
    logits, weights, log_p, entropy = (torch.stack(x, 1) for x in zip(*found, strict=True))
    return (logits, weights) if decoder.hard is None else (logits, weights, log_p, entropy)


@pytest.mark.parametrize("kind", KINDS)
def test_results_and_gradients_are_those_of_the_equations(kind: str, backend: str) -> None:
    model = make(kind, backend=backend).eval()
    with torch.no_grad():
        model.decoder.attention.weight.mul_(5)

    def call(module: ShowAttendTell, images: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        logits, weights, choice = module(images, tokens)
        return (logits, weights, *(() if choice is None else (choice.log_prob, choice.entropy)))

    _, captions, _, _ = patches(5, seed=0)
    images = torch.rand(5, COLOURS, 8, 24, requires_grad=True)
    check_twin(
        model,
        lambda module, x: equations(module, x, captions[:, :-1]),
        {"images": images},
        call=lambda module, x: call(module, x, captions[:, :-1]),
    )


def test_annotations_are_of_12_by_12_pixels() -> None:
    """The field of 12 x 12 lies around the annotation's own 4 x 4 pixels."""
    encoder = ConvEncoder(1, 16).eval()
    reached = torch.zeros(24, 32)
    for _ in range(20):
        images = torch.rand(1, 1, 24, 32, requires_grad=True)
        (gradient,) = torch.autograd.grad(encoder(images)[0, :, 2, 4].sum(), images)
        reached += gradient[0, 0].abs()
    rows, columns = (reached.sum(axis).nonzero().flatten().tolist() for axis in (1, 0))
    assert rows == list(range(4, 16)) and columns == list(range(12, 24))


@pytest.mark.parametrize("kind", KINDS)
def test_overfits_a_small_batch(kind: str) -> None:
    model = make(kind, doubly_stochastic=0.05)
    learn(model, batches=1, steps=200)
    images, captions, lengths, _ = patches(32, seed=0)
    logits, _, _ = model(images, captions[:, :-1])
    counts = torch.arange(1, 4) < lengths[:, None]
    assert ((logits.argmax(-1) == captions[:, 1:]) | ~counts).all()


@pytest.mark.parametrize("kind", KINDS)
def test_learns_to_read_and_where_to_look(kind: str) -> None:
    model = make(kind, doubly_stochastic=0.05)
    learn(model, batches=20, steps=300)
    images, captions, lengths, column = patches(200, seed=99)
    found = model.caption(images, max_length=3)
    wanted = torch.where(captions[:, 1:] == 0, END, captions[:, 1:])
    assert (found.tokens[:, 0] == wanted).all(1).double().mean() >= 0.95
    _, weights, choice = model(images, captions[:, :-1])
    looked = weights.argmax(-1) if choice is None else choice.positions
    words = torch.arange(2) < lengths[:, None] - 2
    near = ((looked % 6)[:, :2] - column).abs() <= 1  # neighbouring fields overlap
    assert near[words].double().mean() >= 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_teacher_forcing_of_its_own_words(kind: str) -> None:
    model = make(kind).eval()
    images = torch.rand(7, COLOURS, 8, 24)
    found = model.caption(images, max_length=5)
    tokens = found.tokens[:, 0]
    given = torch.cat([torch.full((7, 1), BEGIN), tokens[:, :-1]], 1)
    logits, weights, choice = model(images, given)
    log_p = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    counts = torch.arange(tokens.shape[1]) < found.lengths
    torch.testing.assert_close((log_p * counts).sum(1), found.log_probs[:, 0])
    annotations, state = model.annotate(images)
    prepared = model.decoder.prepared(annotations)
    state = model.decoder.initial_state(prepared, state)
    step = model.decoder.step(model.embed(given[:, 0]), prepared, state, return_weights=True)[3]
    looked = weights[:, 0] if choice is None else choice.positions[:, 0]
    torch.testing.assert_close(step if choice is None else step.argmax(1), looked)
    torch.testing.assert_close(step.sum(1), torch.ones(7))


@pytest.mark.parametrize("kind", KINDS)
def test_a_beam_of_one_is_greedy_and_a_wide_one_finds_no_less(kind: str) -> None:
    model = make(kind).eval()
    with torch.no_grad():
        model.output.weight.mul_(8)  # far enough apart that captions differ
    images = torch.rand(7, COLOURS, 8, 24)
    greedy = model.caption(images, max_length=5)
    annotations, state = model.annotate(images)
    one = beam_search(
        model.decoder,
        annotations,
        state=state,
        embed=model.embed,
        readout=lambda output, context: model.output(output),
        start=BEGIN,
        eos=END,
        max_length=5,
        beams=1,
    )
    for x, y in zip(one, greedy, strict=True):
        torch.testing.assert_close(x, y)
    wide = model.caption(images, max_length=5, beams=VOCABULARY**2)
    assert (wide.log_probs[:, 0] >= greedy.log_probs[:, 0] - 1e-5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_and_copies(kind: str) -> None:
    torch.manual_seed(1)
    model, other = make(kind).eval(), make(kind).eval()
    images, captions, _, _ = patches(4, seed=0)
    wanted = model(images, captions).logits
    assert not torch.equal(other(images, captions).logits, wanted)
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model)):
        assert torch.equal(twin(images, captions).logits, wanted)
        if kind == "hard":
            assert twin.decoder.hard.weight is twin.decoder.attention.weight


def test_the_doubly_stochastic_term() -> None:
    """Check lambda * sum_i (1 - sum_t alpha_ti)^2 over the words, without padding (equation 14)."""
    model = make(doubly_stochastic=0.0)
    images, captions, lengths, _ = patches(8, seed=0)
    plain = model.loss(images, captions, lengths)
    model.doubly_stochastic = 0.3
    weights = model(images, captions[:, :-1]).weights
    terms = []
    for b, length in enumerate(lengths.tolist()):
        seen = weights[b, : length - 1].sum(0)
        terms.append(0.3 * ((1 - seen) ** 2).sum())
    penalised = model.loss(images, captions, lengths)
    torch.testing.assert_close(penalised, plain + torch.stack(terms).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str) -> None:
    model = make(kind).eval()
    images, captions, lengths, _ = patches(8, seed=0)
    losses = []
    for given in (captions, nn.functional.pad(captions, (0, 3))):
        torch.manual_seed(5)  # draws the images with expected contexts
        losses.append(model.loss(images, given, lengths))
    torch.testing.assert_close(*losses)


def test_the_learning_rule_of_hard_attention() -> None:
    """Check word by word: log-probability, entropy, and the reward of the later words."""
    model = make("hard", reward_weight=0.7, entropy_weight=0.3)
    images, captions, lengths, _ = patches(8, seed=0)
    model, images = model.double(), images.double()  # the order of sums does not matter
    baseline = 0.0
    for step in range(3):
        torch.manual_seed(step)
        found = model.loss(images, captions, lengths)
        torch.manual_seed(step)
        logits, _, choice = model(images, captions[:, :-1])
        log_p = logits.log_softmax(-1).gather(-1, captions[:, 1:, None]).squeeze(-1)
        words = [(b, t) for b in range(8) for t in range(int(lengths[b]) - 1)]
        mean = sum(log_p[at].item() for at in words) / len(words)
        baseline = 0.9 * baseline + 0.1 * mean
        wanted = 0.0
        for b, t in words:
            reward = log_p[b, t : lengths[b] - 1].detach() - baseline
            wanted -= log_p[b, t] + 0.7 * reward.sum() * choice.log_prob[b, t]
            wanted -= 0.3 * choice.entropy[b, t]
        torch.testing.assert_close(model.baseline.item(), baseline)
        at = list(model.parameters())
        for x, y in zip(
            (found, *torch.autograd.grad(found, at)),
            (wanted / 8, *torch.autograd.grad(wanted / 8, at)),
            strict=True,
        ):
            torch.testing.assert_close(x, y)
    model.eval().loss(images, captions, lengths)
    torch.testing.assert_close(model.baseline.item(), baseline)


def test_half_of_the_images_get_expected_contexts_which_are_not_rewarded() -> None:
    hard, soft = make("hard"), make("soft")
    soft.load_state_dict(hard.state_dict(), strict=False)
    images, captions, _, _ = patches(200, seed=0)
    found, wanted = hard(images, captions), soft(images, captions)
    expected = (found.choice.log_prob == 0).all(1)
    assert 70 < expected.sum() < 130
    torch.testing.assert_close(found.logits[expected], wanted.logits[expected])
    torch.testing.assert_close(found.weights[expected], wanted.weights[expected])
    assert (found.choice.log_prob[~expected] < 0).all()
    assert (found.logits - wanted.logits)[~expected].abs().amax((1, 2)).min() > 0
    assert not (hard.eval()(images, captions).choice.log_prob == 0).any()


def test_errors() -> None:
    for wrong, sentence in (
        ({"attention": "firm"}, "attention must be one of 'soft', 'hard', got 'firm'"),
        ({"begin": 0}, r"begin must be a token in \[1, 6\), got 0"),
        ({"end": 6}, r"end must be a token in \[1, 6\), got 6"),
        ({"hidden_dim": 0}, "hidden_dim|query_dim"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make(**wrong)
    model = make()
    images, captions, lengths, _ = patches(3, seed=0)
    with pytest.raises(
        ValueError, match=r"images must have shape \(B, channels, H, W\) .*, got \(3, 8, 24\)"
    ):
        model(images[:, 0], captions)
    with pytest.raises(
        ValueError, match=r"tokens must have shape \(B, T\) = \(3, \*\), got \(2, 4\)"
    ):
        model(images, captions[:2])
    with pytest.raises(ValueError, match=r"lengths must have shape \(B,\) = \(3,\), got \(2,\)"):
        model.loss(images, captions, lengths[:2])
    with pytest.raises(
        ValueError, match=r"lengths must lie in \[2, 4\] .*, got values from 3 to 9"
    ):
        model.loss(images, captions, torch.tensor([3, 9, 4]))
    with pytest.raises(
        ValueError, match=r"encoder.s result must .* = \(3, 20, \*, \*\), got \(3, 16, 2, 6\)"
    ):
        make(annotation_dim=20)(images, captions)
    with pytest.raises(ValueError, match="beams must be an int of at least 1, got 0"):
        model.caption(images, max_length=3, beams=0)
