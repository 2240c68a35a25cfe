"""The forward's overload of few arguments: taken by small calls, and seen by nobody."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from helpers.inputs import make
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from attnkernels import additive_attention
from attnkernels.backends import native
from attnkernels.ops.codes import ACTIVATIONS
from attnkernels.ops.signature import FORWARD, Options
from attnkernels.ops.unmasked import shortened

pytestmark = pytest.mark.skipif(
    not hasattr(native.ops.forward.overloadpacket, "unmasked"), reason="the library is not built"
)
PLAIN = Options()._replace(activation=ACTIVATIONS["tanh"].code)


class Seen(TorchDispatchMode):
    """The operators of attnkernels that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "attnkernels":
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def unmasked(*inputs: Tensor) -> Any:
    return native.ops.forward.overloadpacket.unmasked(*inputs, None, None, 0.0)


def test_its_arguments_are_some_of_the_forward_s() -> None:
    names = [each.name for each in native.ops.forward.overloadpacket.unmasked._schema.arguments]
    assert names == [name for name in FORWARD.names if name in names]


@pytest.mark.parametrize("change", [{}, *({name: value} for name, value in {
    "attn_mask": torch.tensor([True, False, True, True]), "key_lengths": torch.tensor(3),
    "key_starts": torch.tensor(2), "window_left": 0, "window_right": 0, "scale": 0.5,
    "activation": ACTIVATIONS["sigmoid"].code, "return_weights": True,
    "seed": torch.tensor(5), "cu_seqlens_q": torch.tensor([0, 1, 3]),
}.items())], ids=lambda change: next(iter(change), "none"))  # fmt: skip
def test_no_option_is_lost(change: dict[str, Any]) -> None:
    inputs = make((1, 3, 4, 8, 5), grad=False)
    if "cu_seqlens_q" in change:
        change = {**change, "cu_seqlens_k": torch.tensor([0, 2, 4])}
    if "seed" in change:
        change = {**change, "dropout_p": 0.5}
    given = PLAIN._replace(**change)[: len(FORWARD.names) - len(inputs)]
    usual = native.ops.forward
    found, wanted = (op(*inputs, *given) for op in (shortened(usual), usual))
    # the same bits: one kernel computes both
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def test_it_is_the_usual_one_for_whoever_watches() -> None:
    inputs = make((1, 3, 4, 8, 5), grad=False)
    attend = partial(additive_attention, backend="native")
    with Seen() as seen:
        attend(*inputs)
    assert seen.names == ["attnkernels.native_forward.default"]
    graph = make_fx(attend)(*inputs).graph
    targets = [str(node.target) for node in graph.nodes if "attnkernels" in str(node.target)]
    assert targets == ["attnkernels.native_forward.default"]
    with FakeTensorMode() as mode:
        context, lse, state = unmasked(*map(mode.from_tensor, inputs))
    assert [tuple(x.shape) for x in (context, lse, state)] == [(1, 3, 5), (1, 3), (1, 6)]
