"""Every convention of `attnkernels.interop`: that library's names, shapes and formula.

The formulas are written down here, in plain PyTorch and with the library's own names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from inputs import F32, F64, normal
from torch import Tensor
from torch.nn import functional

from attnkernels.interop import CONVENTIONS, load_state_dict_from
from attnkernels.nn import AdditiveAttention, CoverageAttention, LocationSensitiveAttention
from attnkernels.testing import assert_within_budget

B, N, M, Q, K, H, CHANNELS, WIDTH = 3, 4, 13, 6, 10, 8, 3, 5
LENGTHS = torch.tensor([M, 1, 7])

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
# (entries, queries (B, N, Q), keys (B, M, K)) -> weights (B, N, M)
Formula = Callable[[State, Tensor, Tensor], Tensor]


def softmax(scores: Tensor) -> Tensor:
    """Over the keys within the lengths."""
    beyond = torch.arange(M) >= LENGTHS.view(B, *[1] * (scores.ndim - 1))
    return scores.masked_fill(beyond, -torch.inf).softmax(-1)


def layer(s: State, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, s[f"{name}.weight"], s.get(f"{name}.bias"))


def layers(query: str, key: str, score: str, f: Any = torch.tanh, scale: float = 1.0) -> Formula:
    """Three layers with whatever biases the entries have."""

    def weights(s: State, queries: Tensor, keys: Tensor) -> Tensor:
        hidden = f(layer(s, query, queries).unsqueeze(2) + layer(s, key, keys).unsqueeze(1))
        return softmax(scale * layer(s, score, hidden).squeeze(-1))

    return weights


def normalised(query: str, key: str, v: str, g: str, b: str, dense: bool) -> Formula:
    """g v / |v| . tanh(query + key + b); `dense` kernels are (in, out)."""

    def weights(s: State, queries: Tensor, keys: Tensor) -> Tensor:
        w_q, w_k = (s[name] if dense else s[name].mT for name in (query, key))
        hidden = (queries @ w_q).unsqueeze(2) + (keys @ w_k).unsqueeze(1)
        if g not in s:
            return softmax(torch.tanh(hidden) @ s[v])
        return softmax(torch.tanh(hidden + s[b]) @ (s[v] / s[v].norm() * s[g]))

    return weights


def allennlp(s: State, queries: Tensor, keys: Tensor) -> Tensor:
    hidden = (queries @ s["_w_matrix"]).unsqueeze(2) + (keys @ s["_u_matrix"]).unsqueeze(1)
    return softmax((torch.tanh(hidden) @ s["_v_vector"]).squeeze(-1))


def stepwise(
    query: str, key: str, score: str, added: Callable[..., Tensor], *, uniform: bool, scale: float
) -> Formula:
    """`added` makes what the sum gets of the weights of all steps before, [(B, M), ...]."""

    def weights(s: State, queries: Tensor, keys: Tensor) -> Tensor:
        first = (torch.arange(M) < LENGTHS[:, None]) / LENGTHS[:, None]
        past = [first.to(keys) if uniform else keys.new_zeros(B, M)]
        for i in range(N):
            hidden = layer(s, query, queries[:, i]).unsqueeze(1) + layer(s, key, keys)
            hidden = torch.tanh(hidden + added(s, past))
            past.append(softmax(scale * layer(s, score, hidden).squeeze(-1)))
        return torch.stack(past[1:], 1)

    return weights


def speechbrain_location(s: State, past: list[Tensor]) -> Tensor:
    seen = past[-1].detach().unsqueeze(1)
    seen = functional.conv1d(seen, s["conv_loc.weight"], padding=WIDTH // 2)
    return layer(s, "mlp_loc", seen.mT)


def espnet_location(s: State, past: list[Tensor]) -> Tensor:
    seen = past[-1].view(B, 1, 1, M)
    seen = functional.conv2d(seen, s["loc_conv.weight"], padding=(0, WIDTH // 2))
    return layer(s, "mlp_att", seen.squeeze(2).mT)


def espnet_coverage(s: State, past: list[Tensor]) -> Tensor:
    return layer(s, "wvec", torch.stack(past).sum(0).unsqueeze(-1))


def tacotron2(conv: str, linear: str) -> Formula:
    def added(s: State, past: list[Tensor]) -> Tensor:
        seen = torch.stack([past[-1], torch.stack(past).sum(0)], 1)
        f = s[f"location_layer.location_conv{conv}.weight"]
        seen = functional.conv1d(seen, f, padding=WIDTH // 2)
        return layer(s, f"location_layer.location_dense{linear}", seen.mT)

    names = f"query_layer{linear}", f"memory_layer{linear}", f"v{linear}"
    return stepwise(*names, added, uniform=False, scale=1.0)


def tacotron2_shapes(conv: str, linear: str) -> Shapes:
    return {
        f"query_layer{linear}.weight": (H, Q),
        f"memory_layer{linear}.weight": (H, K),
        f"v{linear}.weight": (1, H),
        f"location_layer.location_conv{conv}.weight": (CHANNELS, 2, WIDTH),
        f"location_layer.location_dense{linear}.weight": (H, CHANNELS),
    }


def shapes(query: str, key: str, score: str, biases: str = "") -> Shapes:
    """Of three Linear layers, of which those named in `biases` have one."""
    sizes: Shapes = {query: (H, Q), key: (H, K), score: (1, H)}
    made: Shapes = {f"{name}.weight": size for name, size in sizes.items()}
    return made | {f"{name}.bias": sizes[name][:1] for name in biases.split()}


class Case(NamedTuple):
    convention: str
    options: dict[str, Any]
    shapes: Shapes
    formula: Formula
    cancelled: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


GNMT = ("linear_q.weight", "linear_k.weight", "linear_att", "normalize_scalar", "normalize_bias")
TFA = ("query_layer/kernel", "memory_layer/kernel", "attention_v", "attention_g", "attention_b")
SPEECHBRAIN = ("mlp_dec", "mlp_enc", "mlp_attn")
ESPNET = ("mlp_dec", "mlp_enc", "gvec")
OUT = {"mlp_out.weight": (5, K), "mlp_out.bias": (5,)}
OPENNMT_OUT = {"linear_out.weight": (Q, Q + K), "linear_out.bias": (Q,)}
CONV: dict[str, Any] = {"channels": CHANNELS, "kernel_size": WIDTH, "cumulative": False}
NORMALISED = {"normalize": True, "bias": False}

CASES = {
    "gnmt": Case(
        "gnmt",
        NORMALISED,
        dict(zip(GNMT, ((H, Q), (H, K), (H,), (1,), (H,)), strict=True)),
        normalised(*GNMT, dense=False),
    ),
    "gnmt, not normalised": Case(
        "gnmt",
        {},
        dict(zip(GNMT[:3], ((H, Q), (H, K), (H,)), strict=True)),
        normalised(*GNMT, dense=False),
    ),
    "tfa": Case(
        "tfa",
        {"normalize": True},
        dict(zip(TFA, ((Q, H), (K, H), (H,), (), (H,)), strict=True)),
        normalised(*TFA, dense=True),
    ),
    "speechbrain": Case(
        "speechbrain",
        {"scale": 1.5},
        shapes(*SPEECHBRAIN, "mlp_dec mlp_enc") | OUT,
        layers(*SPEECHBRAIN, scale=1.5),
        left=("mlp_out.weight", "mlp_out.bias"),
    ),
    "speechbrain-location": Case(
        "speechbrain-location",
        CONV | {"initial": "uniform", "detach_weights": True},
        shapes(*SPEECHBRAIN, "mlp_dec mlp_enc")
        | OUT
        | {
            "conv_loc.weight": (CHANNELS, 1, WIDTH),
            "mlp_loc.weight": (H, CHANNELS),
            "mlp_loc.bias": (H,),
        },
        stepwise(*SPEECHBRAIN, speechbrain_location, uniform=True, scale=1.0),
        left=("mlp_out.weight", "mlp_out.bias"),
    ),
    "espnet-add": Case(
        "espnet-add",
        {"scale": 2.0},
        shapes(*ESPNET, "mlp_enc gvec"),
        layers(*ESPNET, scale=2.0),
        cancelled=("gvec.bias",),
    ),
    "espnet-loc": Case(
        "espnet-loc",
        CONV | {"initial": "uniform", "scale": 2.0},
        shapes(*ESPNET, "mlp_enc gvec")
        | {"loc_conv.weight": (CHANNELS, 1, 1, WIDTH), "mlp_att.weight": (H, CHANNELS)},
        stepwise(*ESPNET, espnet_location, uniform=True, scale=2.0),
        cancelled=("gvec.bias",),
    ),
    "espnet-cov": Case(
        "espnet-cov",
        {"initial": "uniform", "scale": 2.0},
        shapes(*ESPNET, "mlp_enc gvec") | {"wvec.weight": (H, 1), "wvec.bias": (H,)},
        stepwise(*ESPNET, espnet_coverage, uniform=True, scale=2.0),
        cancelled=("gvec.bias",),
    ),
    "opennmt": Case(
        "opennmt",
        {},
        shapes("linear_query", "linear_context", "v", "linear_query") | OPENNMT_OUT,
        layers("linear_query", "linear_context", "v"),
        left=tuple(OPENNMT_OUT),
    ),
    "tacotron2, NVIDIA": Case(
        "tacotron2",
        CONV | {"cumulative": "both", "bias": False},
        tacotron2_shapes(".conv", ".linear_layer"),
        tacotron2(".conv", ".linear_layer"),
    ),
    "tacotron2, torchaudio": Case(
        "tacotron2", CONV | {"cumulative": "both"}, tacotron2_shapes("", ""), tacotron2("", "")
    ),
    "allennlp": Case(
        "allennlp",
        {},
        {"_w_matrix": (Q, H), "_u_matrix": (K, H), "_v_vector": (H, 1)},
        allennlp,
    ),
    "fairseq": Case(
        "fairseq",
        {},
        shapes("decoder_proj", "encoder_proj", "to_scores", "encoder_proj"),
        layers("decoder_proj", "encoder_proj", "to_scores"),
    ),
    "joeynmt": Case(
        "joeynmt",
        {"bias": False},
        shapes("query_layer", "key_layer", "energy_layer"),
        layers("query_layer", "key_layer", "energy_layer"),
    ),
    "captioning": Case(
        "captioning",
        {"activation": "relu"},
        shapes("decoder_att", "encoder_att", "full_att", "decoder_att encoder_att full_att"),
        layers("decoder_att", "encoder_att", "full_att", torch.relu),
        cancelled=("full_att.bias",),
    ),
}


def made(case: Case, **options: Any) -> Any:
    return CONVENTIONS[case.convention].module(Q, K, H, **(case.options | options))


def checkpoint(case: Case, dtype: torch.dtype = F32) -> State:
    return {name: torch.randn(shape, dtype=dtype) for name, shape in case.shapes.items()}


def results(weights: Tensor, query: Tensor, key: Tensor, context: Tensor | None = None) -> Any:
    """Weights, contexts and the gradients of the queries and keys."""
    context = weights @ key if context is None else context
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(context.shape, generator=generator, dtype=F64).to(context)
    return [weights, context, *torch.autograd.grad(context, [query, key], direction)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_loaded_module_against_the_formula_of_the_library(case: Case, dtype: torch.dtype) -> None:
    state = checkpoint(case, dtype)
    module = made(case, dtype=dtype)
    for parameter in module.parameters():  # what a checkpoint has nothing for must not stay
        torch.nn.init.normal_(parameter)
    report = load_state_dict_from(module, state, convention=case.convention)
    assert (report.cancelled, tuple(report.left)) == (case.cancelled, case.left)
    used = {name for names in report.loaded.values() for name in names}
    assert used | {*case.cancelled, *case.left} == set(state)
    assert {*report.loaded, *report.zeroed} == set(module.state_dict())
    inputs = normal(B, N, Q, dtype=dtype), normal(B, M, K, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    context, weights = module(*inputs, key_lengths=LENGTHS, return_weights=True)
    found = results(weights, *inputs, context)
    plain = results(case.formula(state, *inputs), *inputs)
    double = {name: x.double() for name, x in state.items()}
    wanted = results(case.formula(double, *exact), *exact)
    for at, (x, y, z) in enumerate(zip(found, plain, wanted, strict=True)):
        size = 30 * max(1.0, z.abs().max().item())  # sums of up to B * M terms of projections
        assert_within_budget(x, y, z, magnitude=size, name=f"result {at}")


def test_every_convention_has_a_case() -> None:
    assert {case.convention for case in CASES.values()} == set(CONVENTIONS)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_missing_unexpected_and_wrongly_shaped_entries_are_all_named(case: Case) -> None:
    """In one message, and the module is as it was before."""
    needed = [name for name in case.shapes if name not in (*case.cancelled, *case.left)]
    for name in needed:
        state = {f"attention.{each}": x for each, x in checkpoint(case).items()}
        state |= {"embedding.weight": torch.zeros(2), "attention.stranger": torch.zeros(2)}
        other = next(each for each in needed if each != name)
        del state[f"attention.{name}"]
        state[f"attention.{other}"] = torch.zeros(2, 3, 4)
        module = made(case)
        before = {each: x.clone() for each, x in module.state_dict().items()}
        with pytest.raises(ValueError) as raised:
            load_state_dict_from(module, state, convention=case.convention, prefix="attention.")
        message = str(raised.value)
        assert f"attention.{name}" in message and "is missing" in message
        assert f"attention.{other} has shape (2, 3, 4)" in message
        assert "attention.stranger is unexpected" in message and "embedding" not in message
        assert all(torch.equal(x, before[each]) for each, x in module.state_dict().items())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_transposed_matrix_is_refused(case: Case) -> None:
    state = checkpoint(case)
    name = next(iter(state))
    state[name] = state[name].mT.contiguous()
    with pytest.raises(ValueError, match=f"{name} has shape .* query_proj.weight needs"):
        load_state_dict_from(made(case), state, convention=case.convention)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("espnet-add", {"scale": 1.0}, "scale is 1.0 and must be 2.0"),
        ("espnet-loc", {"scale": 1.0}, "scale is 1.0 and must be 2.0"),
        ("espnet-loc", {"initial": "zeros"}, "initial is 'zeros' and must be 'uniform'"),
        ("espnet-loc", {"cumulative": True}, "cumulative is True and must be False"),
        ("speechbrain-location", {"detach_weights": False}, "detach_weights is False"),
        ("tacotron2, NVIDIA", {"cumulative": True}, "cumulative is True and must be 'both'"),
        ("captioning", {"activation": "tanh"}, "activation is 'tanh' and must be 'relu'"),
        ("opennmt", {"activation": "relu"}, "activation is 'relu' and must be 'tanh'"),
        ("opennmt", {"normalize": True}, "normalize is True and must be False"),
        ("allennlp", {"num_heads": 2}, "num_heads is 2 and must be 1"),
        ("fairseq", {"bias": False}, "encoder_proj.bias has no place: .* bias=True"),
        ("gnmt", {"normalize": False}, "normalize_scalar is unexpected"),
        ("gnmt, not normalised", {"normalize": True}, "normalize_scalar is missing"),
    ],
)
def test_wrong_settings_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    case = CASES[name]
    with pytest.raises(ValueError, match=message):
        load_state_dict_from(made(case, **options), checkpoint(case), convention=case.convention)


def test_other_refusals() -> None:
    state, module = checkpoint(CASES["joeynmt"]), AdditiveAttention(Q, K, H)
    with pytest.raises(ValueError, match="convention is 'marian'; it must be one of 'gnmt'"):
        load_state_dict_from(module, state, convention="marian")
    for other in (LocationSensitiveAttention(Q, K, H), CoverageAttention(Q, K, H)):
        with pytest.raises(TypeError, match="'joeynmt' needs an attnkernels.nn.AdditiveAttention"):
            load_state_dict_from(other, state, convention="joeynmt")
    with pytest.raises(ValueError, match="key_layer.weight is torch.int64; it must be floating"):
        state["key_layer.weight"] = state["key_layer.weight"].long()
        load_state_dict_from(module, state, convention="joeynmt")
    with pytest.raises(ValueError, match="key_layer.weight is a str; it must be a tensor"):
        load_state_dict_from(module, state | {"key_layer.weight": "x"}, convention="joeynmt")


def test_biases_are_added_and_the_report_says_so() -> None:
    state, module = checkpoint(CASES["captioning"]), made(CASES["captioning"])
    report = load_state_dict_from(module, state, convention="captioning")
    wanted = state["decoder_att.bias"] + state["encoder_att.bias"]
    torch.testing.assert_close(module.query_proj.bias, wanted)
    text = str(report)
    assert "query_proj.bias = decoder_att.bias + encoder_att.bias" in text
    assert "dropped full_att.bias: the softmax cancels it" in text


def test_arrays_and_names_of_tensorflow() -> None:
    """Variables are arrays, and may carry the number of their output; no bias makes zeros."""
    case = CASES["tfa"]
    state, module = checkpoint(case), made(case)
    arrays = {f"{name}:0": x.numpy() for name, x in state.items()}
    report = load_state_dict_from(module, arrays, convention="tfa")
    assert report.zeroed == ("query_proj.bias",) and not module.query_proj.bias.any()
    assert torch.equal(module.key_proj.weight, state["memory_layer/kernel"].mT)
    assert "query_proj.bias = 0" in str(report)
