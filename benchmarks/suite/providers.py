"""The providers of additive attention: each makes a call without arguments for one case."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attnkernels import additive_attention, prepare_keys
from attnkernels.backends import BACKENDS
from attnkernels.backends.base import Backend, Problem
from attnkernels.functional.checks import NO_WINDOW
from attnkernels.ops.codes import PrecisionName
from attnkernels.profile.naive import naive_attention
from attnkernels.profile.units import show_mib
from benchmarks.suite.banded import BLOCK, banded_attention
from benchmarks.suite.cases import GRAPH, Case, Inputs, inputs
from benchmarks.suite.meters import meter

LATENCY = "latency"  # the forward on an idle device, until its end is known
FREE_FRACTION = 0.8  # of free memory that a call may need
HALVES = (torch.float16, torch.bfloat16)

# The function that computes the context, and the four tensors whose gradients `both` needs.
Built = tuple[Callable[[], Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Provider:
    """A library or backend that computes additive attention.

    tensors: the number of tensors (B, n, m, d) it holds at once, forward and forward + backward, as
        measured in float32 by `attnkernels.measure.memory`; 16 bits hold more, but fewer bytes.
    generates: True if it generates code for every shape and direction, which takes seconds.
    follows_stream: True if its kernels run in PyTorch's current stream, so that a CUDA graph can
        capture them.
    by_request: True if it runs only where it is named.
    """

    name: str
    why_not: Callable[[Problem], str | None]
    build: Callable[[Case, Inputs], Built]
    tensors: tuple[int, int] = (0, 0)
    generates: bool = False
    follows_stream: bool = True
    by_request: bool = False


def why_not(
    provider: Provider, case: Case, direction: str, dtype: torch.dtype, device: str = "cpu"
) -> str | None:
    """Return None if the provider can run the case here and now, otherwise the reason."""
    if provider.name not in case.providers:
        return "is not run in this case"
    if direction == GRAPH and device != "cuda":
        return f"there are no CUDA graphs on {device}"
    if direction == GRAPH and not provider.follows_stream:
        return "a CUDA graph would miss its kernels"
    if direction == LATENCY and device != "cuda":
        return f"a call on {device} is done when it returns"
    if direction == LATENCY and provider.generates:
        return "making its code once more would take longer than the rest"
    sentence = provider.why_not(Problem(device, dtype))
    if sentence is not None:
        return sentence
    batch, n, m, d, _ = case.shape
    if case.window is not None:  # eager goes block by block, and keeps all for the backward
        n, m = n if direction == "both" else BLOCK, BLOCK + 2 * case.window
    needed = provider.tensors[direction == "both"] * batch * n * m * d * 4
    available = meter(device).free_memory()
    if needed > FREE_FRACTION * available:
        needs, free = show_mib(needed / 2**20), show_mib(available / 2**20)
        return f"needs {needs} for its [B, n, m, d] tensors, {free} is free"
    return None


def prepare(
    provider: Provider, case: Case, direction: str, dtype: torch.dtype, device: str = "cpu"
) -> Callable[[], object]:
    """Make the call to measure.

    forward: the context, for inputs that require no gradient. graph: the same, replayed from a CUDA
    graph. latency: the same, until its end is known. both: the context and, through a new autograd
    graph in every call, the gradients of query, key, value and weight.
    """
    given = inputs(case, dtype, direction == "both", device)
    context, leaves = provider.build(case, given)
    if direction == "both":
        return lambda: torch.autograd.grad(context(), leaves, given.arriving)
    if direction == LATENCY:
        return _waited_for(context)
    return _replayed(context) if direction == GRAPH else context


def _waited_for(call: Callable[[], object]) -> Callable[[], object]:
    def waited() -> object:
        result = call()
        torch.cuda.synchronize()
        return result

    return waited


def _replayed(call: Callable[[], object]) -> Callable[[], object]:
    """Capture `call` in a CUDA graph, after it has compiled and allocated what it needs."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        context = call()

    def replay() -> object:
        graph.replay()
        return call, context  # the tensors that the graph reads and writes, which must live as long

    return replay


def _anywhere(problem: Problem) -> str | None:
    return None


def _needs(package: str) -> Callable[[Problem], str | None]:
    sentence = None if find_spec(package) else f"{package} is not installed"
    return lambda problem: sentence


def _eager(case: Case, given: Inputs) -> Built:
    leaves = given[:4]
    if case.window is not None:
        window = case.window
        return lambda: banded_attention(*leaves, window), leaves
    return lambda: naive_attention(*leaves), leaves


def _compile(case: Case, given: Inputs) -> Built:
    leaves = given[:4]
    torch.compiler.reset()  # compile the best code for each shape and direction
    compiled = torch.compile(naive_attention, dynamic=False)
    return lambda: compiled(*leaves), leaves


def import_keras() -> ModuleType:
    """Make the call of Keras, on PyTorch."""
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


def _keops_why_not(problem: Problem) -> str | None:
    lacking = HALVES if problem.device_type == "cpu" else (torch.bfloat16,)
    if problem.dtype in lacking:
        return f"KeOps has no {problem.dtype} on {problem.device_type}"
    return None if find_spec("pykeops") else "pykeops is not installed"


def _keops(case: Case, given: Inputs) -> Built:
    import pykeops
    from pykeops.torch import LazyTensor

    pykeops.set_verbose(False)
    leaves = query, key, value, weight = given[:4]

    def context() -> Tensor:
        q, k = LazyTensor(query.unsqueeze(-2)), LazyTensor(key.unsqueeze(-3))
        values, w = LazyTensor(value.unsqueeze(-3)), LazyTensor(weight.reshape(1, 1, 1, -1))
        tanh = 1 - 2 / (1 + (2 * (q + k)).exp())  # LazyTensor has no tanh
        return (tanh | w).sumsoftmaxweight(values, axis=2)

    return context, leaves


def _ours(backend: Backend, precision: PrecisionName = "exact") -> Provider:
    name, fast = backend.NAME, precision == "fast"

    def build(case: Case, given: Inputs) -> Built:
        leaves = query, key, value, weight = given[:4]
        if case.prepared:
            memory = prepare_keys(key, value, weight, precision=precision, backend=name)
            return lambda: memory.attend(query), leaves
        window = NO_WINDOW if case.window is None else (case.window, case.window)
        options: dict[str, Any] = {"window_size": window, "precision": precision, "backend": name}
        return lambda: additive_attention(query, key, value, weight, **options), leaves

    return Provider(f"{name}-fast" if fast else name, backend.why_not, build, by_request=fast)


# In the order of rounds, tables and plots.
PROVIDERS = (
    Provider("eager", _anywhere, _eager, (2, 3)),
    Provider("compile", _anywhere, _compile, (0, 2), generates=True),
    Provider("keras", _needs("keras"), _keras, (2, 3)),
    Provider("keops", _keops_why_not, _keops, generates=True, follows_stream=False),
    *(_ours(backend) for backend in BACKENDS if backend.NAME != "reference"),
    *(_ours(backend, "fast") for backend in BACKENDS),
)


def choose(wanted: str | None) -> list[Provider]:
    """Return the providers of a comma-separated list; raise ValueError for unknown ones.

    None stands for all but those that run by request.
    """
    usual = [provider.name for provider in PROVIDERS if not provider.by_request]
    names = usual if wanted is None else wanted.split(",")
    known = {provider.name: provider for provider in PROVIDERS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no provider {', '.join(unknown)}; there are {', '.join(known)}")
    return [provider for provider in PROVIDERS if provider.name in names]
