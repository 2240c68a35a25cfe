"""The declaration of the operators' arguments, and the code that relies on its order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.inputs import make

from attnkernels.backends.fused import Fused
from attnkernels.ops.codes import ACTIVATIONS
from attnkernels.ops.signature import (
    BACKWARD,
    FORWARD,
    SCORES,
    SCORES_BACKWARD,
    SIGNATURES,
    SPARSE_BACKWARD,
    SPARSE_FORWARD,
    EdgeOptions,
    Options,
)


@pytest.mark.parametrize("name", SIGNATURES)
def test_tensors_come_first_and_of_these_the_leaves(name: str) -> None:
    """autograd relies on this order when it saves tensors apart from options."""
    signature = SIGNATURES[name]
    assert signature.names[: len(signature.tensors)] == signature.tensors
    if name in ("forward", "scores", "sparse_forward"):
        assert signature.arguments[: len(signature.leaves)] == signature.leaves
    assert len(set(signature.names)) == len(signature.names)


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_schema_is_what_torch_has(name: str) -> None:
    schema = getattr(torch.ops.attnkernels, f"native_{name}").default._schema
    assert str(schema) == f"attnkernels::native_{name}{SIGNATURES[name].schema()}"


def test_gradients_are_those_of_the_leaves() -> None:
    assert BACKWARD.results == tuple(each.name for each in FORWARD.leaves)
    assert SCORES_BACKWARD.results == tuple(each.name for each in SCORES.leaves)
    assert SCORES_BACKWARD.names == ("grad", *SCORES.names, "wanted")
    assert SPARSE_BACKWARD.results == tuple(each.name for each in SPARSE_FORWARD.leaves)


def test_options_are_what_follows_the_inputs_in_forward() -> None:
    inputs = "query", "key", "value", "weight"
    # the precision is a part of the activation's code, and lse no choice of an operator
    *fields, precision, lse = Options._fields
    assert FORWARD.names == (*inputs, *fields) and (precision, lse) == ("precision", "return_lse")
    assert SPARSE_FORWARD.names == (*inputs, *EdgeOptions._fields)


class Recorded(Exception):
    """An exception that carries the arguments of a call."""


def test_a_fused_backend_names_every_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value that Fused passes on arrives under its own name."""

    def record(*args: Any) -> Any:
        raise Recorded(args)

    names = {name: f"native_{name}" for name in SIGNATURES}
    ops = {name: getattr(torch.ops.attnkernels, full).default for name, full in names.items()}
    fused = Fused(SimpleNamespace(**ops))
    monkeypatch.setattr(fused, "_forward", record)
    monkeypatch.setattr(fused, "_scores", record)
    monkeypatch.setattr(fused, "_over_edges", record)
    query, key, value, weight = make((1, 2, 3, 4, 5))
    values: Any = {name: object() for name in Options._fields}
    options = Options(**values | {"activation": "leaky_relu", "return_weights": True})
    with pytest.raises(Recorded) as caught:
        fused.attention(query, key, value, weight, options)
    inputs = {"query": query, "key": key, "value": value, "weight": weight}
    coded = options._asdict() | {"activation": ACTIVATIONS["leaky_relu"].code}
    given = FORWARD.named(caught.value.args[0])
    wanted = inputs | coded
    assert all(given[name] is wanted[name] for name in FORWARD.names)
    with pytest.raises(Recorded) as caught:
        fused.scores(query, key, weight, options)
    given = SCORES.named(caught.value.args[0])
    assert all(given[name] is wanted[name] for name in SCORES.names)
    values = {name: object() for name in EdgeOptions._fields}
    edge_options = EdgeOptions(**values | {"activation": "leaky_relu", "return_weights": True})
    with pytest.raises(Recorded) as caught:
        fused.attention_over_edges(query, key, value, weight, edge_options)
    wanted = inputs | edge_options._asdict() | {"activation": ACTIVATIONS["leaky_relu"].code}
    given = SPARSE_FORWARD.named(caught.value.args[0])
    assert all(given[name] is wanted[name] for name in SPARSE_FORWARD.names)
