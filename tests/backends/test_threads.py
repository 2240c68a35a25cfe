"""Results are deterministic at a fixed thread count; the dropout mask is the same at any."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.inputs import Shape, make
from torch import Tensor

from attnkernels import additive_attention

# a decoder step (split over keys), one long sequence, many small ones
SHAPES: list[Shape] = [(2, 1, 700, 40, 24), (1, 270, 300, 33, 20), (9, 5, 6, 7, 8)]


def everything(inputs: tuple[Tensor, ...], backend: str, dropout_p: float) -> list[Tensor]:
    torch.manual_seed(5)
    outputs = additive_attention(*inputs, dropout_p=dropout_p, return_lse=True, backend=backend)
    loss = sum(output.square().sum() for output in outputs)
    return [*outputs, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_twice_the_same_bits(backend: str, shape: Shape, threads: int) -> None:
    torch.set_num_threads(threads)
    inputs = make(shape)
    for dropout_p in (0.0, 0.4):
        first = everything(inputs, backend, dropout_p)
        second = everything(inputs, backend, dropout_p)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_is_the_same_at_any_thread_count(backend: str, shape: Shape) -> None:
    """Read the mask from the weights, and from the context of a call that never forms them."""
    batch, n, m, d, _ = shape
    query, key, _, weight = make(shape, grad=False)
    eye = torch.eye(m).expand(batch, m, m)
    seen = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for wanted in (True, False):
            torch.manual_seed(5)
            outputs = additive_attention(
                query, key, eye, weight, dropout_p=0.4, return_weights=wanted, backend=backend
            )
            seen.append((outputs[1] if wanted else outputs) != 0)
    assert all(torch.equal(seen[0], other) for other in seen[1:])


def test_callers_may_be_threads_themselves(backend: str) -> None:
    """Concurrent calls, one per worker, return the same results as single calls."""
    calls = [make(shape) for shape in SHAPES * 4]
    alone = [everything(inputs, backend, 0.0) for inputs in calls]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda inputs: everything(inputs, backend, 0.0), calls))
    for a, b in zip(alone, together, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
