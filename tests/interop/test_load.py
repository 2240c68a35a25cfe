"""Every convention of `attnkernels.interop`: checkpoints loaded into modules, and refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.inputs import F32, F64, normal
from helpers.interop_load import LENGTHS, B, H, K, LoadCase, M, N, Q, State
from interop.libraries import LOADS
from torch import Tensor

from attnkernels.interop import CONVENTIONS, load_state_dict_from
from attnkernels.nn import AdditiveAttention, CoverageAttention, LocationSensitiveAttention
from attnkernels.testing import assert_within_budget


def made(case: LoadCase, **options: Any) -> Any:
    return CONVENTIONS[case.convention].module(*case.sizes, **(case.options | options))


def checkpoint(case: LoadCase, dtype: torch.dtype = F32) -> State:
    return {name: torch.randn(shape, dtype=dtype) for name, shape in case.shapes.items()}


def values(case: LoadCase, state: State, key: Tensor) -> Tensor:
    """Return the values (B, M, features): the keys, or their projection by the library."""
    return key if case.values is None else case.values(state, key)


def contexts(weights: Tensor, value: Tensor) -> Tensor:
    """Return (B, N, features), the heads one after another."""
    if weights.ndim == 3:
        return weights @ value
    pairs = zip(weights.unbind(1), value.chunk(weights.shape[1], -1), strict=True)
    return torch.cat([w @ v for w, v in pairs], -1)


def results(weights: Tensor, context: Tensor, query: Tensor, key: Tensor) -> list[Tensor]:
    """Return the weights, the contexts and the gradients of queries and keys."""
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(context.shape, generator=generator, dtype=F64).to(context)
    return [weights, context, *torch.autograd.grad(context, [query, key], direction)]


@pytest.mark.parametrize("case", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_loaded_module_against_the_formula_of_the_library(
    case: LoadCase, dtype: torch.dtype
) -> None:
    state = checkpoint(case, dtype)
    module = made(case, dtype=dtype)
    for parameter in module.parameters():  # none may keep its value, if the checkpoint lacks it
        torch.nn.init.normal_(parameter)
    report = load_state_dict_from(module, state, convention=case.convention)
    assert (report.cancelled, tuple(report.left)) == (case.cancelled, case.left)
    used = {n for names in report.loaded.values() for name in names for n in name.split(", ")}
    assert used | {*case.cancelled, *case.left} == set(state)
    identities = CONVENTIONS[case.convention].identities
    assert {*report.loaded, *report.zeroed, *identities} == set(module.state_dict())
    query_dim, key_dim, _ = case.sizes
    inputs = normal(B, N, query_dim, dtype=dtype), normal(B, M, key_dim, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    given = [] if case.values is None else [values(case, state, inputs[1])]
    context, weights = module(*inputs, *given, key_lengths=LENGTHS, return_weights=True)
    found = results(weights, context, *inputs)
    weights = case.formula(state, *inputs)
    plain = results(weights, contexts(weights, values(case, state, inputs[1])), *inputs)
    double = {name: x.double() for name, x in state.items()}
    weights = case.formula(double, *exact)
    wanted = results(weights, contexts(weights, values(case, double, exact[1])), *exact)
    for at, (x, y, z) in enumerate(zip(found, plain, wanted, strict=True)):
        size = 30 * max(1.0, z.abs().max().item())  # sums of up to B * M terms of projections
        assert_within_budget(x, y, z, magnitude=size, name=f"result {at}")


def test_every_convention_has_a_case() -> None:
    elsewhere = {"pyg-gatv2-layer"}  # test_load_graph.py: a layer, not attention
    assert {case.convention for case in LOADS.values()} | elsewhere == set(CONVENTIONS)


@pytest.mark.parametrize("case", LOADS.values(), ids=LOADS)
def test_missing_unexpected_and_wrongly_shaped_entries_are_all_named(case: LoadCase) -> None:
    """One message names them, and the module stays unchanged."""
    rules = CONVENTIONS[case.convention]
    optional = [name for entry in rules.entries if entry.optional for name in entry.names]
    not_needed = (*case.cancelled, *case.left, *optional)
    needed = [name for name in case.shapes if name not in not_needed]
    for name in needed:
        state = {f"attention.{each}": x for each, x in checkpoint(case).items()}
        state |= {"embedding.weight": torch.zeros(2), "attention.stranger": torch.zeros(2)}
        others = [each for each in needed if each != name][:1]  # none in Keras
        del state[f"attention.{name}"]
        state |= {f"attention.{other}": torch.zeros(2, 3, 4, 5) for other in others}
        module = made(case)
        before = {each: x.clone() for each, x in module.state_dict().items()}
        with pytest.raises(ValueError) as raised:
            load_state_dict_from(module, state, convention=case.convention, prefix="attention.")
        message = str(raised.value)
        assert f"attention.{name}" in message and "is missing" in message
        for other in others:
            assert f"attention.{other} must have shape" in message
            assert "got (2, 3, 4, 5)" in message
        assert "attention.stranger is unexpected" in message and "embedding" not in message
        assert all(torch.equal(x, before[each]) for each, x in module.state_dict().items())


WITH_MATRIX = [n for n, case in LOADS.items() if not CONVENTIONS[case.convention].identities]


@pytest.mark.parametrize("name", WITH_MATRIX)
def test_a_transposed_matrix_is_refused(name: str) -> None:
    case = LOADS[name]
    state = checkpoint(case)
    name = next(iter(state))
    state[name] = state[name].mT.contiguous()
    with pytest.raises(ValueError, match=f"{name} must have shape .* for module.query_proj.weight"):
        load_state_dict_from(made(case), state, convention=case.convention)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("espnet-add", {"scale": 1.0}, "scale must be 2.0, got 1.0"),
        ("espnet-loc", {"scale": 1.0}, "scale must be 2.0, got 1.0"),
        ("espnet-loc", {"initial": "zeros"}, "initial must be 'uniform', got 'zeros'"),
        ("espnet-loc", {"cumulative": True}, "cumulative must be False, got True"),
        (
            "speechbrain-location",
            {"detach_weights": False},
            "detach_weights must be True, got False",
        ),
        ("tacotron2, NVIDIA", {"cumulative": True}, "cumulative must be 'both', got True"),
        ("captioning", {"activation": "tanh"}, "activation must be 'relu', got 'tanh'"),
        ("opennmt", {"activation": "relu"}, "activation must be 'tanh', got 'relu'"),
        ("opennmt", {"normalize": True}, "normalize must be False, got True"),
        ("allennlp", {"num_heads": 2}, "num_heads must be 1, got 2"),
        ("fairseq", {"bias": False}, "encoder_proj.bias has no place: .* bias=True"),
        ("espnet-heads", {"scale": 1.0}, "scale must be 0.5, got 1.0"),
        ("espnet-heads", {"num_heads": 1}, "scale must be 0.35.*, got 0.5.*mlp_q.1.weight is unex"),
        ("espnet-heads", {"num_heads": 4}, "mlp_q.2.weight, .*mlp_q.3.weight is missing"),
        ("keras", {"normalize": True}, "normalize must be False, got True"),
        ("pyg-gatv2", {"activation": "tanh"}, "activation must be 'leaky_relu', got 'tanh'"),
        ("pyg-gatv2", {"num_heads": 1}, r"att must have shape \(1, 1, 8\) .*, got \(1, 2, 4\)"),
        ("pyg-gatv2", {"bias": False}, "lin_r.bias has no place: .* bias=True"),
        ("gnmt", {"normalize": False}, "normalize_scalar is unexpected"),
        ("gnmt, not normalised", {"normalize": True}, "normalize_scalar is missing"),
    ],
)
def test_wrong_settings_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    case = LOADS[name]
    with pytest.raises(ValueError, match=message):
        load_state_dict_from(made(case, **options), checkpoint(case), convention=case.convention)


def test_other_refusals() -> None:
    state, module = checkpoint(LOADS["joeynmt"]), AdditiveAttention(Q, K, H)
    with pytest.raises(ValueError, match="convention must be one of .*'gnmt', .*got 'marian'"):
        load_state_dict_from(module, state, convention="marian")
    for other in (LocationSensitiveAttention(Q, K, H), CoverageAttention(Q, K, H)):
        with pytest.raises(TypeError, match="module must be an attnkernels.nn.AdditiveAtt.*, got"):
            load_state_dict_from(other, state, convention="joeynmt")
    with pytest.raises(
        ValueError, match="key_layer.weight must be floating-point, got torch.int64"
    ):
        state["key_layer.weight"] = state["key_layer.weight"].long()
        load_state_dict_from(module, state, convention="joeynmt")
    with pytest.raises(ValueError, match="key_layer.weight must be a tensor, got str"):
        load_state_dict_from(module, state | {"key_layer.weight": "x"}, convention="joeynmt")


def test_biases_are_added_and_the_report_says_so() -> None:
    state, module = checkpoint(LOADS["captioning"]), made(LOADS["captioning"])
    report = load_state_dict_from(module, state, convention="captioning")
    wanted = state["decoder_att.bias"] + state["encoder_att.bias"]
    torch.testing.assert_close(module.query_proj.bias, wanted)
    text = str(report)
    assert "query_proj.bias = decoder_att.bias + encoder_att.bias" in text
    assert "dropped full_att.bias: the softmax cancels it" in text


def test_arrays_and_names_of_tensorflow() -> None:
    """Variables are arrays and may carry the number of their output. A missing bias gives zeros."""
    case = LOADS["tfa"]
    state, module = checkpoint(case), made(case)
    arrays = {f"{name}:0": x.numpy() for name, x in state.items()}
    report = load_state_dict_from(module, arrays, convention="tfa")
    assert report.zeroed == ("query_proj.bias",) and not module.query_proj.bias.any()
    assert torch.equal(module.key_proj.weight, state["memory_layer/kernel"].mT)
    assert "query_proj.bias = 0" in str(report)


def test_one_missing_head_is_named_and_no_other() -> None:
    case = LOADS["espnet-heads"]
    state, module = checkpoint(case), made(case)
    del state["mlp_k.1.weight"]
    with pytest.raises(ValueError, match="mlp_k.1.weight is missing") as raised:
        load_state_dict_from(module, state, convention="espnet-heads")
    assert "mlp_k.0" not in str(raised.value)
    del state["mlp_k.0.weight"]
    with pytest.raises(ValueError, match="mlp_k.0.weight, mlp_k.1.weight is missing"):
        load_state_dict_from(module, state, convention="espnet-heads")


def test_heads_are_put_one_after_another() -> None:
    case = LOADS["espnet-heads"]
    state, module = checkpoint(case), made(case)
    report = load_state_dict_from(module, state, convention="espnet-heads")
    assert torch.equal(module.query_proj.weight[H // 2 :], state["mlp_q.1.weight"])
    assert torch.equal(module.query_proj.bias[: H // 2], state["mlp_q.0.bias"])
    assert torch.equal(module.weight[1:], state["gvec.1.weight"])
    assert "key_proj.weight = mlp_k.0.weight, mlp_k.1.weight" in str(report)


@pytest.mark.parametrize("d", [3, 7, 24])
def test_the_scale_of_heads_may_be_written_in_any_way(d: int) -> None:
    """1 / sqrt(d) and d ** -0.5 may differ in their last bit."""
    state = {"mlp_q.0.weight": torch.ones(d, Q), "mlp_q.0.bias": torch.ones(d)}
    state |= {"mlp_k.0.weight": torch.ones(d, K), "gvec.0.weight": torch.ones(1, d)}
    for scale in (1 / math.sqrt(d), d**-0.5, 1 / d**0.5):
        module = AdditiveAttention(Q, K, d, scale=scale)
        load_state_dict_from(module, state, convention="espnet-heads")
        assert module.weight.eq(1).all()


def test_keras_projects_nothing() -> None:
    module = AdditiveAttention(H, H, H, bias=False)
    report = load_state_dict_from(module, {"scale": torch.ones(H)}, convention="keras")
    assert torch.equal(module.query_proj.weight, torch.eye(H))
    assert torch.equal(module.key_proj.weight, torch.eye(H))
    assert report.loaded == {"weight": ("scale",)} and report.zeroed == ()
    named = {"additive_attention/scale": torch.ones(H)}
    report = load_state_dict_from(module, named, convention="keras")
    assert report.loaded == {"weight": ("additive_attention/scale",)}
    with pytest.raises(
        ValueError, match=r"scale must have shape \(8,\) for module.weight, got \(9,"
    ):
        load_state_dict_from(module, {"scale": torch.ones(H + 1)}, convention="keras")
    other = AdditiveAttention(Q, H, H)
    before = other.query_proj.weight.clone()
    with pytest.raises(ValueError, match=r"query_proj.weight must be square, .* got \(8, 6\)"):
        load_state_dict_from(other, {"scale": torch.ones(H)}, convention="keras")
    assert torch.equal(other.query_proj.weight, before)


def test_biases_that_may_be_absent() -> None:
    """GATv2's layers may have both, one or neither."""
    case = LOADS["pyg-gatv2"]
    state, module = checkpoint(case), made(case)
    report = load_state_dict_from(module, state, convention="pyg-gatv2")
    assert report.loaded["query_proj.bias"] == ("lin_r.bias", "lin_l.bias")
    del state["lin_r.bias"]
    report = load_state_dict_from(module, state, convention="pyg-gatv2")
    assert report.loaded["query_proj.bias"] == ("lin_l.bias",)
    assert torch.equal(module.query_proj.bias, state["lin_l.bias"])
    del state["lin_l.bias"]
    report = load_state_dict_from(module, state, convention="pyg-gatv2")
    assert report.zeroed == ("query_proj.bias",) and not module.query_proj.bias.any()
