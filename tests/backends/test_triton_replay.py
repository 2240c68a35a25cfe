"""Calls that repeat the launches of an earlier one compute what they would compute alone.

The interpreter stands in for a compiled kernel: its launcher gets addresses and numbers, as that of
a GPU does, and finds memory there.
"""

from __future__ import annotations

import ctypes
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F32, cumulative, make, normal
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from attnkernels import additive_attention
from attnkernels.ops.codes import (
    ACTIVATIONS,
    KEY,
    MASK,
    QUERY,
    VALUE,
    WEIGHT,
    activation_code,
)
from attnkernels.ops.signature import SIGNATURES

pytest.importorskip("triton", reason="the package triton is not installed")

from attnkernels.backends import triton as backend
from attnkernels.backends.triton.host import configs, plans, replay
from attnkernels.backends.triton.host.launch import Target

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.skipif(not INTERPRETED, reason="it needs TRITON_INTERPRET=1"),
    pytest.mark.parametrize("name", ["triton"]),
]
TILES, STEP = (2, 7, 40, 19, 5), (2, 1, 40, 19, 5)
FOLDED = (3, 1, 40, 19, 5)
STREAM = 7


class Interpreted:
    """A compiled kernel that is interpreted, in memory of the sizes of its first launch."""

    function, packed_metadata = 1, (2,)

    def __init__(self, kernel: Any, run: Any, given: dict[str, Any]) -> None:
        self._kernel, self._run, self._given = kernel, run, given

    def run(self, x: int, y: int, z: int, stream: int, *rest: Any) -> None:
        function, metadata, *unwatched = rest[:5]
        assert (y, z, stream, function, metadata) == (1, 1, STREAM, 1, (2,))
        assert unwatched == [None] * 3
        names = self._kernel.arg_names
        given = {
            name: _filled(self._given[name], each)
            for name, each in zip(names, rest[5:], strict=True)
        }
        self._run(self._kernel, grid=(x,), warmup=False, **given)


def _filled(first: Any, given: Any) -> Any:
    """Return an argument as it was at first, with the memory at the addresses of `given`."""
    if isinstance(first, Tensor):
        size = first.numel() * first.element_size()
        return torch.frombuffer((ctypes.c_char * size).from_address(given), dtype=first.dtype)
    if isinstance(first, tuple):
        each = [_filled(*pair) for pair in zip(first, given, strict=True)]
        return first._make(each) if hasattr(first, "_make") else tuple(each)
    assert first == given
    return given


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pretend that kernels are compiled; return a list that grows with every call of `compute`."""
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def started(kernel: Any, **given: Any) -> Interpreted:
        with _disable_current_modes():  # the interpreter's operations are none of the call's
            run(kernel, **given)
        return Interpreted(kernel, run, given)

    made: list[int] = []
    active = SimpleNamespace(get_current_stream=lambda device: STREAM)
    monkeypatch.setattr(InterpretedFunction, "run", started)
    monkeypatch.setattr(replay, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(replay, "target", lambda device: Target("cuda", 32, 2))
    monkeypatch.setattr(configs, "SINE_COSTS", dict.fromkeys(configs.SINE_COSTS, 0.0))
    return made


@pytest.fixture
def repeated(calls: list[int]) -> replay.Replay:
    """Return the operator "forward", counted in `calls`."""
    return counted("forward", calls)


def counted(name: str, calls: list[int]) -> replay.Replay:
    def compute(*args: Any) -> Any:
        calls.append(1)
        return backend.computing(name)(*args)

    return replay.Replay(compute, len(SIGNATURES[name].tensors))


def arguments(*tensors: Tensor, of: str = "forward", **options: Any) -> tuple[Any, ...]:
    """Return the arguments of an operator."""
    given = dict(zip(("query", "key", "value", "weight"), tensors, strict=True))
    usual = {"dropout_p": 0.0, "activation": ACTIVATIONS["tanh"].code, "negative_slope": 0.2}
    usual |= {"scale": 1.0, "return_weights": False}
    known = usual | given | options
    return tuple(known.get(name) for name in SIGNATURES[of].names)


def of_backward(*tensors: Tensor, **options: Any) -> tuple[Any, ...]:
    """Return the arguments of the operator "backward", with gradients of all outputs."""
    outputs = backend.computing("forward")(*arguments(*tensors, **options))
    given = dict(zip(("context", "lse", "weights"), outputs, strict=True))
    named = {f"grad_{name}": torch.randn_like(x) for name, x in given.items()}
    if not options.get("return_weights"):
        del named["grad_weights"]
    wanted = QUERY | KEY | VALUE | WEIGHT
    if options.get("attn_mask") is not None:
        wanted |= MASK
    return arguments(*tensors, of="backward", **options, **given, **named, wanted=wanted)


def same(found: Any, wanted: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


OPTIONS: dict[str, Any] = {
    "nothing": lambda shape: {},
    "weights": lambda shape: {"return_weights": True},
    "a mask": lambda shape: {"attn_mask": normal(*shape[1:3])},
    "lengths": lambda shape: {"key_lengths": torch.randint(1, shape[2], shape[:1])},
    "dropout": lambda shape: {"seed": torch.randint(9, ()), "dropout_p": 0.4},
    "a window": lambda shape: {"window_left": 20, "scale": 0.5},
    "sines": lambda shape: {"activation": activation_code("tanh", "fast")},
    "ReLU": lambda shape: {"activation": ACTIVATIONS["relu"].code},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", [TILES, STEP], ids=str)
def test_other_inputs_of_the_same_layout(
    name: str, repeated: replay.Replay, calls: list[int], shape: Any, options: str
) -> None:
    for _ in range(2):
        given = arguments(*make(shape, grad=False), **OPTIONS[options](shape))
        found = repeated(*given)
        assert same(found, backend.computing("forward")(*given))
    assert len(calls) == 1


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", [TILES, STEP], ids=str)
def test_gradients_of_other_inputs(name: str, calls: list[int], shape: Any, options: str) -> None:
    """A backward has operations of torch between its launches."""
    repeated = counted("backward", calls)
    for _ in range(2):
        given = of_backward(*make(shape, grad=False), **OPTIONS[options](shape))
        assert same(repeated(*given), backend.computing("backward")(*given))
    assert len(calls) == 1


def test_what_reads_a_tensor_is_never_repeated(name: str, calls: list[int]) -> None:
    """The number of its launches may follow from what the tensor holds."""
    repeated = counted("backward", calls)
    ends = cumulative([3, 6]), cumulative([5, 4])
    options = {"cu_seqlens_q": ends[0], "cu_seqlens_k": ends[1]}
    for _ in range(2):
        query, key, value, weight = make((1, 9, 9, 4, 3), grad=False)
        given = of_backward(query[0], key[0], value[0], weight, **options)
        assert same(repeated(*given), backend.computing("backward")(*given))
    assert len(calls) == 2


def test_memory_goes_after_its_last_use(name: str) -> None:
    lines = [
        "(t0, t1, ) = tensors",
        "t2 = v0(t0)",
        "v1(t2.data_ptr())",
        "t3 = v0(t1)",
        "return t3, ",
    ]
    assert plans._forgetting(lines) == [
        lines[0],
        "t2 = v0(t0); del t0",
        "v1(t2.data_ptr()); del t2",
        "t3 = v0(t1); del t1",
        lines[4],
    ]


def test_a_batch_of_queries_of_one_memory(
    name: str, repeated: replay.Replay, calls: list[int]
) -> None:
    """It is computed as one attention of all rows, through views of the inputs."""
    for _ in range(2):
        query, key, value, weight = make(FOLDED, grad=False)
        given = arguments(query, key[0], value[0], weight)
        assert same(repeated(*given), backend.computing("forward")(*given))
    assert len(calls) == 1


def test_every_other_layout_is_a_call_of_its_own(
    name: str, repeated: replay.Replay, calls: list[int]
) -> None:
    query, key, value, weight = make(STEP, grad=False)
    longer = torch.zeros(value.numel() + 1)[1:].view_as(value)  # an address off the usual grid
    others = [
        (query, key, value, weight),
        (query, key.mT.contiguous().mT, value, weight),
        (query, key, longer, weight),
        (query, key[:, :39], value[:, :39], weight),
        tuple(x.to(BF16) for x in (query, key, value, weight)),
        (query, key, key, weight),
    ]
    for count, each in enumerate(others, 1):
        given = arguments(*each)
        assert same(repeated(*given), backend.computing("forward")(*given))
        assert len(calls) == count


def test_keys_that_are_values_too(name: str, repeated: replay.Replay, calls: list[int]) -> None:
    """The next call may have them apart."""
    query, key, value, weight = make((2, 1, 40, 5, 5), grad=False)
    for each in (key, value, key):
        given = arguments(query, key, each, weight)
        assert same(repeated(*given), backend.computing("forward")(*given))
    assert len(calls) == 1


def test_what_cannot_be_told_apart_is_never_repeated(
    name: str, repeated: replay.Replay, calls: list[int]
) -> None:
    query, key, _, weight = make((2, 1, 40, 5, 5), grad=False)
    key = torch.zeros(2, 40, 9)[..., :5].copy_(key)  # a copy would have other strides
    for _ in range(2):
        given = arguments(query, key, key, weight)
        assert same(repeated(*given), backend.computing("forward")(*given))
    assert len(calls) == 2


def test_other_tiles_are_recorded_anew(
    name: str, repeated: replay.Replay, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(*make(TILES, grad=False))
    repeated(*given)
    monkeypatch.setattr(configs, "TILES", configs.parse("32x32x8x2"))
    assert same(repeated(*given), backend.computing("forward")(*given))
    assert len(calls) == 2


def test_a_profiler_sees_every_launch(
    name: str, repeated: replay.Replay, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(*make(STEP, grad=False))
    repeated(*given)
    hooks = SimpleNamespace(calls=[print]), SimpleNamespace(calls=[])
    runtime = SimpleNamespace(launch_enter_hook=hooks[0], launch_exit_hook=hooks[1])
    monkeypatch.setattr(replay, "knobs", SimpleNamespace(runtime=runtime))
    repeated(*given)
    assert len(calls) == 2


def test_few_plans_are_kept(
    name: str, repeated: replay.Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "MOST", 3)
    for m in range(2, 9):
        repeated(*arguments(*make((1, 1, m, 4, 2), grad=False)))
    assert len(repeated._plans) <= 3


def test_what_is_not_plain_goes_through_the_dispatcher(name: str) -> None:
    """A negation that torch has put off is done first."""
    query, key, value, weight = make(STEP, F32, grad=False)
    negated = torch.complex(query, query).conj().imag
    assert negated.is_neg()
    wanted = additive_attention(-query, key, value, weight, backend="triton")
    assert torch.equal(additive_attention(negated, key, value, weight, backend="triton"), wanted)
