"""The trial before a swap: a module's own class and the fused one on the same small inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .libraries import CONVENTIONS
from .live import Draw, Live, Results, fused_class


def difference(module: nn.Module, live: Live) -> str | None:
    """Return a sentence if the two classes compute different results, in training or evaluation.

    Return None if they agree. The module, its buffers, its cached tensors and the random state stay
    unchanged.
    """
    own = type(module)
    source = CONVENTIONS[live.convention].source
    devices = [x.device for x in module.parameters() if x.is_cuda][:1]
    try:
        # An unknown module may have dropout.
        with torch.no_grad(), torch.random.fork_rng(devices), _undisturbed(module):
            wanted, found = (_run(module, cls, live) for cls in (own, fused_class(live.fused, own)))
    except Exception as error:  # an unknown module may raise anything
        return f"its trial failed with {type(error).__name__}: {error}"
    if [x.shape for x in wanted] != [x.shape for x in found]:
        return f"it returns other shapes than {source}"
    half = wanted[0].dtype in (torch.float16, torch.bfloat16)
    close = 3e-2 if half else 1e-4
    for x, y in zip(wanted, found, strict=True):
        if not torch.allclose(x.double(), y.double(), rtol=close, atol=close):
            far = (x.double() - y.double()).abs().max().item()
            return f"it does not compute what {source} does: {far:.1g} apart on random numbers"
    return None


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Compute in the dtypes and on the device of the module, whatever the caller has set."""
    devices = [x.device for x in module.parameters()]
    with ExitStack() as stack:
        for kind in filter(torch.amp.is_autocast_available, {"cpu", *(x.type for x in devices)}):
            stack.enter_context(torch.autocast(kind, enabled=False))
        for device in devices[:1]:
            stack.enter_context(device)
        yield


def _run(module: nn.Module, cls: type[nn.Module], live: Live) -> list[Tensor]:
    twins = [_twin(module, cls, training) for training in (True, False)]
    return _tensors([live.trial(twin, _draw(module)) for twin in twins])


def _twin(module: nn.Module, cls: type[nn.Module], training: bool) -> nn.Module:
    """Return a module of ``cls`` that shares the parameters and nothing else that it may set."""
    twin: nn.Module = object.__new__(cls)
    shared: dict[int, Any] = {id(x): x for x in module.parameters()}
    for each in module.modules():  # results of operations, such as hooks keep, have no deep copies
        shared |= {id(x): x for x in vars(each).values() if isinstance(x, Tensor) and x.grad_fn}
    inner = {name: deepcopy(x, shared) for name, x in module._modules.items()}
    twin.__dict__.update(
        module.__dict__, _modules=inner, _buffers=dict(module._buffers), training=training
    )
    for each in twin.children():
        each.train(training)
    return twin


def _draw(module: nn.Module) -> Draw:
    """Return a function from sizes to random numbers of the module's dtype and device.

    Every function returned here gives the same numbers.
    """
    like = next((x for x in module.parameters() if x.is_floating_point()), torch.empty(0))
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        x = torch.randn(sizes, generator=generator, device=generator.device)
        return x.to(like.device, like.dtype)

    return draw


def _tensors(results: Results) -> list[Tensor]:
    """Return the floating-point tensors in tuples and lists, in order. Indices are left out."""
    if isinstance(results, Tensor):
        return [results] if results.is_floating_point() else []
    return [x for each in results for x in _tensors(each)]
