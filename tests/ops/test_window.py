"""Sliding windows: the pairs that take part, every option beside them, and what is not visited."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest
import torch
from conftest import EMULATED, INTERPRETED
from helpers.inputs import BF16, F16, F64, MANY, cumulative, make, normal, sliced, transposed
from torch import Tensor

from attnkernels import additive_attention, additive_attention_varlen
from attnkernels.testing import check_attention, check_varlen

SIDES = [(0, 0), (3, 5), (0, -1), (-1, 0), (-1, 4), (9, -1), (1, 0), (70, 33), (1 << 40, 1 << 62)]
SIZES = [
    *((1, 1), (1, MANY), (2, MANY), (MANY, 1), (5, 9), (9, 5), (33, 35)),
    *(pytest.param(*each, marks=pytest.mark.large) for each in ((130, 300), (300, 131))),
]
SHAPE = (2, 9, MANY, 19, 7)


def band(n: int, m: int, sides: tuple[int, int]) -> Tensor:
    """Return bool (n, m): the pairs in the window, by its definition."""
    left, right = sides
    pairs = [
        [(left < 0 or i - left <= j) and (right < 0 or j <= i + right) for j in range(m)]
        for i in range(n)
    ]
    return torch.tensor(pairs).view(n, m)


@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize("n, m", SIZES)
def test_sides(backend: str, n: int, m: int, sides: tuple[int, int]) -> None:
    check_attention(*make((1, n, m, 9, 4)), window_size=sides, return_lse=True, backend=backend)


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_the_pairs_that_take_part(backend: str, sides: tuple[int, int]) -> None:
    n, m = 12, 9
    _, weights = additive_attention(
        *make((1, n, m, 3, 2)), window_size=sides, return_weights=True, backend=backend
    )
    assert torch.equal(weights[0] != 0, band(n, m, sides))


@pytest.mark.parametrize("dtype", [F64, BF16, F16])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    check_attention(*make(SHAPE, dtype), window_size=(2, 30), return_lse=True, backend=backend)


OPTIONS: dict[str, dict[str, Any]] = {
    "weights": {"return_weights": True, "return_lse": True},
    "causal": {"is_causal": True},
    "lengths": {"key_lengths": torch.tensor([0, 7])},
    "bool mask": {"attn_mask": torch.arange(MANY) % 3 > 0},
    "dropout": {"dropout_p": 0.3, "return_weights": True},
    "relu": {"activation": "relu"},
    "all": {
        "attn_mask": torch.arange(9 * MANY).view(9, MANY) % 5 > 1,
        "key_lengths": torch.tensor([MANY - 20, 6]),
        "is_causal": True,
        "dropout_p": 0.2,
        "return_weights": True,
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(backend: str, options: dict[str, Any]) -> None:
    check_attention(*make(SHAPE), window_size=(4, 25), backend=backend, **options)


@pytest.mark.parametrize("form", [(2, 9, MANY), (1, MANY), (9, 1)], ids=str)
def test_the_gradient_of_a_float_mask(backend: str, form: tuple[int, ...]) -> None:
    check_attention(*make(SHAPE), attn_mask=normal(*form), window_size=(3, 6), backend=backend)


def test_strides_and_broadcasts(backend: str) -> None:
    query, key, value, weight = make((2, 33, 40, 12, 5))
    inputs = sliced(query), transposed(key), sliced(value), weight
    check_attention(*inputs, window_size=(6, 2), backend=backend)
    check_attention(query, key[:1].detach(), value, weight, window_size=(6, 2), backend=backend)
    shared = normal(40, 12), normal(40, 5)  # by all queries, each with a position of its own
    check_attention(query, *shared, weight, window_size=(6, 2), backend=backend)


def test_dropout_drops_the_pairs_of_the_whole_call(backend: str) -> None:
    inputs, options = make((2, 20, 33, 5, 3)), {"dropout_p": 0.4, "return_weights": True}
    torch.manual_seed(1)
    _, whole = additive_attention(*inputs, backend=backend, **options)
    torch.manual_seed(1)
    _, windowed = additive_attention(*inputs, window_size=(5, 8), backend=backend, **options)
    assert torch.equal(windowed != 0, (whole != 0) & band(20, 33, (5, 8)))


def test_a_window_that_holds_every_key_changes_nothing(backend: str) -> None:
    inputs = make((2, 20, 33, 5, 3))
    wide = additive_attention(*inputs, window_size=(19, 32), backend=backend)
    assert torch.equal(wide, additive_attention(*inputs, backend=backend))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_rows_without_a_key(backend: str, dtype: torch.dtype) -> None:
    """Queries so far beyond the last key that none is near: zeros, and zero gradients."""
    inputs = make((1, 40, 5, 9, 4), dtype)
    outputs = additive_attention(
        *inputs, window_size=(2, 1), return_weights=True, return_lse=True, backend=backend
    )
    context, weights, lse = (x[:, 7:] for x in outputs)
    assert (context == 0).all() and (weights == 0).all() and lse.isneginf().all()
    wanted = [context.sum() + weights.sum(), *inputs]
    gradients = torch.autograd.grad(wanted[0], wanted[1:], allow_unused=True)
    assert all(x is None or (x == 0).all() for x in gradients)


def test_packed_sequences(backend: str) -> None:
    """Both sides count from the start of each sequence."""
    queries, keys = [3, 0, 33, 1], [5, 4, 40, 2]
    inputs = normal(sum(queries), 9), normal(sum(keys), 9), normal(sum(keys), 4), normal(9)
    ends = cumulative(queries), cumulative(keys)
    options: dict[str, Any] = {"return_lse": True, "backend": backend}
    check_varlen(*inputs, *ends, window_size=(2, 1), **options)
    check_varlen(*inputs, *ends, window_size=(-1, 6), is_causal=True, **options)
    check_varlen(*inputs, *ends, window_size=(20, -1), dropout_p=0.3, **options)


@pytest.mark.parametrize("sides", [(9, 7), (0, 0), (-1, 3), (40, -1)], ids=str)
def test_long_sequences(backend: str, sides: tuple[int, int]) -> None:
    """Enough tiles that those outside lie on both sides of a window."""
    n, m = (120, 150) if INTERPRETED else (900, 1100)
    inputs = make((1, n, m, 3, 2))
    check_attention(*inputs, window_size=sides, return_lse=True, backend=backend)
    inputs = tuple(x.squeeze(0) for x in inputs)
    ends = cumulative([n // 3, n - n // 3]), cumulative([m // 4, m - m // 4])
    check_varlen(*inputs, *ends, window_size=sides, return_lse=True, backend=backend)


@pytest.mark.parametrize("n", [3, 9])
def test_tiles_beyond_every_window_are_not_read(fused: str, n: int) -> None:
    """NaN in the tiles that no query sees reaches neither a result nor a gradient."""
    inputs = make((1, n, 300, 9, 4))
    beyond = torch.arange(300).unsqueeze(-1) >= 128
    query, key, value, weight = inputs
    poisoned = [
        torch.where(beyond, float("nan"), x.detach()).requires_grad_() for x in (key, value)
    ]

    def results(*inputs: Tensor) -> list[Tensor]:
        context = additive_attention(*inputs, window_size=(-1, 100), backend=fused)
        return [context, *torch.autograd.grad(context.sum(), inputs)]

    found, wanted = results(query, *poisoned, weight), results(*inputs)
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


PROBE = """
import resource, sys, torch
from attnkernels import additive_attention
torch.set_num_threads(2)
n, seconds, backend = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
torch.manual_seed(0)
inputs = [torch.randn(1, n, 2, requires_grad=True) for _ in range(3)]
weight = torch.randn(2, requires_grad=True)
call = lambda *inputs: additive_attention(*inputs, window_size=(20, 9), backend=backend)
call(*inputs, weight).sum().backward()
with torch.no_grad():
    torch.func.jvp(call, (*inputs, weight), (*inputs, weight))
"""


@pytest.mark.large
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the time of a process")
def test_half_a_million_characters(fused: str) -> None:
    """All pairs would take half an hour; those of the window take a second, and minutes in QEMU."""
    n = 1 << 13 if EMULATED else 1 << 19
    done = subprocess.run([sys.executable, "-c", PROBE, str(n), "300", fused], check=False)
    assert done.returncode == 0, f"a window over {n:,} characters did not end: {done.returncode}"


@pytest.mark.skipif(not INTERPRETED, reason="counts the calls of functions of the interpreter")
def test_tiles_that_the_interpreter_visits(fused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of scores is made only where a pair lies in the window, forward and backward."""
    n, sides, visited = 200, (9, 7), 0
    for name in ("forward", "pairs"):
        module = import_module(f"attnkernels.backends.triton.device.{name}")
        score = module.score_tile

        def count(*args: Any, score: Any = score, **options: Any) -> Any:
            nonlocal visited
            visited += 1
            return score(*args, **options)

        monkeypatch.setattr(module, "score_tile", count)
    context = additive_attention(*make((1, n, n, 3, 2)), window_size=sides, backend=fused)
    forward, visited = visited, 0
    context.sum().backward()
    for found, size in ((forward, 16), (visited, 32)):
        tiles = -(-n // size)
        there = band(n, n, sides)
        near = sum(
            bool(there[i : i + size, j : j + size].any())
            for i in range(0, n, size)
            for j in range(0, n, size)
        )
        assert found == near < tiles**2 // 2


WRONG = [5, (1,), (1, 2, 3), (-2, 0), (0, -2), (1.0, 2), (True, 1), None, "ab", (1 << 63, 0)]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_what_is_no_window(wrong: Any) -> None:
    inputs, ends = make((1, 3, 4, 5, 2)), (cumulative([3]), cumulative([4]))
    flat = [x.squeeze(0) for x in inputs[:3]]
    message = r"window_size must be a pair \(left, right\) of ints of at least -1, .* got "
    with pytest.raises(ValueError, match=message):
        additive_attention(*inputs, window_size=wrong)
    with pytest.raises(ValueError, match=message):
        additive_attention_varlen(*flat, inputs[3], *ends, window_size=wrong)


def test_other_pairs_of_ints() -> None:
    np = pytest.importorskip("numpy")
    inputs = make((1, 3, 4, 5, 2))
    wanted = additive_attention(*inputs, window_size=(1, 0))
    for sides in ([1, 0], np.array([1, 0]), (np.int32(1), np.int64(0))):
        assert torch.equal(additive_attention(*inputs, window_size=sides), wanted)
