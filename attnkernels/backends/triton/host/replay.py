"""Repeat an earlier call whose arguments were laid out alike.

The layout of its arguments decides all about a call but the addresses of its tensors: kernels,
grids, strides, sizes of memory and operations of torch. The first call of a layout is recorded. The
next ones start the same compiled kernels with other addresses, and spend no time on geometry and
none on Triton's search for a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from . import configs, plans
from .launch import fp32_precision, target
from .recorder import recording

MOST = 1024  # layouts that are remembered; a plan takes some kilobytes
ALIGNED = 16  # bytes


class Plan(NamedTuple):
    """The function that repeats a call, and the tiles that it was recorded with."""

    repeat: plans.Function | None  # None: nothing does
    tiles: tuple[configs.Tile, ...]  # which keep their id as long as the plan is there


class Replay:
    """An operator that repeats its earlier calls; `compute` is its implementation.

    Its first `tensors` arguments are tensors or None, the others numbers.
    """

    def __init__(self, compute: Callable[..., Any], tensors: int) -> None:
        self._compute, self._tensors = compute, tensors
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def __call__(self, *args: Any) -> Any:
        """Return a tuple of tensors."""
        key: list[Any] = [fp32_precision(), id(configs.TILES), *args[self._tensors :]]
        tensors, addresses, bits = [], [], 0
        for x in args[: self._tensors]:
            if x is None:
                key.append(None)
            else:
                address = x.data_ptr()
                tensors.append(x)
                addresses.append(address)
                bits |= address
                key += x.shape, x.is_contiguous() or x.stride(), x.dtype
        device = tensors[0].get_device()
        key.append(device)
        if bits % ALIGNED:  # Triton compiles a kernel anew where one of its addresses is not
            key += [address % ALIGNED == 0 for address in addresses]
        layout = tuple(key)
        plan = self._plans.get(layout)
        if plan is None:
            if target(tensors[0].device).name != "cuda":
                return self._compute(*args)
            return self._recorded(layout, args)
        repeat, runtime, active = plan.repeat, knobs.runtime, driver.active
        # a profiler wants to know of every launch
        if not repeat or runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls:
            return self._compute(*args)
        if device < 0 or device == active.get_current_device():
            return repeat(active.get_current_stream(device), tensors, addresses)
        with torch.cuda.device(device):
            return repeat(active.get_current_stream(device), tensors, addresses)

    def _recorded(self, layout: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        apart = _apart(args[: self._tensors])
        with recording() as recorder:
            results = self._compute(*apart, *args[self._tensors :])
        if len(self._plans) >= MOST:
            self._plans.clear()
        try:
            given = [x for x in apart if x is not None]
            repeat = plans.written(recorder, given, results)
        except plans.Unrepeatable:
            repeat = None
        self._plans[layout] = Plan(repeat, configs.TILES)
        return results


def _apart(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the tensors, or copies of those whose address another one has.

    Keys are often values as well: the address alone would not tell which of them a kernel reads.
    """
    seen: set[int] = set()
    found: list[Tensor | None] = []
    for x in tensors:
        if x is not None and x.data_ptr() in seen:
            copy = x.clone()
            x = copy if copy.stride() == x.stride() else x
        if x is not None:
            seen.add(x.data_ptr())
        found.append(x)
    return found
