"""Hooks of the modules inside a decoder, and checkpoints with parameters of shape ()."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from attnkernels.interop import load_state_dict_from
from attnkernels.models import ConvEncoder, ShowAttendTell
from attnkernels.nn import (
    AdditiveAttention,
    AttentionRNN,
    CoverageAttention,
    MonotonicAttention,
    beam_search,
)

B, T, M, D = 3, 4, 5, 6


def decoder(num_heads: int = 1, **options: Any) -> AttentionRNN:
    attention = AdditiveAttention(D, D, 8, num_heads=num_heads)
    return AttentionRNN(nn.GRUCell(2 * D, D), attention, **options)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("options", [{}, {"defer_gradients": False}, {"num_heads": 2}])
def test_hooks_of_the_attention_see_every_step(options: dict[str, Any], weights: bool) -> None:
    rnn, seen = decoder(**options), []
    handles = [
        rnn.attention.register_forward_pre_hook(lambda module, given: seen.append(given[0])),
        rnn.attention.register_forward_hook(lambda module, given, found: seen.append(found)),
    ]
    outputs, contexts, _, *found = rnn(
        torch.randn(B, T, D), torch.randn(B, M, D), return_weights=weights
    )
    assert len(seen) == 2 * T
    for t, (query, result) in enumerate(zip(seen[::2], seen[1::2], strict=True)):
        context, *rest = result if weights else (result,)
        assert torch.equal(query, outputs[:, t]) and torch.equal(context, contexts[:, t])
        assert not weights or torch.equal(rest[0], found[0][..., t, :])
    for handle in handles:
        handle.remove()


def test_a_hook_may_replace_the_result() -> None:
    rnn, given = decoder(), (torch.randn(B, T, D), torch.randn(B, M, D))
    rnn.attention.register_forward_hook(lambda module, given, found: torch.zeros_like(found))
    assert not rnn(*given)[1].any()


class Counted(AdditiveAttention):
    """An attention that counts its calls, in a forward of its own."""

    calls = 0

    def forward(self, *given: Any, **options: Any) -> Any:
        self.calls += 1
        return super().forward(*given, **options)


def wrapped(attention: nn.Module, seen: list[Any]) -> Any:
    forward = attention.forward

    def counted(*given: Any, **options: Any) -> Any:
        seen.append(given)
        return forward(*given, **options)

    attention.forward = counted  # type: ignore[method-assign]


WATCHED: dict[str, Any] = {
    "before": lambda x, seen: x.register_forward_pre_hook(lambda *given: seen.append(given)),
    "backward": lambda x, seen: x.register_full_backward_hook(lambda *given: seen.append(given)),
    "global": lambda x, seen: register_module_forward_hook(
        lambda module, *given: seen.append(given) if module is x else None
    ),
    "wrapped": wrapped,
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("watch", WATCHED.values(), ids=WATCHED)
def test_whoever_watches_the_attention_sees_every_step(watch: Any, training: bool) -> None:
    rnn, seen = decoder().train(training), []
    handle = watch(rnn.attention, seen)
    query = torch.randn(B, T, D, requires_grad=True)
    rnn(query, torch.randn(B, M, D))[1].sum().backward()
    assert len(seen) == T
    if handle is not None:
        handle.remove()


def test_a_forward_of_a_subclass_is_called() -> None:
    rnn = AttentionRNN(nn.GRUCell(2 * D, D), Counted(D, D, 8))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            rnn(torch.randn(B, T, D), torch.randn(B, M, D))
    assert rnn.attention.calls == 2 * T


def test_hooks_see_the_steps_of_a_search() -> None:
    rnn, seen = decoder().eval(), []
    rnn.attention.register_forward_hook(lambda module, given, found: seen.append(found.shape))
    tokens = {"start": 0, "eos": 1, "max_length": 3}
    readout = {"embed": torch.eye(D).__getitem__, "readout": lambda output, context: output}
    found = beam_search(rnn, torch.randn(B, M, D), beams=2, **readout, **tokens)
    assert seen == [(B * 2, D)] * found.tokens.shape[-1]


def test_hooks_of_hard_attention_see_every_word() -> None:
    model = ShowAttendTell(ConvEncoder(1, D), 7, begin=1, end=2, annotation_dim=D, attention="hard")
    seen: list[str] = []
    for name in ("attention", "hard"):
        module = model.decoder.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    model(torch.randn(B, 1, 16, 16), torch.ones(B, T, dtype=torch.int64))
    assert seen == ["attention", "hard"] * T


MODULES = {
    "additive": lambda: AdditiveAttention(D, D, 8, normalize=True),
    "heads": lambda: AdditiveAttention(D, D, 8, num_heads=2, normalize=True),
    "moving": lambda: MonotonicAttention(D, D, 8),
    "coverage": lambda: CoverageAttention(D, D, 8, normalize=True),
    "decoder": lambda: AttentionRNN(
        nn.GRUCell(2 * D, D), AdditiveAttention(D, D, 8, normalize=True)
    ),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_checkpoints_may_have_numbers_of_shape_0(make: Any) -> None:
    """`gain` and `score_bias` had the shape () before FSDP2 asked for one dimension."""
    module, other = make(), make()
    assert all(x.ndim for x in module.parameters())
    new = module.state_dict()
    old = {name: x.reshape(()) if x.numel() == 1 else x.clone() for name, x in new.items()}
    assert sum(x.ndim == 0 for x in old.values()) in (1, 2)
    kept = copy.deepcopy(old)
    with torch.no_grad():
        for x in other.parameters():
            x.fill_(9.0)
    other.load_state_dict(old, strict=True)
    for name, x in other.state_dict().items():
        assert torch.equal(x, new[name])
        assert old[name].shape == kept[name].shape  # the caller's entries stay
    other.load_state_dict(old, strict=True, assign=True)
    assert all(x.ndim for x in other.parameters())


@pytest.mark.parametrize("entry", [torch.ones(2), torch.ones(1, 1)])
def test_other_shapes_are_still_refused(entry: Tensor) -> None:
    module = AdditiveAttention(D, D, 8, normalize=True)
    with pytest.raises(RuntimeError, match="size mismatch for gain"):
        module.load_state_dict(module.state_dict() | {"gain": entry})


def test_tensorflows_gain_has_no_dimension() -> None:
    module = AdditiveAttention(D, D, 8, normalize=True, bias=False)
    state = {
        "query_layer/kernel": torch.randn(D, 8),
        "memory_layer/kernel": torch.randn(D, 8),
        "attention_v": torch.randn(8),
        "attention_g": torch.tensor(3.0),
        "attention_b": torch.randn(8),
    }
    load_state_dict_from(module, state, convention="tfa")
    assert torch.equal(module.gain, torch.tensor([3.0]))
