"""Bad input: every error names the argument, what is wanted and what was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.inputs import ACTIVATIONS, BF16, F64, cumulative, make, normal

from attnkernels import (
    additive_attention,
    additive_attention_sparse,
    additive_attention_varlen,
    additive_scores,
    prepare_edges,
    prepare_keys,
)
from attnkernels.backends import BACKENDS

SHAPE = (2, 3, 4, 5, 6)
VARLEN = (
    normal(5, 3, grad=False),
    normal(7, 3, grad=False),
    normal(7, 2, grad=False),
    normal(3, grad=False),
)


def attend(**changes: Any) -> Any:
    """Call additive_attention on good inputs with these changes."""
    names = ("query", "key", "value", "weight")
    arguments = dict(zip(names, make(SHAPE, grad=False), strict=True)) | changes
    return additive_attention(**arguments)


def scores(**changes: Any) -> Any:
    query, key, _, weight = make(SHAPE, grad=False)
    arguments = {"query": query, "key": key, "weight": weight} | changes
    return additive_scores(**arguments)


def varlen(**changes: Any) -> Any:
    names = ("query", "key", "value", "weight", "cu_seqlens_q", "cu_seqlens_k")
    good = (*VARLEN, cumulative([2, 3]), cumulative([4, 3]))
    arguments = dict(zip(names, good, strict=True)) | changes
    return additive_attention_varlen(**arguments)


EDGES = prepare_edges(torch.tensor([[0, 1, 3], [2, 0, 2]]), 3, 4)


def sparse(**changes: Any) -> Any:
    names = ("query", "key", "value", "weight")
    good = dict(zip(names, make(SHAPE, grad=False), strict=True))
    return additive_attention_sparse(**{**good, "edges": EDGES, **changes})


def prepare(**changes: Any) -> Any:
    _, key, value, weight = make(SHAPE, grad=False)
    arguments = {"key": key, "value": value, "weight": weight} | changes
    return prepare_keys(**arguments)


def memory_attend(query: Any, **options: Any) -> Any:
    return prepare().attend(query, **options)


q = normal(2, 3, 5, grad=False)
k = normal(2, 4, 5, grad=False)
v = normal(2, 4, 6, grad=False)
w = normal(5, grad=False)

# call, changes, exception, what the message must name
TABLE: list[
    tuple[Callable[..., Any], dict[str, Any], type[Exception] | tuple[type[Exception], ...], str]
] = [
    # shapes
    (attend, {"query": normal(5)}, ValueError, "query"),
    (attend, {"key": normal(5)}, ValueError, "key"),
    (attend, {"value": normal(6)}, ValueError, "value"),
    (attend, {"weight": normal().reshape(())}, ValueError, "weight"),
    (attend, {"key": normal(2, 4, 7)}, ValueError, "key"),
    (attend, {"weight": normal(7)}, ValueError, "weight"),
    (attend, {"weight": normal(1)}, ValueError, "weight"),
    (attend, {"weight": normal(3, 5)}, ValueError, "weight"),
    (attend, {"value": normal(2, 3, 6)}, ValueError, "value"),
    (attend, {"value": normal(2, 1, 6)}, ValueError, "value"),
    (attend, {"key": normal(3, 4, 5)}, ValueError, "key"),
    (attend, {"value": normal(3, 4, 6)}, ValueError, "value"),
    (attend, {"query": q[..., :0], "key": k[..., :0], "weight": w[:0]}, ValueError, "d"),
    # things that are not tensors, dtypes, devices
    (attend, {"query": [[1.0]]}, TypeError, "query"),
    (attend, {"key": None}, TypeError, "key"),
    (attend, {"value": 1.0}, TypeError, "value"),
    (attend, {"weight": "tanh"}, TypeError, "weight"),
    (
        attend,
        {"query": q.long(), "key": k.long(), "value": v.long(), "weight": w.long()},
        TypeError,
        "query",
    ),
    (
        attend,
        {"query": q.cfloat(), "key": k.cfloat(), "value": v.cfloat(), "weight": w.cfloat()},
        TypeError,
        "query",
    ),
    (attend, {"key": k.to(BF16)}, TypeError, "key"),
    (attend, {"value": v.to(F64)}, TypeError, "value"),
    (attend, {"weight": w.to(BF16)}, TypeError, "weight"),
    (attend, {"key": k.to("meta")}, (ValueError, TypeError), "key"),
    (attend, {"weight": w.to("meta")}, (ValueError, TypeError), "weight"),
    # edges
    (sparse, {"edges": torch.zeros(2, 3, dtype=torch.long)}, TypeError, "edges"),
    (sparse, {"edges": prepare_edges(EDGES.edge_index(), 5, 4)}, ValueError, "query"),
    (sparse, {"edges": prepare_edges(EDGES.edge_index(), 3, 9)}, ValueError, "key"),
    (sparse, {"edges": EDGES.to("meta")}, (ValueError, TypeError), "edges"),
    (sparse, {"edge_key": normal(2, 4, 5, grad=False)}, ValueError, "edge_key"),
    (sparse, {"edge_key": normal(3, grad=False)}, ValueError, "edge_key"),
    (sparse, {"edge_key": normal(7, 3, 5, grad=False)}, ValueError, "edge_key"),
    (sparse, {"edge_key": normal(3, 5, grad=False).to(BF16)}, TypeError, "edge_key"),
    (sparse, {"edge_bias": normal(2, 4, grad=False)}, ValueError, "edge_bias"),
    (sparse, {"edge_bias": torch.ones(3, dtype=torch.bool)}, TypeError, "edge_bias"),
    (sparse, {"value": v[:, :3]}, ValueError, "value"),
    (sparse, {"dropout_p": 1.5}, ValueError, "dropout_p"),
    (sparse, {"activation": "gelu"}, ValueError, "activation"),
    (sparse, {"negative_slope": -0.1}, ValueError, "negative_slope"),
    (sparse, {"scale": float("nan")}, ValueError, "scale"),
    (sparse, {"return_lse": 1}, TypeError, "return_lse"),
    (sparse, {"backend": "cuda"}, ValueError, "backend"),
    # masks
    (attend, {"attn_mask": torch.ones(3, 4, dtype=torch.long)}, TypeError, "attn_mask"),
    (attend, {"attn_mask": torch.ones(3, 4, dtype=F64)}, TypeError, "attn_mask"),
    (attend, {"attn_mask": [[True]]}, TypeError, "attn_mask"),
    (attend, {"attn_mask": torch.ones(3, 5, dtype=torch.bool)}, ValueError, "attn_mask"),
    (attend, {"attn_mask": torch.ones(3, 3, 4, dtype=torch.bool)}, ValueError, "attn_mask"),
    (
        attend,
        {"attn_mask": torch.ones(3, 4, dtype=torch.bool, device="meta")},
        (ValueError, TypeError),
        "attn_mask",
    ),
    # lengths
    (attend, {"key_lengths": torch.tensor([1.0, 2.0])}, TypeError, "key_lengths"),
    (attend, {"key_lengths": torch.tensor([True, False])}, TypeError, "key_lengths"),
    (attend, {"key_lengths": [1, 2]}, TypeError, "key_lengths"),
    (attend, {"key_lengths": torch.tensor([1, 5])}, ValueError, "key_lengths"),
    (attend, {"key_lengths": torch.tensor([-1, 4])}, ValueError, "key_lengths"),
    (attend, {"key_lengths": torch.tensor([1, 2, 3])}, ValueError, "key_lengths"),
    (
        attend,
        {"key_lengths": torch.tensor([1, 2], device="meta")},
        (ValueError, TypeError),
        "key_lengths",
    ),
    # numbers and names
    (attend, {"dropout_p": -0.1}, ValueError, "dropout_p"),
    (attend, {"dropout_p": 1.0001}, ValueError, "dropout_p"),
    (attend, {"dropout_p": float("nan")}, ValueError, "dropout_p"),
    (attend, {"dropout_p": "half"}, TypeError, "dropout_p"),
    (attend, {"activation": "nonesuch"}, ValueError, "leaky_relu"),
    (attend, {"activation": torch.tanh}, (ValueError, TypeError), "activation"),
    (attend, {"activation": "leaky_relu", "negative_slope": -0.1}, ValueError, "negative_slope"),
    (attend, {"activation": "leaky_relu", "negative_slope": 1.5}, ValueError, "negative_slope"),
    (
        attend,
        {"activation": "leaky_relu", "negative_slope": float("nan")},
        ValueError,
        "negative_slope",
    ),
    (attend, {"scale": "big"}, TypeError, "scale"),
    (attend, {"backend": "fast"}, ValueError, "reference"),
    (attend, {"backend": "fast"}, ValueError, "fast"),
    # scores
    (scores, {"query": normal(5)}, ValueError, "query"),
    (scores, {"key": normal(2, 4, 7)}, ValueError, "key"),
    (scores, {"key": normal(3, 4, 5)}, ValueError, "key"),
    (scores, {"weight": normal(6)}, ValueError, "weight"),
    (scores, {"weight": w.to(BF16)}, TypeError, "weight"),
    (scores, {"activation": "nonesuch"}, ValueError, "activation"),
    (scores, {"backend": "fast"}, ValueError, "backend"),
    # packed sequences
    (varlen, {"cu_seqlens_q": [0, 5]}, TypeError, "cu_seqlens_q"),
    (varlen, {"cu_seqlens_q": torch.tensor([0.0, 2.0, 5.0])}, TypeError, "cu_seqlens_q"),
    (varlen, {"cu_seqlens_q": torch.tensor([[0, 2, 5]])}, ValueError, "cu_seqlens_q"),
    (varlen, {"cu_seqlens_q": torch.tensor([1, 2, 5])}, ValueError, "cu_seqlens_q"),
    (varlen, {"cu_seqlens_q": torch.tensor([0, 2, 4])}, ValueError, "cu_seqlens_q"),
    (varlen, {"cu_seqlens_k": torch.tensor([0, 9, 7])}, ValueError, "cu_seqlens_k"),
    (varlen, {"cu_seqlens_k": torch.tensor([0, 7])}, ValueError, "cu_seqlens_k"),
    (varlen, {"cu_seqlens_k": torch.tensor([0, 4, 3, 7])}, ValueError, "cu_seqlens_k"),
    (varlen, {"cu_seqlens_k": torch.zeros(0, dtype=torch.long)}, ValueError, "cu_seqlens_k"),
    (varlen, {"query": normal(3)}, ValueError, "query"),
    (varlen, {"key": normal(7, 4)}, ValueError, "key"),
    (varlen, {"value": normal(6, 2)}, ValueError, "value"),
    (varlen, {"weight": normal(4)}, ValueError, "weight"),
    (varlen, {"value": VARLEN[2].to(BF16)}, TypeError, "value"),
    (varlen, {"dropout_p": 2.0}, ValueError, "dropout_p"),
    (varlen, {"activation": "nonesuch"}, ValueError, "activation"),
    (varlen, {"backend": "fast"}, ValueError, "backend"),
    # prepared keys
    (prepare, {"key": normal(5)}, ValueError, "key"),
    (prepare, {"value": normal(2, 3, 6)}, ValueError, "value"),
    (prepare, {"weight": normal(7)}, ValueError, "weight"),
    (prepare, {"key": k.to(BF16)}, TypeError, "key"),
    (prepare, {"key_lengths": torch.tensor([1, 5])}, ValueError, "key_lengths"),
    (prepare, {"activation": "nonesuch"}, ValueError, "activation"),
    (prepare, {"backend": "fast"}, ValueError, "backend"),
    (memory_attend, {"query": normal(2, 1, 7)}, ValueError, "query"),
    (memory_attend, {"query": normal(3, 1, 5)}, ValueError, "query|key"),
    (memory_attend, {"query": normal(2, 1, 5, dtype=F64)}, TypeError, "query"),
    (memory_attend, {"query": q, "dropout_p": 2.0}, ValueError, "dropout_p"),
]


def label(row: tuple[Callable[..., Any], dict[str, Any], Any, str]) -> str:
    return f"{row[0].__name__}-{'+'.join(row[1])}"


@pytest.mark.parametrize("call, changes, error, named", TABLE, ids=map(label, TABLE))
def test_misuse_is_named(
    call: Callable[..., Any], changes: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=rf"\b({named})\b"):
        call(**changes)


@pytest.mark.parametrize("call", [attend, scores, varlen, prepare])
def test_good_inputs_pass(call: Callable[..., Any]) -> None:
    call()


def test_messages_say_what_came_and_what_is_wanted() -> None:
    with pytest.raises(ValueError, match="7") as caught:
        attend(weight=normal(7))
    assert "5" in str(caught.value)
    with pytest.raises(ValueError, match="nonesuch") as caught:
        attend(activation="nonesuch")
    assert all(repr(name) in str(caught.value) for name in ACTIVATIONS)
    with pytest.raises(TypeError, match="bfloat16") as caught_type:
        attend(key=k.to(BF16))
    assert "float32" in str(caught_type.value)


@pytest.mark.parametrize("module", BACKENDS, ids=lambda module: module.NAME)
def test_a_backend_asked_for_by_name_never_falls_back(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "it is switched off"
    monkeypatch.setattr(module, "why_not", lambda problem: sentence)
    for call in (attend, scores, varlen, prepare):
        with pytest.raises(ValueError, match=module.NAME) as caught:
            call(backend=module.NAME)
        assert sentence in str(caught.value)


def test_nothing_fits_prints_every_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = [f"{module.NAME} is switched off" for module in BACKENDS]
    for module, sentence in zip(BACKENDS, sentences, strict=True):
        monkeypatch.setattr(module, "why_not", lambda problem, sentence=sentence: sentence)
    with pytest.raises(ValueError) as caught:
        attend()
    assert all(sentence in str(caught.value) for sentence in sentences)


def test_the_first_backend_that_can_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last backend is taken if those before it say why not."""
    last = BACKENDS[-1]
    for module in BACKENDS[:-1]:
        monkeypatch.setattr(module, "why_not", lambda problem: "not today")
    monkeypatch.setattr(last, "attention", lambda *args, **options: ("asked", None, None))
    assert attend() == "asked"
