"""torch.compile without graph breaks, export, fake tensors, opcheck of every operator reached."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F32, F64, Shape, cumulative, make, normal, supports
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from attnkernels import (
    additive_attention,
    additive_attention_varlen,
    additive_scores,
    prepare_keys,
)
from attnkernels.nn import AdditiveAttention, AttentionRNN
from attnkernels.testing import check_attention, check_scores, check_varlen

SHAPE: Shape = (2, 3, 5, 4, 6)


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.compiler.reset()


class Recorder(TorchDispatchMode):
    """The calls that reach the operators of attnkernels."""

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
        window_size=(1, 2),
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
    if name == "float64" and not supports(backend, F64):
        pytest.skip(f"{backend} has no kernels for float64")
    """Return each attnkernels operator of forward and backward, with the arguments of the call."""
    with Recorder() as recorder:
        outputs = CALLS[name](backend)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(output.float().nan_to_num(neginf=0.0).square().sum() for output in outputs).backward()
    for op, args, kwargs in recorder.calls:
        # derivatives stand outside the operators, which are opaque to autograd
        plain = tree_map_only(Tensor, Tensor.detach, args)
        torch.library.opcheck(op, plain, kwargs)
    assert recorder.calls or not hasattr(torch.ops.attnkernels, f"{backend}_forward")


def check_compiled(compiled: Callable[..., Any], backend: str) -> None:
    """A second shape reuses the code compiled for the first."""
    for batch, n, m, d, dv in (SHAPE, (3, 4, 7, 5, 2)):
        check_attention(
            *make((batch, n, m, d, dv)),
            attn_mask=normal(n, m),
            key_lengths=torch.arange(batch),
            is_causal=True,
            window_size=(1, -1),
            scale=0.5,
            return_weights=True,
            return_lse=True,
            backend=partial(compiled, backend=backend),
        )


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_fullgraph(backend: str, dynamic: bool) -> None:
    compiled = torch.compile(
        additive_attention, fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    check_compiled(compiled, backend)


def test_inductor(fused: str) -> None:
    """Inductor compiles the code around the operators; the naive formula is left to it."""
    check_compiled(torch.compile(additive_attention, fullgraph=True), fused)


def traced(call: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return torch.compile(partial(call, **options), fullgraph=True, backend="aot_eager")


def test_dropout_traces(backend: str) -> None:
    """The seed is drawn in the graph, from torch's generator."""
    call = traced(additive_attention, dropout_p=0.5, backend=backend)
    check_attention(*make(SHAPE), dropout_p=0.5, backend=lambda *inputs, dropout_p: call(*inputs))


def test_a_window_is_compiled_once(fused: str) -> None:
    """Other sizes need no other graph: a window is a constant of its graph."""
    counter = CompileCounterWithBackend("aot_eager")

    def call(sides: tuple[int, int], *inputs: Tensor) -> Any:
        return additive_attention(*inputs, window_size=sides, backend=fused)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counter)
    graphs = []
    for shape in (SHAPE, (3, 4, 7, 5, 2)):
        inputs = make(shape, grad=False)
        for sides in ((1, 2), (2, 1), (-1, 3), (-1, -1)):
            assert torch.equal(compiled(sides, *inputs), call(sides, *inputs))
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1]


def test_scores_trace(backend: str) -> None:
    call = traced(additive_scores, backend=backend)
    check_scores(normal(2, 1, 3, 4), normal(3, 5, 4), normal(3, 4), backend=call)


def test_varlen_traces(fused: str) -> None:
    """The reference loops over the sequences, whose lengths a trace does not know."""
    call = traced(additive_attention_varlen, is_causal=True, backend=fused)
    inputs = normal(4, 3), normal(5, 3), normal(5, 2), normal(3)
    ends = cumulative([2, 1, 1]), cumulative([3, 0, 2])
    check_varlen(*inputs, *ends, is_causal=True, backend=lambda *inputs, is_causal: call(*inputs))


def test_a_memory_traces(backend: str) -> None:
    def decode(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        memory = prepare_keys(key, value, weight, backend=backend)
        turned = memory.index_select(0, torch.tensor([1, 0]))
        steps = [turned.attend(query[:, i : i + 1].flip(0)) for i in range(query.shape[1])]
        return torch.cat(steps, 1).flip(0)

    check_attention(*make(SHAPE), backend=traced(decode))


def test_autocast_traces(backend: str) -> None:
    def call(*tensors: Tensor) -> Tensor:
        with torch.autocast("cpu", BF16):
            return additive_attention(*tensors, backend=backend)

    inputs = make(SHAPE)
    found = traced(call)(*inputs)
    assert found.dtype == BF16 and torch.equal(found, call(*inputs))


class Layer(torch.nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4) / 2)
        self.backend = backend

    def forward(self, query: Tensor, key: Tensor, lengths: Tensor) -> Tensor:
        return additive_attention(
            query,
            key,
            key,
            self.weight,
            key_lengths=lengths,
            window_size=(2, -1),
            backend=self.backend,
        )


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_export(backend: str, dynamic: bool) -> None:
    layer = Layer(backend)
    inputs = (torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.tensor([5, 2]))
    n, m = torch.export.Dim("n", min=2, max=64), torch.export.Dim("m", min=2, max=64)
    shapes = ({1: n}, {1: m}, {}) if dynamic else None
    program = torch.export.export(layer, inputs, dynamic_shapes=shapes).module()
    assert torch.equal(program(*inputs), layer(*inputs))
    if dynamic:
        others = (torch.randn(2, 9, 4), torch.randn(2, 6, 4), torch.tensor([0, 6]))
        assert torch.equal(program(*others), layer(*others))


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
    meta = additive_attention(*(x.to("meta") for x in make(shape, dtype)), **options)
    assert [(x.shape, x.dtype) for x in meta] == [(x.shape, x.dtype) for x in real]
    for a, b in zip(fake, real, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    for a, b in zip(gradients, inputs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_attention_rnn_compiles_with_the_same_results_and_gradients() -> None:
    """Deferred gradients break the graph; the code compiled around them must not change results."""
    decoder = AttentionRNN(torch.nn.GRUCell(5 + 6, 7), AdditiveAttention(7, 6, 8))
    inputs, memory = torch.randn(2, 4, 5), torch.randn(2, 9, 6, requires_grad=True)
    found = []
    for module in (decoder, torch.compile(decoder, backend="aot_eager")):
        outputs, contexts, _ = module(inputs, memory)
        wanted = (memory, *decoder.parameters())
        found.append([outputs, *torch.autograd.grad((outputs + contexts.sum()).sum(), wanted)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.hessian])
def test_forward_mode_transforms_compile(backend: str, transform: Callable[..., Any]) -> None:
    query, *others = make(SHAPE, grad=False)

    def derivative(query: Tensor) -> Tensor:
        def loss(query: Tensor) -> Tensor:
            return additive_attention(query, *others, backend=backend).pow(2).sum()

        return transform(loss)(query)

    compiled = torch.compile(derivative, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query), derivative(query))


def test_compiled_calls_do_not_lose_tangents(backend: str) -> None:
    """The graph does not see those of its inputs: the call runs outside it, or says so."""
    query, *others = make(SHAPE, grad=False)

    def call(query: Tensor) -> Tensor:
        return additive_attention(query, *others, backend=backend)

    def inside(query: Tensor) -> Tensor:
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(call(forward_ad.make_dual(query, query))).tangent
        return tangent

    expected = torch.func.jvp(call, (query,), (query,))[1]
    torch.testing.assert_close(torch.compile(inside, fullgraph=True)(query), expected)
    whole = torch.compile(call, fullgraph=True)
    whole(query)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(query, query)
        ours, dynamos = "made outside the compiled function", "carry a forward-mode AD tangent"
        with pytest.raises(Exception, match=f"{ours}|{dynamos}"):  # from torch 2.14 on, Dynamo's
            whole(dual)
        found = torch.compile(call)(dual)
        torch.testing.assert_close(forward_ad.unpack_dual(found).tangent, expected)
