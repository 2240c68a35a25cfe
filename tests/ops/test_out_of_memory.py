"""Running out of memory names what did not fit, its shape and its bytes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from attnkernels import additive_attention, additive_scores

HUGE = 1_000_000


def huge(grad: bool = False) -> list[torch.Tensor]:
    """Return query, key, value and weight with 10^12 pairs."""
    shapes = (1, HUGE, 1), (1, HUGE, 1), (1, HUGE, 1), (1,)
    return [torch.zeros(shape, requires_grad=grad) for shape in shapes]


@pytest.mark.large
def test_weights() -> None:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        additive_attention(*huge(), return_weights=True, backend="native")
    assert str(caught.value) == (
        "weights (return_weights=True) must fit in memory, got shape (1, 1000000, 1000000) of"
        " float32, 4 TB"
    )


@pytest.mark.large
def test_scores() -> None:
    query, key, _, weight = huge(grad=True)
    with pytest.raises(torch.OutOfMemoryError, match=r"^scores must fit in memory, .* 4 TB$"):
        additive_scores(query, key, weight, backend="native")


LIMITED = """
import resource, sys, torch
import torch.fx.experimental.symbolic_shapes  # which torch.autograd.grad imports
from attnkernels import additive_attention

torch.set_num_threads(2)
def inputs(n, d, dtype=torch.float32):
    shapes = (1, n, d), (1, 64, d), (1, 64, d), (d,)
    return [torch.zeros(*shape, dtype=dtype, requires_grad=True) for shape in shapes]
def limit(mebibytes):
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + mebibytes * 2**20, resource.RLIM_INFINITY))
def attend(*inputs):
    return additive_attention(*inputs, backend="native")
small = inputs(64, 512)
attend(*small).sum().backward()
"""

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="limits the address space by /proc/self"
)


def message(program: str) -> str:
    """Return the line that `program` prints."""
    command = [sys.executable, "-c", LIMITED + program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@linux
@pytest.mark.large
def test_a_context_beyond_the_limit() -> None:
    program = """
large = inputs(40_000, 512)
limit(40)
try:
    attend(*large)
except torch.OutOfMemoryError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
attend(*large)
"""
    assert message(program) == (
        "context must fit in memory, got shape (1, 40000, 512) of float32, 81.9 MB"
    )


@linux
@pytest.mark.large
def test_a_gradient_beyond_the_limit() -> None:
    program = """
large = inputs(40_000, 512)
context = attend(*large)
grad = torch.ones_like(context)
limit(40)
try:
    torch.autograd.grad(context, large, grad)
except torch.OutOfMemoryError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
torch.autograd.grad(attend(*large), large, grad)
"""
    assert message(program) == (
        "the gradient of query must fit in memory, got shape (1, 40000, 512) of float32, 81.9 MB"
    )


@linux
@pytest.mark.large
def test_every_limit_gives_a_named_error() -> None:
    """Results, scratch and lists of tasks alike: no error without a name, and no crash."""
    program = """
large = inputs(4_000, 512)
grad = torch.ones(1, 4_000, 512)
seen = set()
for mebibytes in range(0, 40):
    limit(mebibytes)
    try:
        torch.autograd.grad(attend(*large), large, grad)
        break
    except torch.OutOfMemoryError as error:
        seen.add(str(error).split(" must fit in memory, got ")[0])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
else:
    raise SystemExit("40 MiB were not enough")
print(sorted(seen))
"""
    names = message(program)
    assert "context" in names, names
