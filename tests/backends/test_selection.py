"""The backend that a call takes on a GPU; choosing needs no GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.inputs import F32, F64, cumulative, make, normal
from torch import Tensor

from attnkernels import (
    additive_attention,
    additive_attention_varlen,
    additive_scores,
    backends,
    prepare_keys,
)
from attnkernels.backends import BACKENDS, ON_GPU, Preference, native, select, triton
from attnkernels.backends.base import Backend, Problem
from attnkernels.functional import attention as functional
from attnkernels.functional import memory

ON_CUDA = Problem("cuda", F32)
Patch = pytest.MonkeyPatch
SIZES = {"step": (0, 1, 4), "tiles": (5, 1000)}


def without_kernels(problem: Problem) -> Backend:
    """Return the first backend that can do `problem`, of those that come after both kernels."""
    others = [backend for backend in BACKENDS if backend not in (native, triton)]
    return next(backend for backend in others if backend.why_not(problem) is None)


@pytest.fixture
def both(monkeypatch: Patch) -> None:
    """Let both backends have kernels for a GPU."""
    monkeypatch.setattr(native, "_missing", None)
    monkeypatch.setattr(native, "_no_cuda", None)
    monkeypatch.setattr(triton, "_missing", False)


@pytest.fixture
def chosen(monkeypatch: Patch) -> None:
    """Name backends after their entry in the table, so that a choice reveals its reason."""
    for key in ON_GPU:
        named = SimpleNamespace(NAME=" ".join(key), why_not=lambda problem: None)
        monkeypatch.setitem(ON_GPU, key, Preference((named,), "in a test"))


def test_every_kind_of_call_has_an_order_of_all_and_says_what_was_measured() -> None:
    kinds = {(direction, size) for direction in ("inference", "training") for size in SIZES}
    assert set(ON_GPU) == kinds
    for preference in ON_GPU.values():
        assert sorted(each.NAME for each in preference.order) == sorted(
            each.NAME for each in BACKENDS
        )
        assert preference.measured


@pytest.mark.parametrize("size, n", [(size, n) for size in SIZES for n in SIZES[size]])
def test_the_kind_follows_from_sizes_and_gradients(chosen: None, size: str, n: int) -> None:
    def kind(*leaves: int) -> str:
        tensors = (torch.empty(2, n, 3), torch.empty(2, 7, 3), torch.empty(3))
        for leaf in leaves:
            tensors[leaf].requires_grad_()
        return select(ON_CUDA, None, tensors).NAME

    assert kind() == f"inference {size}"
    assert {kind(0), kind(1), kind(2), kind(0, 2)} == {f"training {size}"}
    with torch.no_grad():
        assert kind(0, 1, 2) == f"inference {size}"
    assert select(ON_CUDA).NAME == "inference tiles"


CALLS: dict[str, Callable[..., Any]] = {
    "attention": lambda n: additive_attention(*make((2, n, 5, 4, 3))),
    "scores": lambda n: additive_scores(normal(2, n, 4), normal(2, 5, 4), normal(4)),
    "packed": lambda n: additive_attention_varlen(
        *(normal(n, 4), normal(n, 4), normal(n, 3), normal(4)), *2 * [cumulative([n - 1, 1])]
    ),
    "memory": lambda n: prepare_keys(normal(2, n, 4), normal(2, n, 3), normal(4)),
}


@pytest.mark.parametrize(
    "name, n, kind",
    [
        ("attention", 1, "training step"),
        ("attention", 9, "training tiles"),
        ("scores", 1, "training step"),
        ("scores", 9, "training tiles"),
        ("packed", 2, "training tiles"),  # only the device knows where the sequences end
        ("memory", 9, "training step"),  # made for a decoder, before there is a query
    ],
)
def test_what_the_public_calls_ask_for(
    chosen: None, monkeypatch: Patch, name: str, n: int, kind: str
) -> None:
    kinds = []

    def spy(problem: Problem, backend: str | None, *sizes: Any, **options: Any) -> Any:
        kinds.append(select(problem._replace(device_type="cuda"), backend, *sizes, **options).NAME)
        return select(problem, backend)

    for module in (functional, memory):
        monkeypatch.setattr(module, "select", spy)
    CALLS[name](n)
    with torch.no_grad():
        CALLS[name](n)
    assert kinds == [kind, kind.replace("training", "inference")]


def test_the_table_decides_kind_by_kind(both: None, monkeypatch: Patch) -> None:
    step, tiles = torch.empty(1, 3), torch.empty(9, 3)
    for key in ON_GPU:
        monkeypatch.setitem(ON_GPU, key, Preference(backends.TRITON_FIRST, "in a test"))
    assert {select(ON_CUDA, None, (x,)).NAME for x in (step, tiles)} == {"triton"}
    monkeypatch.setitem(ON_GPU, ("inference", "step"), Preference(BACKENDS, "in a test"))
    assert [select(ON_CUDA, None, (x,)).NAME for x in (step, tiles)] == ["native", "triton"]
    assert select(ON_CUDA, None, (step.requires_grad_(),)).NAME == "triton"


@pytest.mark.parametrize("order", [backends.TRITON_FIRST, BACKENDS], ids=["triton", "native"])
def test_what_is_missing_falls_to_the_other(both: None, monkeypatch: Patch, order: Any) -> None:
    for key in ON_GPU:
        monkeypatch.setitem(ON_GPU, key, Preference(order, "in a test"))
    with monkeypatch.context() as without:
        without.setattr(triton, "_missing", True)
        assert select(ON_CUDA).NAME == "native"
        without.setattr(native, "_no_cuda", "there are none")
        assert select(ON_CUDA) is without_kernels(ON_CUDA)
    monkeypatch.setattr(native, "_no_cuda", "there are none")
    assert select(ON_CUDA).NAME == "triton"


def test_a_named_backend_never_falls_back(both: None, monkeypatch: Patch) -> None:
    for name in ("native", "triton", "reference"):
        assert select(ON_CUDA, name).NAME == name
    monkeypatch.setattr(native, "_no_cuda", "there are none")
    with pytest.raises(ValueError, match="'native' cannot be used: there are none"):
        select(ON_CUDA, "native")


def test_float64_on_a_gpu_is_the_references(both: None) -> None:
    problem = Problem("cuda", F64)
    assert select(problem) is without_kernels(problem)
    assert "no float64" in (native.why_not(Problem("cuda", F64)) or "")


def test_a_cpu_looks_at_nothing_but_the_dtype() -> None:
    tensors: Any = ("not", "tensors")
    for device in ("cpu", "meta"):
        problem = Problem(device, F32)
        assert select(problem, None, tensors).NAME == select(problem).NAME


def test_why_there_is_no_cuda(monkeypatch: Patch) -> None:
    """The sentence is written when the library is loaded."""
    has_kernel = "_dispatch_has_kernel_for_dispatch_key"
    for there in (False, True):
        monkeypatch.setattr(torch._C, has_kernel, lambda name, key, there=there: there)
        sentence = native._why_not_cuda()
        assert sentence is None if there else "nvcc" in (sentence or "")
        info = native.build_info()
        assert native._missing or info["CUDA kernels"] == ("yes" if there else "no")
    monkeypatch.setattr(torch, "version", SimpleNamespace(hip="7.1"))
    assert "ROCm" in (native._why_not_cuda() or "")


def test_emulated_kernels_have_no_float64_on_a_cpu_either(both: None, monkeypatch: Patch) -> None:
    monkeypatch.setattr(native, "_emulated", True)
    assert "no float64" in (native.why_not(Problem("cpu", F64)) or "")
    assert native.why_not(Problem("cpu", F32)) is None


def test_keys_stay_plain_where_nothing_packs_them(fused: str, monkeypatch: Patch) -> None:
    monkeypatch.setitem(native._packs, "cpu", False)
    query, key, value, weight = make((2, 1, 5, 4, 3))
    remembered = prepare_keys(key, value, weight, backend=fused)
    assert remembered.packed_key is None and remembered.index_select(0, torch.tensor([1])).lead
    wanted = additive_attention(query, key, value, weight, backend=fused)
    assert torch.equal(remembered.attend(query), wanted)


def ask(query: Tensor) -> Tensor:
    """Return 1 for a step, 2 for tiles."""
    kind = select(ON_CUDA, None, (query,)).NAME.split()[1]
    return query.sum() * 0 + (1 if kind == "step" else 2)


@pytest.mark.parametrize("n, kind", [(3, 1), (9, 2)])
def test_a_trace_knows_a_fixed_size(chosen: None, n: int, kind: int) -> None:
    torch.compiler.reset()
    compiled = torch.compile(ask, fullgraph=True, dynamic=False, backend="aot_eager")
    assert compiled(torch.zeros(n, 2)) == kind
    program = torch.export.export(Asking(), (torch.zeros(n, 2),)).module()
    assert program(torch.zeros(n, 2)) == kind
    assert torch.vmap(ask)(torch.zeros(5, n, 2)).eq(kind).all()


class Asking(torch.nn.Module):
    def forward(self, query: Tensor) -> Tensor:
        return ask(query)


def test_a_size_that_a_trace_leaves_open_is_not_bound(chosen: None) -> None:
    """One trace serves all sizes, on either side of the border, and sizes made in the trace."""
    traces = []

    def counted(graph: Any, inputs: Any) -> Any:
        traces.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(ask, fullgraph=True, dynamic=True, backend=counted)
    assert compiled(torch.zeros(3, 2)) == compiled(torch.zeros(9, 2)) == 2 and len(traces) == 1

    n = torch.export.Dim("n", min=2, max=64)
    program = torch.export.export(Asking(), (torch.zeros(3, 2),), dynamic_shapes=({0: n},))
    assert program.module()(torch.zeros(9, 2)) == 2

    def kept(query: Tensor, keep: Tensor) -> Tensor:
        return ask(query[keep.nonzero().squeeze(-1)])

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        made = torch.compile(kept, fullgraph=True, backend="aot_eager")
        assert made(torch.zeros(9, 2), torch.ones(9, dtype=torch.bool)) == 2
