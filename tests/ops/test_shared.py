"""Inputs that a batch shares: gradients of their shape, summed inside, in memory that is small."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F32, MANY, normal

from attnkernels import additive_attention
from attnkernels.testing import check_attention, check_scores

# leading shapes of query, key, value and weight
LEADS: dict[str, tuple[tuple[int, ...], ...]] = {
    "key and value": ((6,), (), (), ()),
    "key and value of size 1": ((6,), (1,), (1,), ()),
    "key": ((6,), (1,), (6,), ()),
    "value": ((6,), (6,), (), ()),
    "query": ((1,), (6,), (6,), ()),
    "weight of its own": ((6,), (1,), (1,), (6,)),
    "heads of a key": ((3, 2), (3, 1), (3, 1), (2,)),
    "heads of a batch": ((3, 1), (1, 2), (2,), (2,)),
    "query by one, key by another": ((1, 2), (3, 1), (3, 1), ()),
    "all": ((), (), (), (6,)),
}
SIZES = [(1, MANY, 9, 5), (3, 2, 9, 5), (40, 70, 9, 5), (1, 1, 1, 1)]  # n, m, d, dv


@pytest.mark.parametrize("leads", LEADS.values(), ids=LEADS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_gradients_within_the_budget(
    backend: str,
    leads: tuple[tuple[int, ...], ...],
    sizes: tuple[int, int, int, int],
    dtype: torch.dtype,
) -> None:
    n, m, d, dv = sizes
    trailing = (n, d), (m, d), (m, dv), (d,)
    inputs = [normal(*a, *b, dtype=dtype) for a, b in zip(leads, trailing, strict=True)]
    check_attention(*inputs, backend=backend)
    check_scores(inputs[0], inputs[1], inputs[3], backend=backend)


OPTIONS: dict[str, Any] = {
    "lengths of each": lambda m: {"key_lengths": torch.arange(6) * m // 5},
    "one mask for all": lambda m: {"attn_mask": normal(5, m), "key_lengths": torch.arange(6)},
    "a mask of each": lambda m: {"attn_mask": normal(6, 5, m)},
    "a mask of each batch": lambda m: {"attn_mask": normal(6, 1, m)},
    "causal": lambda m: {"is_causal": True},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("threads", [1, 3])
def test_masks_of_a_shared_key(backend: str, name: str, threads: int) -> None:
    """With several threads and different lengths, pieces of the shared rows must stay apart."""
    torch.set_num_threads(threads)
    m = 4 * MANY
    inputs = normal(6, 5, 8), normal(m, 8), normal(1, m, 4), normal(8)
    options = OPTIONS[name](m)
    check_attention(*inputs, **options, backend=backend)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("leads", LEADS.values(), ids=LEADS)
def test_twice_the_same_bits(
    backend: str, leads: tuple[tuple[int, ...], ...], threads: int
) -> None:
    torch.set_num_threads(threads)
    trailing = (3, 9), (MANY, 9), (MANY, 5), (9,)
    inputs = [normal(*a, *b) for a, b in zip(leads, trailing, strict=True)]
    lengths = torch.tensor(MANY - 3)

    def gradients() -> tuple[torch.Tensor, ...]:
        out = additive_attention(*inputs, key_lengths=lengths, backend=backend)
        return torch.autograd.grad(out.square().sum(), inputs)

    first, second = gradients(), gradients()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("leads", [((0,), (1,), (1,), ()), ((1,), (0,), (0,), ())])
def test_a_batch_of_nothing_gives_gradients_of_zero(
    backend: str, leads: tuple[tuple[int, ...], ...]
) -> None:
    trailing = (3, 9), (4, 9), (4, 5), (9,)
    inputs = [normal(*a, *b) for a, b in zip(leads, trailing, strict=True)]
    found = torch.autograd.grad(additive_attention(*inputs, backend=backend).sum(), inputs)
    assert all(
        grad.shape == x.shape and not grad.any() for grad, x in zip(found, inputs, strict=True)
    )


PROBE = """
import sys, torch
import torch.fx.experimental.symbolic_shapes  # which torch.autograd.grad imports
from attnkernels import additive_attention

def kib(field):
    with open("/proc/self/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith(field)))

def peak(work):
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    before = kib("VmRSS:")
    return work(), (kib("VmHWM:") - before) / 1024

torch.set_num_threads(2)
shapes, lengths = eval(sys.argv[1])
inputs = [torch.randn(*shape, requires_grad=True) for shape in shapes]
options = {"backend": "native"}
if lengths:
    options["key_lengths"] = torch.randint(1, shapes[1][-2], shapes[0][:-2])
def attend(*inputs):
    return additive_attention(*inputs, **options)
small = [torch.randn(1, *x.shape[1:], requires_grad=True) if x.ndim > 1 else x for x in inputs]
additive_attention(*small, backend="native").sum().backward()
context, forward = peak(lambda: attend(*inputs))
grad = torch.randn_like(context)
_, backward = peak(lambda: torch.autograd.grad(context, inputs, grad))
print(forward, backward)
"""

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads the peak from /proc/self"
)


def mebibytes(*shapes: tuple[int, ...], lengths: bool = False) -> tuple[float, float]:
    """Return the peak growth of a forward and of its backward, in a process of their own."""
    command = [sys.executable, "-c", PROBE, repr((shapes, lengths))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    forward, backward = map(float, done.stdout.split())
    return forward, backward


@linux
@pytest.mark.large
@pytest.mark.parametrize("lengths", [False, True])
def test_the_backward_of_a_shared_key_makes_no_copies(lengths: bool) -> None:
    """A gradient of the key for each of the 2,000 would take 244 MiB, and of the value as well."""
    shapes = (2000, 1, 64), (1, 500, 64), (1, 500, 64), (64,)
    forward, backward = mebibytes(*shapes, lengths=lengths)
    assert forward <= 10 and backward <= 10, (forward, backward)


@linux
@pytest.mark.large
def test_a_million_entries_take_a_hundred_bytes_each() -> None:
    shape, count = (1_000_000, 1, 1), 1_000_000
    forward, backward = (x * 2**20 / count for x in mebibytes(shape, shape, shape, (1,)))
    context_and_lse, gradients = 8, 12
    assert forward <= 100 + context_and_lse, f"{forward:.0f} bytes"
    assert backward <= 100 + gradients, f"{backward:.0f} bytes"
