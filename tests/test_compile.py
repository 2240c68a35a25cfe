"""torch.compile without graph breaks, export, fake tensors, opcheck on every operator reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from inputs import BF16, F32, F64, Shape, cumulative, make, normal
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from attnkernels import (
    additive_attention,
    additive_attention_varlen,
    additive_scores,
    prepare_keys,
)

SHAPE: Shape = (2, 3, 5, 4, 6)


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.compiler.reset()


class Recorder(TorchDispatchMode):
    """The calls that reach our own operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "attnkernels":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def attention_with(**options: Any) -> Callable[[str], Any]:
    def call(backend: str) -> Any:
        return additive_attention(*make(SHAPE), backend=backend, **options)

    return call


def varlen(backend: str) -> Any:
    tensors = (normal(4, 3), normal(5, 3), normal(5, 2), normal(3))
    return additive_attention_varlen(
        *tensors, cumulative([2, 1, 1]), cumulative([3, 0, 2]), return_lse=True, backend=backend
    )


def remembered(backend: str) -> Any:
    query, key, value, weight = make(SHAPE)
    return prepare_keys(key, value, weight, backend=backend).attend(query)


CALLS: dict[str, Callable[[str], Any]] = {
    "plain": attention_with(),
    "everything": attention_with(
        attn_mask=torch.zeros(3, 5).requires_grad_(),
        key_lengths=torch.tensor([0, 4]),
        is_causal=True,
        dropout_p=0.3,
        return_weights=True,
        return_lse=True,
    ),
    "bool mask": attention_with(attn_mask=torch.tensor([True, True, False, True, True])),
    "bfloat16": lambda backend: additive_attention(*make(SHAPE, BF16), backend=backend),
    "float64": lambda backend: additive_attention(*make(SHAPE, F64), backend=backend),
    "relu": attention_with(activation="relu", return_weights=True),
    "heads": lambda backend: additive_attention(
        normal(2, 1, 3, 4), normal(3, 5, 4), normal(5, 2), normal(3, 4), backend=backend
    ),
    "no keys": lambda backend: additive_attention(*make((2, 3, 0, 4, 5)), backend=backend),
    "scores": lambda backend: additive_scores(
        normal(2, 3, 4), normal(2, 5, 4), normal(4), backend=backend
    ),
    "varlen": varlen,
    "memory": remembered,
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(backend: str, name: str) -> None:
    """Each operator of ours that forward and backward reach, with the arguments of the call."""
    with Recorder() as recorder:
        outputs = CALLS[name](backend)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(output.float().nan_to_num(neginf=0.0).square().sum() for output in outputs).backward()
    for op, args, kwargs in recorder.calls:
        torch.library.opcheck(op, args, kwargs)
    assert recorder.calls or backend == "reference"


def everything(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    mask: Tensor,
    lengths: Tensor,
    backend: str,
) -> tuple[Tensor, ...]:
    return additive_attention(
        query,
        key,
        value,
        weight,
        attn_mask=mask,
        key_lengths=lengths,
        is_causal=True,
        scale=0.5,
        return_weights=True,
        return_lse=True,
        backend=backend,
    )


def agree(compiled: Callable[..., Any], backend: str, shape: Shape) -> None:
    """Outputs and gradients of the compiled call are those of the eager one."""
    batch, n, m, _, _ = shape
    inputs = (*make(shape), normal(n, m))
    lengths = torch.arange(batch) % (m + 1)
    results = []
    for call in (everything, compiled):
        context, weights, lse = call(*inputs, lengths, backend)
        loss = context.square().sum() + weights.square().sum() + lse.exp().sum()
        results.append((context, weights, lse, *torch.autograd.grad(loss, inputs)))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_fullgraph(backend: str, dynamic: bool) -> None:
    compiled = torch.compile(everything, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    agree(compiled, backend, SHAPE)
    agree(compiled, backend, (3, 4, 7, 5, 2))


def test_inductor(fused: str) -> None:
    """Inductor's code around operators of ours; the naive formula is its own business."""
    compiled = torch.compile(everything, fullgraph=True)
    agree(compiled, fused, SHAPE)
    agree(compiled, fused, (3, 4, 7, 5, 2))


def traced_and_eager(call: Callable[..., Any], *inputs: Tensor) -> None:
    """The same outputs and the same gradients."""
    results = []
    for each in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        output = each(*inputs)
        floating = [x for x in inputs if x.requires_grad]
        results.append((output, *torch.autograd.grad(output.square().sum(), floating)))
    torch.testing.assert_close(*results)


def test_scores_trace(backend: str) -> None:
    traced_and_eager(
        lambda q, k, w: additive_scores(q, k, w, activation="sigmoid", backend=backend),
        normal(2, 1, 3, 4),
        normal(3, 5, 4),
        normal(3, 4),
    )


def test_varlen_traces(fused: str) -> None:
    """The reference loops over the sequences, whose lengths a trace does not know."""
    traced_and_eager(
        lambda *inputs: additive_attention_varlen(*inputs, is_causal=True, backend=fused),
        normal(4, 3),
        normal(5, 3),
        normal(5, 2),
        normal(3),
        cumulative([2, 1, 1]),
        cumulative([3, 0, 2]),
    )


def test_a_memory_traces(backend: str) -> None:
    def decode(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        memory = prepare_keys(key, value, weight, backend=backend)
        first = memory.attend(query)
        return memory.index_select(0, torch.tensor([1, 0])).attend(query + first.sum())

    traced_and_eager(decode, *make(SHAPE))


def test_dropout_traces(backend: str) -> None:
    inputs = make(SHAPE)

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return additive_attention(*tensors, dropout_p=0.5, return_weights=True, backend=backend)

    context, weights = torch.compile(call, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(context, weights @ inputs[2])
    dropped = weights == 0
    assert dropped.any() and not dropped.all()
    (gradient,) = torch.autograd.grad(context.sum(), inputs[2])
    torch.testing.assert_close(gradient, weights.sum(1).unsqueeze(-1).expand_as(gradient))


def test_autocast_traces(backend: str) -> None:
    inputs = make(SHAPE)

    def call(*tensors: Tensor) -> Tensor:
        with torch.autocast("cpu", BF16):
            return additive_attention(*tensors, backend=backend)

    traced = torch.compile(call, fullgraph=True, backend="aot_eager")(*inputs)
    assert traced.dtype == BF16
    torch.testing.assert_close(traced, call(*inputs))


class Layer(torch.nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4) / 2)
        self.backend = backend

    def forward(self, query: Tensor, key: Tensor, lengths: Tensor) -> Tensor:
        return additive_attention(
            query, key, key, self.weight, key_lengths=lengths, backend=self.backend
        )


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_export(backend: str, dynamic: bool) -> None:
    layer = Layer(backend)
    inputs = (torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.tensor([5, 2]))
    n, m = torch.export.Dim("n", min=2, max=64), torch.export.Dim("m", min=2, max=64)
    shapes = ({1: n}, {1: m}, {}) if dynamic else None
    program = torch.export.export(layer, inputs, dynamic_shapes=shapes).module()
    torch.testing.assert_close(program(*inputs), layer(*inputs))
    if dynamic:
        others = (torch.randn(2, 9, 4), torch.randn(2, 6, 4), torch.tensor([0, 6]))
        torch.testing.assert_close(program(*others), layer(*others))


@pytest.mark.parametrize(
    "shape", [SHAPE, (1, 1, 1, 1, 1), (2, 0, 3, 4, 5), (2, 3, 0, 4, 5), (0, 2, 3, 4, 5)]
)
@pytest.mark.parametrize("dtype", [F32, BF16, F64])
def test_fake_tensors_have_the_real_shapes(backend: str, shape: Shape, dtype: torch.dtype) -> None:
    options = {"return_weights": True, "return_lse": True, "backend": backend}
    real = additive_attention(*make(shape, dtype), **options)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        inputs = [mode.from_tensor(x) for x in make(shape, dtype)]
        fake = additive_attention(*inputs, **options)
        gradients = torch.autograd.grad(sum(x.float().sum() for x in fake), inputs)
    for a, b in zip(fake, real, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    for a, b in zip(gradients, inputs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
