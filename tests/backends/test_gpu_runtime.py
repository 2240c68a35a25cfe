"""GPU backends with streams, graphs, compilers and memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.gpu import (
    EVERYTHING,
    GPU,
    MARKS,
    PAST_THE_TILES,
    STEP,
    attention,
    check,
    on_gpu,
    packed,
)
from helpers.inputs import BF16, F32, F64, Shape, cumulative, make, normal
from ops.test_compile import Recorder
from torch import Tensor
from torch.utils._pytree import tree_map_only

from attnkernels import additive_attention, additive_attention_varlen, additive_scores
from attnkernels.testing import assert_within_budget

pytestmark = MARKS


def gradients(name: str, *inputs: Tensor, **options: Any) -> list[Tensor]:
    """Return outputs and gradients of one call."""
    outputs = attention(name, *inputs, **EVERYTHING, **options)
    loss = sum(output.float().square().sum() for output in outputs)
    return [*outputs, *torch.autograd.grad(loss, inputs)]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


LARGE: list[Shape] = [(1, 600, 700, 33, 20), (2, 1, 9000, 65, 20)]


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_the_same_bits_every_time(name: str, shape: Shape) -> None:
    inputs = on_gpu(make, shape)
    first = gradients(name, *inputs)
    assert all(same(first, gradients(name, *inputs)) for _ in range(3))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_as_models_use_it(name: str, shape: Shape, dtype: torch.dtype) -> None:
    """Without deterministic algorithms, blocks add to one place in any order."""
    torch.use_deterministic_algorithms(False)
    mask = on_gpu(normal, *shape[1:3], dtype=dtype)
    for _ in range(3):
        check(name, *on_gpu(make, shape, dtype), attn_mask=mask, **EVERYTHING)


@pytest.mark.parametrize("shape", [PAST_THE_TILES, STEP], ids=str)
def test_another_stream(name: str, shape: Shape) -> None:
    """A kernel outside the current stream would read its inputs too early."""
    inputs = on_gpu(make, shape)
    wanted = gradients(name, *inputs)
    late = [torch.zeros_like(x).requires_grad_() for x in inputs]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        torch.cuda._sleep(100_000_000)
        with torch.no_grad():
            for x, y in zip(late, inputs, strict=True):
                x.copy_(y)
        found = gradients(name, *late)
    torch.cuda.synchronize()
    assert same(found, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_another_device_than_the_current_one(name: str) -> None:
    inputs = on_gpu(make, PAST_THE_TILES)
    elsewhere = [x.detach().to("cuda:1").requires_grad_() for x in inputs]
    assert same([x.to(GPU) for x in gradients(name, *elsewhere)], gradients(name, *inputs))


def captured(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        call()  # compiles
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return graph, outputs


@pytest.mark.parametrize("shape", [PAST_THE_TILES, STEP], ids=str)
def test_cuda_graphs(name: str, shape: Shape) -> None:
    """Replay forward and backward with other numbers in the same memory."""
    inputs = on_gpu(make, shape)
    graph, found = captured(lambda: gradients(name, *inputs))
    with torch.no_grad():
        for x in inputs:
            x.mul_(-0.5)
    graph.replay()
    assert same(found, gradients(name, *inputs))


def test_packed_sequences_in_a_cuda_graph(name: str) -> None:
    """Lengths are read on the device: a replay uses the new ones."""
    *inputs, ends_q, ends_k = packed(([3, 8, 1], [50, 2, 33]))
    call = partial(additive_attention_varlen, *inputs, ends_q, ends_k, backend=name)
    graph, found = captured(call)
    ends_q.copy_(on_gpu(cumulative, [1, 2, 9]))
    ends_k.copy_(on_gpu(cumulative, [0, 40, 45]))
    graph.replay()
    assert torch.equal(found, call())


def test_every_replay_drops_anew(name: str) -> None:
    inputs = on_gpu(make, PAST_THE_TILES, grad=False)
    graph, found = captured(lambda: attention(name, *inputs, dropout_p=0.5))
    graph.replay()
    first = found.clone()
    graph.replay()
    assert not torch.equal(first, found)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_fullgraph(name: str, compiler: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(additive_attention, fullgraph=True, backend=compiler)
    for shape in ((2, 40, 70, 19, 7), (3, 50, 90, 19, 7)):
        mask = on_gpu(normal, *shape[1:3])
        options = {"attn_mask": mask, "is_causal": True, "scale": 0.5, **EVERYTHING}
        check(partial(compiled, backend=name), *on_gpu(make, shape), **options)


OPERATORS: dict[str, Callable[[str], Any]] = {
    "attention": lambda name: attention(
        name, *on_gpu(make, (2, 9, 5, 4, 6)), dropout_p=0.3, **EVERYTHING
    ),
    "a step": lambda name: attention(
        name, *on_gpu(make, (2, 1, 5, 4, 6)), attn_mask=on_gpu(normal, 5)
    ),
    "packed": lambda name: additive_attention_varlen(*packed(([9, 2], [5, 3])), backend=name),
    "scores": lambda name: additive_scores(
        *(on_gpu(normal, 2, 9, 4) for _ in "qk"), on_gpu(normal, 4), backend=name
    ),
}


@pytest.mark.parametrize("call", OPERATORS)
def test_opcheck(name: str, call: str) -> None:
    """Return each operator that forward and backward reach, with its arguments."""
    with Recorder() as recorder:
        outputs = OPERATORS[call](name)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(output.square().sum() for output in outputs).backward()
    reached = {op.name().removeprefix("attnkernels::") for op, _, _ in recorder.calls}
    forward, backward = (
        ("scores", "scores_backward") if call == "scores" else ("forward", "backward")
    )
    assert reached == {f"{name}_{forward}", f"{name}_{backward}"}
    for op, args, kwargs in recorder.calls:
        torch.library.opcheck(op, tree_map_only(Tensor, Tensor.detach, args), kwargs)


@pytest.mark.parametrize("options", [{}, {"is_causal": True, "dropout_p": 0.1}], ids=str)
def test_peak_is_linear_in_the_lengths(name: str, options: dict[str, Any]) -> None:
    def peak(n: int) -> float:
        """Return MiB above the inputs, forward and backward."""
        inputs = on_gpu(make, (1, n, n, 64, 64))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.grad(attention(name, *inputs, **options).square().sum(), inputs)
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    peak(256)  # one-time allocations of libraries
    short, long = peak(8192), peak(32768)
    assert long < 1024, f"{long:.0f} MiB, where the scores take 4096"
    assert long < 4 * short + 16, f"{short:.0f} MiB at 8192 grew to {long:.0f} MiB at 32768"


def needs(gib: int) -> None:
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gib:
        pytest.skip(f"it needs {gib} GiB on the GPU, {free:.0f} are free")


def by_rows(inputs: tuple[Tensor, ...], direction: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return context and gradients of the reference, some queries at a time to fit in memory."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    sums = [torch.zeros_like(x) for x in leaves]
    contexts = []
    for first in range(0, leaves[0].shape[-2], 64):
        rows = slice(first, first + 64)
        query = leaves[0][:, rows]
        context = additive_attention(query, *leaves[1:], backend="reference")
        parts = torch.autograd.grad(context, leaves, direction[:, rows].to(dtype))
        for total, part in zip(sums, parts, strict=True):
            total += part
        contexts.append(context.detach())
    return [torch.cat(contexts, -2), *sums]


def within_budget(found: list[Tensor], inputs: tuple[Tensor, ...], direction: Tensor) -> None:
    """Compare with by_rows(); results linear in the weights carry the rounding of the scores."""
    reference, exact = (by_rows(inputs, direction, dtype) for dtype in (inputs[0].dtype, F64))
    carried = 1 + float(inputs[3].detach().abs().sum())
    for mine, theirs, right in zip(found, reference, exact, strict=True):
        magnitude = carried * float(right.abs().max())
        assert_within_budget(mine, theirs, right, magnitude=magnitude)


def test_more_elements_than_31_bits_count(name: str) -> None:
    """Here n * m * d > 2^31."""
    needs(8)
    inputs = on_gpu(make, (1, 3000, 3001, 240, 24))
    direction = on_gpu(normal, 1, 3000, 24, grad=False)
    context = attention(name, *inputs)
    found = [context, *torch.autograd.grad(context, inputs, direction)]
    within_budget(found, inputs, direction)


@pytest.mark.parametrize("n", [3, 40])
def test_keys_past_31_bits(name: str, n: int) -> None:
    """Here m * d > 2^31, and only the last keys take part, so they alone give the result."""
    needs(40)
    rows, d = 2**22 + 64, 512
    query, last, value, weight = on_gpu(make, (1, n, 100, d, 4), BF16)
    key = torch.zeros(1, rows, d, dtype=BF16, device=GPU)
    key[:, -100:] = last.detach()
    values = torch.zeros(1, rows, 4, dtype=BF16, device=GPU)
    values[:, -100:] = value.detach()
    keep = torch.arange(rows, device=GPU) >= rows - 100
    inputs = (query, key.requires_grad_(), values.requires_grad_(), weight)
    direction = on_gpu(normal, 1, n, 4, dtype=BF16, grad=False)
    context = attention(name, *inputs, attn_mask=keep)
    grads = list(torch.autograd.grad(context, inputs, direction))
    assert not grads[1][:, :-100].any() and not grads[2][:, :-100].any()
    found = [context, grads[0], grads[1][:, -100:], grads[2][:, -100:], grads[3]]
    within_budget(found, (query, last, value, weight), direction)


def test_weights_past_31_bits(name: str) -> None:
    """Here n * m > 2^31."""
    needs(40)
    size = 46_400
    query, key, value, weight = on_gpu(make, (1, size, size, 16, 4), BF16, grad=False)
    _, weights = attention(name, query, key, value, weight, return_weights=True)
    for row in (0, size // 2, size - 1):
        inputs = query[:, row : row + 1], key, value, weight
        theirs, right = (
            additive_attention(*(x.to(t) for x in inputs), return_weights=True, backend="reference")
            for t in (BF16, F64)
        )
        magnitude = float(right[1].max() * (1 + weight.double().abs().sum()))
        mine = weights[:, row : row + 1]
        assert_within_budget(mine, theirs[1], right[1], magnitude=magnitude)
