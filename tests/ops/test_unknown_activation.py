"""Every operator, called directly, raises for a code that is not in the table of activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.inputs import make

from attnkernels import prepare_edges
from attnkernels.ops.codes import ACTIVATIONS, find_activation
from attnkernels.ops.signature import SIGNATURES

UNKNOWN = 7
# A backend may take keys as they are, and leave forward mode to the formula.
OPTIONAL = ("pack_keys", "forward_jvp", "scores_jvp")
ACTIVATED = [name for name, each in SIGNATURES.items() if "activation" in each.names]
MESSAGE = f"activation must be one of .*tanh.*, got {UNKNOWN}"


def arguments(operator: str, device: str = "cpu") -> dict[str, Any]:
    """Return good arguments of an operator, except for the activation."""
    batch, n, m, d, dv = shape = (2, 5, 4, 6, 3)  # more queries than a step has
    query, key, value, weight = make(shape, grad=False)
    outputs = {
        "context": torch.zeros(batch, n, dv),
        "lse": torch.zeros(batch, n),
        "weights": torch.zeros(0),
    }
    edges = prepare_edges(torch.tensor([[0, 1, 3], [4, 0, 2]]), n, m)
    given = {
        **edges._asdict(),
        **{"query": query, "key": key, "value": value, "weight": weight},
        **outputs,
        "grad_context": outputs["context"],
        "grad": torch.zeros(batch, n, m),
        **{"activation": UNKNOWN, "negative_slope": 0.2, "scale": 1.0},
        **{"dropout_p": 0.0, "return_weights": False, "wanted": 1},
    }
    named = {name: given.get(name) for name in SIGNATURES[operator].names}
    return {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in named.items()}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("operator", ACTIVATED)
def test_an_unknown_code_is_an_error(fused: str, operator: str, device: str) -> None:
    name = f"{fused}_{operator}"
    if not hasattr(torch.ops.attnkernels, f"{fused}_forward"):
        pytest.skip("it has no operators")
    if not hasattr(torch.ops.attnkernels, name):
        assert operator in OPTIONAL
        return
    given = arguments(operator, device)
    key = device.upper()
    if device == "cpu" and not torch._C._dispatch_has_kernel_for_dispatch_key(
        f"attnkernels::{name}", key
    ):
        assert operator in OPTIONAL
        return
    with pytest.raises(RuntimeError, match=MESSAGE):
        getattr(torch.ops.attnkernels, name)(**given)


@pytest.mark.parametrize("operator", ACTIVATED)
def test_a_known_code_is_no_error(fused: str, operator: str) -> None:
    """The arguments of the test above are good except for the code."""
    for f in ACTIVATIONS.values():
        given = arguments(operator, "meta") | {"activation": f.code}
        if hasattr(torch.ops.attnkernels, f"{fused}_{operator}"):
            getattr(torch.ops.attnkernels, f"{fused}_{operator}")(**given)


def test_the_message_names_every_known_code() -> None:
    with pytest.raises(RuntimeError) as caught:
        find_activation(UNKNOWN)
    assert all(f"{f.code} ({f.name})" in str(caught.value) for f in ACTIVATIONS.values())
