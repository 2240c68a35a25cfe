"""Public calls have names in torch.profiler and NVTX, and no overhead without a profiler."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.inputs import Shape, cumulative, make, normal
from torch._dynamo.testing import CompileCounter
from torch.cuda import nvtx
from torch.profiler import ProfilerActivity, profile

from attnkernels import additive_attention, additive_attention_varlen, additive_scores, prepare_keys
from attnkernels.functional import annotations as ranges

SHAPE: Shape = (2, 3, 5, 4, 6)
REFERENCE = partial(additive_attention, backend="reference")


def varlen(backend: str) -> Any:
    tensors = (normal(4, 3), normal(5, 3), normal(5, 2), normal(3))
    ends = cumulative([2, 2]), cumulative([3, 2])
    return additive_attention_varlen(*tensors, *ends, backend=backend)


def remembered(backend: str) -> Any:
    query, key, value, weight = make(SHAPE)
    return prepare_keys(key, value, weight, backend=backend).attend(query)


CALLS: dict[str, tuple[Callable[[str], Any], list[str]]] = {
    "attention": (
        lambda backend: additive_attention(*make(SHAPE), dropout_p=0.5, backend=backend),
        ["additive_attention"],
    ),
    "scores": (
        lambda backend: additive_scores(normal(3, 4), normal(5, 4), normal(4), backend=backend),
        ["additive_scores"],
    ),
    "varlen": (varlen, ["additive_attention_varlen"]),
    "memory": (remembered, ["prepare_keys", "AdditiveMemory.attend"]),
}


def recorded(call: Callable[[], object]) -> list[str]:
    """Return the ranges of attnkernels in a profile, in the order in which they begin."""
    with profile(activities=[ProfilerActivity.CPU]) as result:
        call()
    events = sorted(result.events(), key=lambda event: event.time_range.start)
    return [event.name for event in events if event.name.startswith("attnkernels::")]


class Pushes:
    """The ranges of torch.cuda.nvtx: the names pushed, and the number not yet popped."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.depth = 0

    def push(self, name: str) -> None:
        self.names.append(name)
        self.depth += 1

    def pop(self) -> None:
        self.depth -= 1


@pytest.fixture
def pushes(monkeypatch: pytest.MonkeyPatch) -> Pushes:
    found = Pushes()
    monkeypatch.setattr(ranges, "NVTX", True)
    monkeypatch.setattr(nvtx, "range_push", found.push)
    monkeypatch.setattr(nvtx, "range_pop", found.pop)
    return found


@pytest.mark.parametrize("name", CALLS)
def test_the_profiler_shows_the_call_and_its_backend(backend: str, name: str) -> None:
    call, names = CALLS[name]
    ours = [range for range in recorded(lambda: call(backend)) if range.endswith("]")]
    assert ours == [f"attnkernels::{each}[{backend}]" for each in names]


@pytest.mark.parametrize("name", CALLS)
def test_nvtx_shows_the_same(backend: str, name: str, pushes: Pushes) -> None:
    call, names = CALLS[name]
    call(backend)
    assert pushes.names == [f"attnkernels::{each}[{backend}]" for each in names]
    assert pushes.depth == 0


def test_the_range_names_the_backend_that_was_chosen() -> None:
    from attnkernels.backends import select
    from attnkernels.backends.base import Problem

    chosen = select(Problem("cpu", torch.float32)).NAME
    assert f"attnkernels::additive_attention[{chosen}]" in recorded(
        lambda: additive_attention(*make(SHAPE))
    )


def test_unwatched_there_is_nothing_around_the_function() -> None:
    def function() -> None: ...

    assert ranges.ranged("call", "backend", function) is function
    with profile(activities=[ProfilerActivity.CPU]):
        assert ranges.ranged("call", "backend", function) is not function
    assert ranges.ranged("call", "backend", function) is function


def test_a_range_ends_where_the_function_raises(pushes: Pushes) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        ranges.ranged("call", "backend", fail)()
    assert pushes.names == ["attnkernels::call[backend]"] and pushes.depth == 0


def test_a_starting_profiler_does_not_compile_anew() -> None:
    counter = CompileCounter()
    torch.compiler.reset()
    compiled = torch.compile(REFERENCE, fullgraph=True, backend=counter)
    inputs = make(SHAPE)
    compiled(*inputs)
    assert not [range for range in recorded(lambda: compiled(*inputs)) if range.endswith("]")]
    assert counter.frame_count == 1


class Layer(torch.nn.Module):
    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return REFERENCE(*tensors)


@pytest.mark.parametrize("strict", [False, True])
def test_what_is_compiled_or_exported_while_watched_has_no_range(
    strict: bool, pushes: Pushes
) -> None:
    torch.compiler.reset()
    inputs = tuple(x.detach() for x in make(SHAPE))
    with profile(activities=[ProfilerActivity.CPU]):
        torch.compile(REFERENCE, fullgraph=True, backend="eager")(*inputs)
        program = torch.export.export(Layer(), inputs, strict=strict)
    targets = [str(node.target) for node in program.graph.nodes]
    assert not pushes.names and not [target for target in targets if "profiler" in target]
    assert torch.equal(program.module()(*inputs), REFERENCE(*inputs))


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch has NVTX")
def test_nvtx_without_cuda_is_one_warning() -> None:
    call = (
        "import torch\nfrom attnkernels import additive_attention\n"
        "x = torch.ones(2, 3)\n"
        "for _ in range(2):\n    additive_attention(x, x, x, x[0], backend='reference')"
    )
    done = subprocess.run(
        [sys.executable, "-c", call],
        env={**os.environ, "ATTNKERNELS_NVTX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Warning") == 1
    assert "ATTNKERNELS_NVTX=1 has no effect" in done.stderr and "without CUDA" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nvtx_is_there_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "NVTX", True)
    inputs = [x.detach() for x in make(SHAPE)]
    assert torch.equal(REFERENCE(*inputs), REFERENCE(*inputs))
