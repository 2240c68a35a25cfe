"""Compile the launches of the Triton backend for a GPU that is absent.

Inside `compiling_for(target)` the backend's operators take CPU or meta tensors and go through the
launches of a call as on a GPU. Every launch compiles its kernel and stops there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from attnkernels.backends.triton.host import backward, call, forward, jvp
from attnkernels.backends.triton.host.launch import Target
from attnkernels.ops.codes import ACTIVATIONS, KEY, MASK, QUERY, VALUE, WEIGHT

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
PROCESSORS = 132  # those of an H100, which decide the tiles

Shape = tuple[int, int, int, int, int]  # batch, n, m, d, dv
LARGE: Shape = (8, 1024, 1024, 256, 256)
MIDDLE: Shape = (8, 256, 256, 256, 256)
SMALL: Shape = (8, 50, 50, 1000, 1000)
STEP: Shape = (64, 1, 4096, 512, 512)


class Launch(NamedTuple):
    """One launch: the kernel, its arguments by name, and the compiled kernel."""

    name: str
    arguments: dict[str, Any]
    compiled: Any


class _Driver:
    """The part of a Triton driver that compiling needs."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return list(TARGETS.values()).index(
            self.target
        )  # Triton keys its compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling_for(name: str) -> Iterator[list[Launch]]:
    """Yield the list to which launches are added."""
    if not isinstance(forward.forward_kernel, JITFunction):
        raise RuntimeError("TRITON_INTERPRET=1 interprets kernels: there is nothing to compile")
    target = TARGETS[name]
    launches: list[Launch] = []
    run = JITFunction.run

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled = run(kernel, *args, grid=grid, warmup=True, **kwargs)
        launches.append(Launch(kernel.__name__, kwargs, compiled))

    here = Target(target.backend, target.warp_size, PROCESSORS)
    with (
        mock.patch.object(driver, "_active", _Driver(target)),
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(call, "target", lambda device: here),
    ):
        yield launches


def attention(
    *tensors: Tensor,
    activation: str = "tanh",
    return_weights: bool = False,
    of_context: bool = True,
    **options: Any,
) -> None:
    """Compile the kernels of a call and of its backward from gradients of all its outputs.

    Args:
        tensors: query, key, value and weight.
        activation: its name.
        return_weights: also compute the weights, and go back from them.
        of_context: go back from the context.
        options: further arguments of the operator "forward" (ops/signature.py).
    """
    inputs = dict(zip(("query", "key", "value", "weight"), tensors, strict=True))
    inputs |= options | _scoring(activation)
    context, lse, weights = forward.forward(
        **inputs, packed_key=None, return_weights=return_weights
    )
    wanted = QUERY | KEY | VALUE | WEIGHT
    attn_mask = options.get("attn_mask")
    if attn_mask is not None and attn_mask.is_floating_point():
        wanted |= MASK
    backward.backward(
        **inputs,
        grad_context=torch.ones_like(context) if of_context else None,
        grad_lse=torch.ones_like(lse),
        grad_weights=torch.ones_like(weights) if return_weights else None,
        context=context,
        lse=lse,
        weights=weights,
        wanted=wanted,
    )


def tangents(
    *tensors: Tensor, activation: str = "tanh", return_weights: bool = False, **options: Any
) -> None:
    """Compile the kernels of a call with tangents of all its inputs; see `attention`."""
    inputs = dict(zip(("query", "key", "value", "weight"), tensors, strict=True))
    attn_mask = options.get("attn_mask")
    floating = attn_mask is not None and attn_mask.is_floating_point()
    jvp.forward_jvp(
        **{f"{name}_tangent": x for name, x in inputs.items()},
        attn_mask_tangent=attn_mask if floating else None,
        **inputs,
        **options,
        **_scoring(activation),
        return_weights=return_weights,
    )


def scores(query: Tensor, key: Tensor, weight: Tensor, activation: str = "tanh") -> None:
    """Compile the kernels of raw scores, of their gradients and of their tangents."""
    tangents = {"query_tangent": query, "key_tangent": key, "weight_tangent": weight}
    inputs = {"query": query, "key": key, "weight": weight, **_scoring(activation)}
    jvp.scores_jvp(**tangents, **inputs)
    result = forward.scores(**inputs)
    grad = torch.ones_like(result)
    backward.scores_backward(**inputs, grad=grad, wanted=QUERY | KEY | WEIGHT)


def _scoring(activation: str) -> dict[str, Any]:
    return {"activation": ACTIVATIONS[activation].code, "negative_slope": 0.2, "scale": 1.0}


def shipped() -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield calls by name, on tensors without data, that reach every tile and every kernel."""
    for shape in (LARGE, MIDDLE, SMALL):
        yield _named(shape)
        query, key, _, weight = _inputs(shape)
        yield f"{'x'.join(map(str, shape[:4]))} scores", partial(scores, query, key, weight)
        yield f"{'x'.join(map(str, shape))} tangents", partial(tangents, *_inputs(shape))
    yield _named(SMALL, return_weights=True)
    yield "weights and tangents", partial(tangents, *_inputs(SMALL), return_weights=True)
    yield _named(STEP)
    yield _named(STEP, torch.bfloat16)


def _inputs(shape: Shape, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    batch, n, m, d, dv = shape
    shapes = ((batch, n, d), (batch, m, d), (batch, m, dv), (d,))
    return [torch.empty(each, dtype=dtype, device="meta") for each in shapes]


def _named(
    shape: Shape, dtype: torch.dtype = torch.float32, **options: bool
) -> tuple[str, Callable[[], None]]:
    name = " ".join(["x".join(map(str, shape)), str(dtype).removeprefix("torch."), *options])
    return name, partial(attention, *_inputs(shape, dtype), **options)
