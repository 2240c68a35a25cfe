"""The modules that `replace_attention` swaps, those it leaves, and its report."""

from __future__ import annotations

import copy
import pickle
import re
import sys
from typing import Any

import pytest
import torch
from helpers.interop_swap import E, SwapCase, batches, drive, weigh
from interop.libraries import SWAPS, captioning, espnet, opennmt, speechbrain
from torch import Tensor, nn

from attnkernels.interop import replace_attention
from attnkernels.interop.core.live import KEPT
from attnkernels.nn import AdditiveAttention


class Decoder(nn.Module):
    """A user's module with attention in an attribute."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.out = attention, nn.Linear(3, 3)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Decoder(captioning.Attention(3, 4, 5))
        self.decoder = Decoder(speechbrain.ContentBasedAttention(3, 4, 5, 6))


def left(module: nn.Module) -> str:
    """Return the reason that a module is left, after a check that it stays unchanged."""
    before = type(module), dict(vars(module))
    report = replace_attention(module)
    assert not report.swapped and list(report.left) == [""], str(report)
    assert (type(module), vars(module)) == before
    return report.left[""]


def test_all_that_are_recognised() -> None:
    model = Model()
    report = replace_attention(model)
    assert report.swapped == {
        "encoder.attention": "the captioning tutorial of Show, Attend and Tell, Attention",
        "decoder.attention": "SpeechBrain, ContentBasedAttention",
    }
    assert report.left == {}
    assert str(report) == (
        "swapped encoder.attention: the captioning tutorial of Show, Attend and Tell, Attention\n"
        "swapped decoder.attention: SpeechBrain, ContentBasedAttention"
    )
    assert type(model) is Model and isinstance(model.encoder.attention, captioning.Attention)


@pytest.mark.parametrize("only", [["decoder.attention"], ["decoder.*"], {"dec*", "decoder.out"}])
def test_only_some(only: Any) -> None:
    model = Model()
    report = replace_attention(model, only=only)
    assert list(report.swapped) == ["decoder.attention"]
    assert report.left == {"encoder.attention": "not in only"}
    assert type(model.encoder.attention) is captioning.Attention
    assert str(report).endswith("\nleft encoder.attention: not in only")
    assert not replace_attention(Model(), only=[]).swapped
    assert replace_attention(model.encoder.attention, only=[""]).swapped


def test_what_is_no_model_and_what_names_nothing() -> None:
    model: Any = Model()
    with pytest.raises(ValueError, match="only must name modules of the model, got 'decoder.attn'"):
        replace_attention(model, only=["decoder.attention", "decoder.attn"])
    with pytest.raises(
        TypeError, match="only must be a collection of names, got the string 'decoder'"
    ):
        replace_attention(model, only="decoder")
    for wrong in (model.forward, None, model.state_dict(), Model):
        with pytest.raises(TypeError, match="model must be a torch.nn.Module, got"):
            replace_attention(wrong)
    assert type(model.decoder.attention) is speechbrain.ContentBasedAttention


def test_swapping_again_changes_nothing() -> None:
    model = Model()
    replace_attention(model)
    kinds = [type(x) for x in model.modules()]
    report = replace_attention(model)
    assert not report.swapped
    why = "it is swapped already"
    assert report.left == {"encoder.attention": why, "decoder.attention": why}
    assert [type(x) for x in model.modules()] == kinds


def test_two_swapped_modules_of_a_class_have_one_class() -> None:
    first, second = (speechbrain.ContentBasedAttention(3, 4, 5, 6) for _ in range(2))
    replace_attention(nn.ModuleList([first, second]))
    assert type(first) is type(second) is type(copy.deepcopy(first))


class Copying(captioning.Attention):
    """A fork whose copies are made by a method of its own."""

    def __deepcopy__(self, memo: Any) -> Any:
        twin = type(self)(3, 4, 5)
        twin.copied = True
        return twin


Copying.__name__, Copying.__qualname__ = "Attention", "Copying"


def test_a_class_that_copies_its_modules_itself() -> None:
    module = Copying(3, 4, 5)
    assert replace_attention(module).swapped
    twin = copy.deepcopy(nn.ModuleList([module, module]))
    assert twin[0] is twin[1] and twin[0].copied and type(twin[0]) is type(module)
    assert type(pickle.loads(pickle.dumps(module))) is Copying


def test_a_module_that_is_there_twice() -> None:
    attention = captioning.Attention(3, 4, 5)
    report = replace_attention(nn.ModuleList([attention, attention]))
    assert list(report.swapped) == ["0"] and not report.left


def test_what_is_no_attention() -> None:
    for model in (nn.Linear(2, 2), nn.Sequential(nn.LSTM(2, 2)), AdditiveAttention(2, 2, 2)):
        report = replace_attention(model)
        assert not report.swapped and not report.left
        assert str(report) == "nothing in the model looks like attention"


def test_attention_that_no_convention_knows() -> None:
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
    report = replace_attention(model)
    assert report.left == {"0": "no convention knows the class MultiheadAttention"}
    assert str(report) == "left 0: no convention knows the class MultiheadAttention"


class AttentionDecoder(Decoder):
    """Named for the attention inside it."""


@pytest.mark.parametrize("around", [lambda x: x, nn.Sequential], ids=["root", "inside"])
def test_what_is_around_a_swapped_module_is_not_reported(around: Any) -> None:
    report = replace_attention(around(AttentionDecoder(captioning.Attention(3, 4, 5))))
    assert len(report.swapped) == 1 and report.left == {}
    report = replace_attention(around(AttentionDecoder(nn.Linear(3, 4))))
    (why,) = report.left.values()
    assert why == "no convention knows the class AttentionDecoder"


def fork(of: type, **methods: Any) -> nn.Module:
    """Return a module whose class has another's name and other methods."""
    own = type(of.__name__, (of,), methods)
    return own(3, 4, 5) if of is captioning.Attention else own(3, 4, 5, 6)


def dot_product(self: Any, encoder_out: Tensor, decoder_hidden: Tensor) -> Any:
    scores = self.encoder_att(encoder_out) @ self.decoder_att(decoder_hidden).unsqueeze(2)
    return weigh(scores.squeeze(2), None, encoder_out)


def sharper(self: Any, enc_states: Tensor, enc_len: Tensor, dec_states: Tensor) -> Any:
    self.scaling, own = 1.25 * self.scaling, self.scaling
    results = speechbrain.ContentBasedAttention.forward(self, enc_states, enc_len, dec_states)
    self.scaling = own
    return results


def weights_only(self: Any, encoder_out: Tensor, decoder_hidden: Tensor) -> Any:
    return captioning.Attention.forward(self, encoder_out, decoder_hidden)[1]


def raises(self: Any, encoder_out: Tensor, decoder_hidden: Tensor) -> Any:
    raise RuntimeError("there is no hardware")


def nothing(self: Any, encoder_out: Tensor, decoder_hidden: Tensor) -> Any:
    return None


def dropout(self: Any, encoder_out: Tensor, decoder_hidden: Tensor) -> Any:
    encoder_out = nn.functional.dropout(encoder_out, 0.1, self.training)
    return captioning.Attention.forward(self, encoder_out, decoder_hidden)


def best_in_evaluation(self: Any, encoder_out: Tensor, decoder_hidden: Tensor) -> Any:
    context, weights = captioning.Attention.forward(self, encoder_out, decoder_hidden)
    return context, weights if self.training else (weights == weights.amax(1, True)).to(weights)


def other_arguments(self: Any, encoder_out: Tensor, state: Tensor) -> Any:
    return captioning.Attention.forward(self, encoder_out, state)


def one_more(self: Any, encoder_out: Tensor, decoder_hidden: Tensor, mask: Tensor) -> Any:
    return captioning.Attention.forward(self, encoder_out, decoder_hidden)


def any_more(self: Any, encoder_out: Tensor, decoder_hidden: Tensor, **more: Any) -> Any:
    return captioning.Attention.forward(self, encoder_out, decoder_hidden)


def one_more_that_may_be_left(
    self: Any, encoder_out: Tensor, decoder_hidden: Tensor, mask: Any = None
) -> Any:
    return captioning.Attention.forward(self, encoder_out, decoder_hidden)


@pytest.mark.parametrize(
    "of, forward, why",
    [
        (captioning.Attention, dot_product, "it does not compute what the captioning .* does: "),
        (speechbrain.ContentBasedAttention, sharper, "not compute what SpeechBrain.* apart on ran"),
        (captioning.Attention, dropout, "does not compute what .* apart on random numbers"),
        (captioning.Attention, best_in_evaluation, "does not compute what .* apart on random num"),
        (captioning.Attention, weights_only, "it returns other shapes than the captioning tutor"),
        (captioning.Attention, nothing, "its trial failed with TypeError"),
        (captioning.Attention, raises, "its trial failed with RuntimeError: there is no hardw"),
        (captioning.Attention, other_arguments, "its arguments are not those of the captioni"),
        (captioning.Attention, one_more, "its arguments are not those of .* or NVIDIA's"),
        (captioning.Attention, any_more, "its arguments are not those of .* or NVIDIA's"),
    ],
)
def test_forks_that_do_something_else_are_left(of: type, forward: Any, why: str) -> None:
    for training in (True, False):
        assert re.search(why, left(fork(of, forward=forward).train(training)))


def test_a_fork_that_computes_the_same_is_swapped() -> None:
    """Arguments of later releases may follow if they have defaults."""
    assert replace_attention(fork(captioning.Attention, forward=one_more_that_may_be_left)).swapped
    module = fork(speechbrain.ContentBasedAttention)
    module.register_module("norm", None)
    assert replace_attention(module).swapped


def test_a_class_of_this_name_without_its_attributes() -> None:
    def forward(self: Any, src: Any, enc_out: Any, src_len: Any = None, coverage: Any = None):
        return src

    stranger = type("GlobalAttention", (nn.Module,), {"forward": forward})()
    assert "it is not the class that 'opennmt' knows: " in left(stranger)


def test_a_class_like_that_of_keras_without_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(self, inputs, mask, training, return_attention_scores, use_causal_mask):
        return inputs

    monkeypatch.delitem(sys.modules, "keras", raising=False)
    stranger = type("AdditiveAttention", (nn.Module,), {"call": call})()
    assert "it is not the class that 'keras' knows: " in left(stranger)


@pytest.mark.parametrize(
    "options, why",
    [
        ({"attn_type": "dot"}, "attn_type is 'dot': not additive attention"),
        ({"attn_type": "general"}, "attn_type is 'general': not additive attention"),
        ({"attn_func": "sparsemax"}, "attn_func is 'sparsemax': only softmax is fused"),
    ],
)
def test_options_that_are_not_fused(options: dict[str, str], why: str) -> None:
    assert left(opennmt.GlobalAttention(4, **options)) == why


def test_a_trial_leaves_no_trace() -> None:
    """The random state, cached keys, mode, gradients and buffers stay unchanged."""
    module = speechbrain.ContentBasedAttention(E, 5, 4, 3)
    module.train()
    drive(SWAPS["speechbrain"])(module, *batches(SWAPS["speechbrain"], torch.float32).values())
    module.mlp_out.weight.grad = torch.ones_like(module.mlp_out.weight)
    before, grads = dict(vars(module)), [x.grad for x in module.parameters()]
    state = torch.get_rng_state()
    assert replace_attention(module).swapped
    assert torch.equal(torch.get_rng_state(), state)
    after = vars(module)
    assert KEPT not in after and list(after) == list(before)
    assert all(after[name] is x for name, x in before.items())
    assert all(x.grad is y for x, y in zip(module.parameters(), grads, strict=True))


class Dropping(captioning.Attention):
    """A fork with layers that have a state or draw random numbers in training."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.norm, self.dropout = nn.BatchNorm1d(sizes[0]), nn.Dropout(0.5)

    def forward(self, encoder_out: Tensor, decoder_hidden: Tensor) -> Any:
        encoder_out = self.dropout(self.norm(encoder_out.mT).mT)
        return super().forward(encoder_out, decoder_hidden)


Dropping.__name__ = "Attention"


@pytest.mark.parametrize("training", [True, False])
def test_a_trial_of_layers_with_a_state(training: bool) -> None:
    module = Dropping(3, 4, 5).train(training)
    before = {name: x.clone() for name, x in module.state_dict().items()}
    state = torch.get_rng_state()
    assert "it does not compute what" in left(module)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    assert module.norm.training is module.dropout.training is training


def test_a_trial_leaves_buffers_alone() -> None:
    """A fork may keep its mask as a buffer."""
    module = espnet.AttAdd(3, 4, 5)
    del module.mask
    module.register_buffer("mask", torch.zeros(2, 6, dtype=torch.bool))
    mask = module.mask
    assert replace_attention(module).swapped
    assert module.mask is mask and list(module.state_dict())[0] == "mask"


@pytest.mark.parametrize("case", SWAPS.values(), ids=SWAPS)
def test_a_default_device_does_not_matter(case: SwapCase) -> None:
    module = case.make()
    with torch.device("meta"):
        assert replace_attention(module).swapped


@pytest.mark.parametrize("name", ["captioning", "espnet-cov", "gnmt"])
def test_modules_in_half_precision_and_in_training(name: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        module = SWAPS[name].make().to(dtype)
        assert replace_attention(module).swapped and module.training


@pytest.mark.parametrize("case", SWAPS.values(), ids=SWAPS)
def test_modules_that_are_swapped_under_autocast(case: SwapCase) -> None:
    """The trial compares in the dtype of the module."""
    for dtype in (torch.bfloat16, torch.float16):
        module = case.make()
        with torch.autocast("cpu", dtype=dtype):
            report = replace_attention(module)
            assert torch.is_autocast_enabled("cpu")
        assert report.swapped and not report.left
