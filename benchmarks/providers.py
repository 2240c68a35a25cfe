"""Who computes additive attention: each provider as a function of no arguments for one case."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from attnkernels import additive_attention, prepare_keys
from attnkernels.backends import native
from attnkernels.backends.base import Problem
from attnkernels.profiling.machine import free_memory
from attnkernels.profiling.naive import naive_attention
from attnkernels.profiling.units import show_mib
from benchmarks.cases import Case, Inputs, inputs

FREE_FRACTION = 0.8  # of free memory that a call may be expected to take
HALVES = (torch.float16, torch.bfloat16)

# What computes the context, and the four tensors whose gradients `both` asks for.
Built = tuple[Callable[[], Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Provider:
    """`tensors`: how many of shape (B, n, m, d) it holds at once, forward and forward + backward,
    as measured in float32 by `attnkernels.profiling.memory`; 16 bits hold more, but fewer bytes."""

    name: str
    why_not: Callable[[torch.dtype], str | None]
    build: Callable[[Case, Inputs], Built]
    tensors: tuple[int, int] = (0, 0)


def why_not(provider: Provider, case: Case, direction: str, dtype: torch.dtype) -> str | None:
    """None where the provider can run the case here and now, otherwise a sentence."""
    if provider.name not in case.providers:
        return "is not run in this case"
    sentence = provider.why_not(dtype)
    if sentence is not None:
        return sentence
    batch, n, m, d, _ = case.shape
    needed = provider.tensors[direction == "both"] * batch * n * m * d * 4
    if needed > FREE_FRACTION * free_memory():
        needs, free = show_mib(needed / 2**20), show_mib(free_memory() / 2**20)
        return f"needs {needs} for its [B, n, m, d] tensors, {free} is free"
    return None


def prepare(
    provider: Provider, case: Case, direction: str, dtype: torch.dtype
) -> Callable[[], object]:
    """One call of what is measured.

    forward: the context, of inputs that require no gradient. both: the context and, through a graph
    made anew in every call, the gradients of query, key, value and weight.
    """
    given = inputs(case, dtype, requires_grad=direction == "both")
    context, leaves = provider.build(case, given)
    if direction == "forward":
        return context
    return lambda: torch.autograd.grad(context(), leaves, given.arriving)


def _anywhere(dtype: torch.dtype) -> str | None:
    return None


def _needs(package: str) -> Callable[[torch.dtype], str | None]:
    sentence = None if find_spec(package) else f"{package} is not installed"
    return lambda dtype: sentence


def _eager(case: Case, given: Inputs) -> Built:
    leaves = given[:4]
    return lambda: naive_attention(*leaves), leaves


def _compile(case: Case, given: Inputs) -> Built:
    leaves = given[:4]
    torch.compiler.reset()  # a new shape or direction each time, and the best code for each
    compiled = torch.compile(naive_attention, dynamic=False)
    return lambda: compiled(*leaves), leaves


def import_keras() -> ModuleType:
    """Keras, on PyTorch."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    return keras


def _keras(case: Case, given: Inputs) -> Built:
    keras = import_keras()
    query, key, value, weight = given[:4]
    policy = str(weight.dtype).removeprefix("torch.")
    layer = keras.layers.AdditiveAttention(use_scale=True, dtype=policy)
    layer.build([query.shape, value.shape, key.shape])
    scale = layer.scale.value
    scale.requires_grad_(weight.requires_grad)
    with torch.no_grad():
        scale.copy_(weight)
    return lambda: layer([query, value, key]), (query, key, value, scale)


def _keops_why_not(dtype: torch.dtype) -> str | None:
    if dtype in HALVES:
        return f"KeOps has no {dtype} on a CPU"
    return None if find_spec("pykeops") else "pykeops is not installed"


def _keops(case: Case, given: Inputs) -> Built:
    import pykeops
    from pykeops.torch import LazyTensor

    pykeops.set_verbose(False)
    leaves = query, key, value, weight = given[:4]

    def context() -> Tensor:
        q, k = LazyTensor(query.unsqueeze(-2)), LazyTensor(key.unsqueeze(-3))
        values, w = LazyTensor(value.unsqueeze(-3)), LazyTensor(weight.reshape(1, 1, 1, -1))
        tanh = 1 - 2 / (1 + (2 * (q + k)).exp())  # LazyTensor has none of its own
        return (tanh | w).sumsoftmaxweight(values, axis=2)

    return context, leaves


def _native_why_not(dtype: torch.dtype) -> str | None:
    return native.why_not(Problem("cpu", dtype))


def _native(case: Case, given: Inputs) -> Built:
    leaves = query, key, value, weight = given[:4]
    if case.prepared:
        memory = prepare_keys(key, value, weight, backend="native")
        return lambda: memory.attend(query), leaves
    return lambda: additive_attention(query, key, value, weight, backend="native"), leaves


# In the order of a round, of tables and of plots.
PROVIDERS = (
    Provider("eager", _anywhere, _eager, (2, 3)),
    Provider("compile", _anywhere, _compile, (0, 2)),
    Provider("keras", _needs("keras"), _keras, (2, 3)),
    Provider("keops", _keops_why_not, _keops),
    Provider("native", _native_why_not, _native),
)


def choose(wanted: str | None) -> list[Provider]:
    """The providers named, separated by commas, or all; ValueError where a name is unknown."""
    names = [provider.name for provider in PROVIDERS] if wanted is None else wanted.split(",")
    known = {provider.name: provider for provider in PROVIDERS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no provider {', '.join(unknown)}; there are {', '.join(known)}")
    return [provider for provider in PROVIDERS if provider.name in names]
