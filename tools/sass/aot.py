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

from attnkernels.backends.triton.host import (
    backward,
    call,
    configs,
    edge_backward,
    edge_forward,
    forward,
    jvp,
)
from attnkernels.backends.triton.host.launch import Target
from attnkernels.ops.codes import (
    EDGE_BIAS,
    EDGE_KEY,
    KEY,
    MASK,
    QUERY,
    VALUE,
    WEIGHT,
    ActivationName,
    PrecisionName,
    activation_code,
)

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
MIDDLE: Shape = (4096, 32, 32, 256, 256)  # a larger tile would be mostly padding
SMALL: Shape = (8, 50, 50, 1000, 1000)
STEP: Shape = (64, 1, 4096, 512, 512)
GRAPH = 169_343, 1_166_243  # nodes, edges
FAST = "8x1024x1024x256x256 bfloat16 fast"  # the call that tools/sass/sines.py counts
EDGES = "graph 8x32 float32"  # the call that tools/sass/edges.py has limits for


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


def _target(name: str) -> Target:
    """Return what the backend knows of a target."""
    of = TARGETS[name]
    capability = of.arch // 10 if of.backend == "cuda" else 0
    return Target(of.backend, of.warp_size, PROCESSORS, capability)


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

    here = _target(name)
    with (
        mock.patch.object(driver, "_active", _Driver(target)),
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(call, "target", lambda device: here),
    ):
        yield launches


def attention(
    *tensors: Tensor,
    activation: ActivationName = "tanh",
    precision: PrecisionName = "exact",
    return_weights: bool = False,
    of_context: bool = True,
    **options: Any,
) -> None:
    """Compile the kernels of a call and of its backward from gradients of all its outputs.

    Args:
        tensors: query, key, value and weight.
        activation, precision: their names.
        return_weights: also compute the weights, and go back from them.
        of_context: go back from the context.
        options: further arguments of the operator "forward" (ops/signature.py).
    """
    inputs = dict(zip(("query", "key", "value", "weight"), tensors, strict=True))
    inputs |= options | _scoring(activation, precision)
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
    *tensors: Tensor,
    activation: ActivationName = "tanh",
    return_weights: bool = False,
    **options: Any,
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


def scores(query: Tensor, key: Tensor, weight: Tensor, activation: ActivationName = "tanh") -> None:
    """Compile the kernels of raw scores, of their gradients and of their tangents."""
    tangents = {"query_tangent": query, "key_tangent": key, "weight_tangent": weight}
    inputs = {"query": query, "key": key, "weight": weight, **_scoring(activation)}
    jvp.scores_jvp(**tangents, **inputs)
    result = forward.scores(**inputs)
    grad = torch.ones_like(result)
    backward.scores_backward(**inputs, grad=grad, wanted=QUERY | KEY | WEIGHT)


def over_edges(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    weight: Tensor,
    edges: int,
    *,
    return_weights: bool = False,
    activation: ActivationName = "leaky_relu",
    **options: Any,
) -> None:
    """Compile the kernels over `edges` edges of a call and of its backward; see `attention`.

    Without a value, the keys are the values. options: edge_key, edge_bias, seed and dropout_p.
    """

    def integers(size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int64, device=query.device)

    weight = weight.expand(*query.shape[:-2], weight.shape[-1])
    inputs: dict[str, Any] = {"query": query, "key": key, "value": value, "weight": weight}
    inputs |= {"edge_key": None, "edge_bias": None, "seed": None, "dropout_p": 0.0} | options
    inputs |= {name: integers(edges) for name in ("source", "order", "target", "place")}
    inputs |= {"target_begin": integers(query.shape[-2] + 1)}
    inputs |= {"source_begin": integers(key.shape[-2] + 1), **_scoring(activation)}
    context, lse, weights = edge_forward.sparse_forward(**inputs, return_weights=return_weights)
    edge_backward.sparse_backward(
        **inputs,
        grad_context=torch.ones_like(context),
        grad_lse=torch.ones_like(lse) if return_weights else None,
        grad_weights=torch.ones_like(weights) if return_weights else None,
        context=context,
        lse=lse,
        weights=weights,
        wanted=QUERY | KEY | VALUE | WEIGHT | EDGE_KEY | EDGE_BIAS,
    )


def _scoring(activation: ActivationName, precision: PrecisionName = "exact") -> dict[str, Any]:
    code = activation_code(activation, precision)
    return {"activation": code, "negative_slope": 0.2, "scale": 1.0}


def shipped() -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield calls by name, on tensors without data, that reach every tile and every kernel."""
    for shape in (LARGE, MIDDLE, SMALL):
        yield _named(shape)
        query, key, _, weight = _inputs(shape)
        yield f"{'x'.join(map(str, shape[:4]))} scores", partial(scores, query, key, weight)
        yield f"{'x'.join(map(str, shape))} tangents", partial(tangents, *_inputs(shape))
    yield FAST, partial(fast, torch.bfloat16)
    yield f"{_named(LARGE)[0]} fast", partial(fast, torch.float32)
    yield _named(SMALL, return_weights=True)
    yield "weights and tangents", partial(tangents, *_inputs(SMALL), return_weights=True)
    yield _named(STEP)
    yield _named(STEP, torch.bfloat16)
    yield EDGES, partial(_graph, 8, 32)
    yield "graph 8x32 bfloat16", partial(_graph, 8, 32, dtype=torch.bfloat16)
    yield "graph 8x32 all options", partial(_graph, 8, 32, options=True)
    yield "graph 1x2048 float32", partial(_graph, 1, 2048, activation="tanh")


def by_sines(target: str) -> bool:
    """Return True if the backend scores by sines on this target."""
    where = _target(target)
    return bool(configs.sine_tiles(where.name, where.capability, forward=True))


def fast(dtype: torch.dtype) -> None:
    """Compile the kernels that score by sines, where a target has them."""
    attention(*_inputs(LARGE, dtype), precision="fast")


def _inputs(shape: Shape, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    batch, n, m, d, dv = shape
    shapes = ((batch, n, d), (batch, m, d), (batch, m, dv), (d,))
    return [torch.empty(each, dtype=dtype, device="meta") for each in shapes]


def _graph(
    heads: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    options: bool = False,
    activation: ActivationName = "leaky_relu",
) -> None:
    """Compile a call as GATv2 makes it, or one with everything else an edge can have."""

    def rows(count: int, width: int) -> Tensor:
        return torch.empty(count, heads, width, dtype=dtype, device="meta").transpose(0, 1)

    nodes, edges = GRAPH
    own: dict[str, Any] = {}
    if options:
        own = {"edge_key": rows(edges, d), "edge_bias": rows(edges, 1).squeeze(-1)}
        own |= {"seed": torch.empty((), dtype=torch.int64, device="meta"), "dropout_p": 0.5}
    value = rows(nodes, d) if options else None
    weight = torch.empty(heads, d, dtype=dtype, device="meta")
    inputs = rows(nodes, d), rows(nodes, d), value, weight
    over_edges(*inputs, edges, activation=activation, return_weights=options, **own)


def _named(
    shape: Shape, dtype: torch.dtype = torch.float32, **options: bool
) -> tuple[str, Callable[[], None]]:
    name = " ".join(["x".join(map(str, shape)), str(dtype).removeprefix("torch."), *options])
    return name, partial(attention, *_inputs(shape, dtype), **options)
