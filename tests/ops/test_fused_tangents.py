"""Tangents in one sweep: their dtypes, their memory, exact rows, and derivatives through them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F16, F32, F64, make, normal, supports
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import jvp, vmap

from attnkernels import additive_attention
from attnkernels.testing import assert_within_budget

NAN, INF = float("nan"), float("inf")


def call(backend: str, **options: Any) -> Any:
    return lambda *x: additive_attention(
        *x, return_weights=True, return_lse=True, backend=backend, **options
    )


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64])
def test_every_dtype(backend: str, dtype: torch.dtype) -> None:
    inputs = make((2, 40, 70, 19, 5), dtype, grad=False)
    tangents = tuple(map(torch.randn_like, inputs))
    found = jvp(call(backend), inputs, tangents)
    close = jvp(call("reference"), inputs, tangents)
    doubles = tuple(x.double() for x in inputs), tuple(x.double() for x in tangents)
    exact = jvp(call("reference"), *doubles)
    names = "context", "weights", "lse"
    for name, *results in zip(names, found[1], close[1], exact[1], strict=True):
        actual, reference, true = results
        size = 30 * true.abs().max().item()
        assert_within_budget(actual, reference, true, magnitude=size, name=name)


def test_one_key(backend: str) -> None:
    """Without a second key the softmax is constant: the tangents are those of value and score."""
    query, key, value, weight = make((3, 6, 200, 20, 5), grad=False)
    lengths = torch.ones(3, dtype=torch.long)
    tangents = tuple(map(torch.randn_like, (query, key, value, weight)))
    context, weights, lse = jvp(
        call(backend, key_lengths=lengths), (query, key, value, weight), tangents
    )[1]
    assert torch.equal(context, tangents[2][:, :1].expand_as(context))
    assert (weights == 0).all() and (lse != 0).all()


def test_excluded_pairs(backend: str) -> None:
    """Tangents of pairs that a mask excludes may be NaN."""
    inputs = make((2, 6, 70, 20, 5), grad=False)
    mask = normal(6, 70, grad=False)
    mask[mask > 1], mask[3] = -INF, -INF
    tangent = torch.where(mask == -INF, NAN, 1.0)
    masked = lambda m: call(backend, attn_mask=m)(*inputs)  # noqa: E731
    context, weights, lse = jvp(masked, (mask,), (tangent,))[1]
    assert context.isfinite().all() and weights.isfinite().all()
    live = torch.arange(6) != 3
    torch.testing.assert_close(lse, live.float().expand(2, 6))
    assert (context[:, 3] == 0).all() and (weights[:, 3] == 0).all()


@pytest.mark.parametrize("transform", ["jvp", "duals", "vmap in jvp"])
def test_gradients_through_tangents(fused: str, transform: str) -> None:
    """Inputs require gradients as parameters do: those of outputs and tangents are right."""
    dtype = F64 if supports(fused, F64) else F32
    leaves = make((2, 5, 7, 6, 3), dtype)
    moves = tuple(normal(*x.shape, dtype=dtype) for x in leaves)
    weights: list[Tensor] = []

    def gradients(name: str, transform: str, dtype: torch.dtype) -> Any:
        inputs, tangents = (
            tuple(x.detach().to(dtype).requires_grad_() for x in each) for each in (leaves, moves)
        )
        if transform == "jvp":
            outputs, moved = jvp(call(name), inputs, tangents)
        elif transform == "vmap in jvp":
            mapped = vmap(call(name), in_dims=(0, 0, 0, None))
            outputs, moved = jvp(mapped, inputs, tangents)
        else:
            with forward_ad.dual_level():
                duals = call(name)(*map(forward_ad.make_dual, inputs, tangents))
                outputs, moved = zip(*map(forward_ad.unpack_dual, duals), strict=True)
        results = (*outputs, *moved)
        weights[:] = weights or [torch.randn_like(x) for x in results]
        loss = sum((w.to(dtype) * x).sum() for w, x in zip(weights, results, strict=True))
        alone = sum(x.square().sum() for x in outputs)
        one = torch.autograd.grad(loss, (*inputs, *tangents), retain_graph=True)
        return *one, *torch.autograd.grad(alone, inputs)

    found = gradients(fused, transform, dtype)
    reference, exact = (gradients("reference", "jvp", each) for each in (dtype, F64))
    terms = max(x.abs().max().item() for x in exact)  # every gradient is a sum over those of scores
    for each in zip(found, reference, exact, strict=True):
        assert_within_budget(*each, magnitude=terms)


MEMORY = """
import sys, torch
from attnkernels import additive_attention

torch.set_num_threads(2)
query, key, value = torch.randn(3, 1, 4096, 64).unbind()
inputs = query, key, value, torch.randn(64)
def field(name):
    with open("/proc/self/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith(name)))
def run():
    return torch.func.jvp(lambda *x: additive_attention(*x, backend=sys.argv[1]), inputs, inputs)
torch.func.jvp(torch.sin, (query,), (query,))
open("/proc/self/clear_refs", "w").write("5")
before = field("VmRSS:")
run()
print(field("VmHWM:") - before)
"""


@pytest.mark.large
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc/self")
def test_memory(fused: str) -> None:
    """4096 x 4096 scores take 64 MiB, and the naive formula 64 times as much."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key(
        f"attnkernels::{fused}_forward_jvp", "CPU"
    ):
        pytest.skip("it has no kernel for tangents")
    command = [sys.executable, "-c", MEMORY, fused]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 48 * 1024, f"{int(done.stdout) // 1024} MiB"
