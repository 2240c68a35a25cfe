"""Forward-mode derivatives of every module, also of frozen ones, against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.inputs import F64, make, normal
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, linearize

from attnkernels import prepare_keys
from attnkernels.functional.deferred import DeferredMemory, RepeatedMemory
from attnkernels.nn import (
    AdditiveAttention,
    AttentionPooling,
    AttentionRNN,
    CoverageAttention,
    HardAttention,
    LocationSensitiveAttention,
    MonotonicAttention,
    PointerHead,
)

pytestmark = pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # linearize

SIZES = (6, 4, 8)  # of query, key, hidden
MODULES: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: AdditiveAttention(*SIZES, normalize=True),
    "heads": lambda: AdditiveAttention(*SIZES, num_heads=2),
    "coverage": lambda: CoverageAttention(*SIZES),
    "location": lambda: LocationSensitiveAttention(*SIZES, channels=3, kernel_size=3),
    "monotonous": lambda: MonotonicAttention(*SIZES, evaluation="expected"),
    "hard": lambda: Hard(),
    "pointer": lambda: PointerHead(*SIZES),
    "pooling": lambda: Pooling(),
    "rnn": lambda: RNN(),
}
Way = Callable[[nn.Module, Callable[..., Tensor], Any, Any], Tensor]


class Hard(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hard = HardAttention(*SIZES, evaluation="expected")

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return self.hard(query, key).context


class Pooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pooling = AttentionPooling(4, 8)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return self.pooling(key) * query.sum()


class Cell(nn.Module):
    """A plain cell: torch.func.linearize of torch.nn's own is wrong from its second call on."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.state = nn.Linear(10, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, state: Tensor | None) -> Tensor:
        hidden = self.input(x)
        return torch.tanh(hidden if state is None else hidden + self.state(state))


class RNN(nn.Module):
    """An AttentionRNN that is training, so that it defers the gradients of its keys."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = AttentionRNN(Cell(), AdditiveAttention(*SIZES))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return self.rnn(query, key)[1]


def by_jvp(module: nn.Module, call: Callable[..., Tensor], inputs: Any, tangents: Any) -> Tensor:
    return jvp(call, inputs, tangents)[1]


def by_linearize(
    module: nn.Module, call: Callable[..., Tensor], inputs: Any, tangents: Any
) -> Tensor:
    linear = linearize(call, *inputs)[1]
    linear(*tangents)
    return linear(*tangents)  # calls may not change what they share


def by_duals(frozen: bool, grad_mode: bool) -> Way:
    def way(module: nn.Module, call: Callable[..., Tensor], inputs: Any, tangents: Any) -> Tensor:
        module.requires_grad_(not frozen)
        with forward_ad.dual_level(), torch.set_grad_enabled(grad_mode):
            out = call(*map(forward_ad.make_dual, inputs, tangents))
            tangent = forward_ad.unpack_dual(out).tangent
            assert tangent is not None
            return tangent.detach()

    return way


WAYS: dict[str, Way] = {
    "jvp": by_jvp,
    "linearize": by_linearize,
    "learning": by_duals(False, True),
    "frozen": by_duals(True, True),
    "no_grad": by_duals(False, False),
}


def differences(call: Callable[..., Tensor], inputs: Any, tangents: Any) -> Tensor:
    step = 1e-5
    after, before = (
        call(*(x + sign * step * t for x, t in zip(inputs, tangents, strict=True)))
        for sign in (1, -1)
    )
    return (after - before).detach() / (2 * step)


def made(name: str) -> nn.Module:
    return MODULES[name]().double().train(name == "rnn")


def tensors() -> tuple[Tensor, Tensor]:
    return normal(2, 3, 6, dtype=F64, grad=False), normal(2, 5, 4, dtype=F64, grad=False)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODULES)
def test_tangents_of_inputs(name: str, way: str) -> None:
    module, inputs, tangents = made(name), tensors(), tensors()
    exact = differences(module, inputs, tangents)
    assert exact.abs().max() > 1e-3
    found = WAYS[way](module, module, inputs, tangents)
    torch.testing.assert_close(found.detach(), exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("way", ["jvp", "linearize", "frozen"])
@pytest.mark.parametrize("name", MODULES)
def test_tangents_of_parameters(name: str, way: str) -> None:
    module, inputs = made(name), tensors()
    names = [name for name, _ in module.named_parameters()]
    parameters = tuple(x.detach() for x in module.parameters())
    tangents = tuple(torch.randn_like(x) for x in parameters)

    def call(*parameters: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, parameters, strict=True)), inputs)

    exact = differences(call, parameters, tangents)
    assert exact.abs().max() > 1e-3
    found = WAYS[way](module, call, parameters, tangents)
    torch.testing.assert_close(found.detach(), exact, rtol=1e-6, atol=1e-8)


@pytest.fixture
def memory(backend: str) -> Any:
    _, *inputs = make((2, 3, 4, 5, 2))
    return prepare_keys(*inputs, backend=backend)


def test_deferred_gradients_refuse_tangents(memory: Any) -> None:
    query = normal(2, 1, 5, grad=False)
    made_before = DeferredMemory(memory, 4, return_weights=True)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(query, query)
        with pytest.raises(NotImplementedError, match="cannot pass through deferred gradients"):
            made_before.attend(dual)
        key = forward_ad.make_dual(memory.key, memory.key)
        with pytest.raises(NotImplementedError, match="cannot pass through deferred gradients"):
            DeferredMemory(prepare_keys(key, memory.value, memory.weight), 4, return_weights=True)
    with pytest.raises(NotImplementedError, match="cannot pass through deferred gradients"):
        jvp(made_before.attend, (query,), (query,))


def test_repeated_steps_have_tangents(memory: Any) -> None:
    """Inside a level no step is deferred, even if earlier ones were."""
    query = normal(2, 1, 5, grad=False)
    expected = jvp(lambda q: memory.attend(q), (query,), (query,))[1]
    repeated = RepeatedMemory(memory)
    for _ in range(3):
        repeated.attend(query)
    with forward_ad.dual_level():
        context, _ = repeated.attend(forward_ad.make_dual(query, query))
        torch.testing.assert_close(forward_ad.unpack_dual(context).tangent, expected)


def test_the_deferred_backward_keeps_the_tangents_of_its_gradients(memory: Any) -> None:
    query, gradient = normal(2, 1, 5, grad=False), normal(2, 1, 2, grad=False)
    inputs = memory.key, memory.value, memory.weight

    def tangents(attend: Callable[[Tensor], Tensor]) -> Any:
        total = sum(attend(query + step) for step in range(3))
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(torch.ones_like(gradient), gradient)
            grads = torch.autograd.grad(total, inputs, dual)
            return [forward_ad.unpack_dual(g).tangent for g in grads]

    repeated = RepeatedMemory(memory)
    found = tangents(lambda query: repeated.attend(query)[0])
    torch.testing.assert_close(found, tangents(memory.attend))
