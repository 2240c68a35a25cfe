"""Repeat the launches of an earlier call whose arguments were laid out alike.

The layout of its arguments decides all about a call but the addresses of its tensors: kernels,
grids, strides and the sizes of memory. The first call of a layout is recorded. The next ones start
the same compiled kernels with other addresses, and spend no time on geometry and none on Triton's
search for a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from . import configs
from .launch import fp32_precision, target
from .recorder import Launch, Recorder, recording

Addresses = list[int]  # those of the arguments, of the results and of other memory

MOST = 1024  # layouts that are remembered; a plan takes some kilobytes
ALIGNED = 16  # bytes
GRAIN = 64  # numbers between the starts of two pieces of memory; no kernel wants more alignment


class Unrepeatable(Exception):
    """A call did more than launch kernels on its arguments and on new memory."""


class Plan:
    """The launches of a recorded call, for arguments of the same layout."""

    def __init__(self, recorder: Recorder, given: Addresses, results: Sequence[Tensor]) -> None:
        self.tiles = configs.TILES
        self._shapes = [result.shape for result in results]
        self._fills: list[tuple[int, float]] = []  # by the place of a result
        self._offsets: list[int] = []  # of other memory, in bytes
        self._size = 0  # of that, in numbers
        places = {address: place for place, address in enumerate(given)}
        if len(places) < len(given) or 0 in places:
            raise Unrepeatable("two arguments share their memory, or one has none")
        new = {each.tensor.data_ptr(): each for each in recorder.memory if each.tensor.numel()}
        for place, result in enumerate(results):
            if not result.numel():
                continue
            if result.data_ptr() not in new or not result.is_contiguous():
                raise Unrepeatable("a result is not new memory as it was made")
            fill = new.pop(result.data_ptr()).fill
            places[result.data_ptr()] = len(given) + place
            if fill is not None:
                self._fills.append((place, fill))
        for address, (tensor, fill) in new.items():
            if fill is not None:
                raise Unrepeatable("memory that is not returned is filled")
            places[address] = len(given) + len(results) + len(self._offsets)
            self._offsets.append(4 * self._size)
            self._size += -(-tensor.numel() // GRAIN) * GRAIN
        count = len(given) + len(results) + len(self._offsets)
        self._launch = _launcher(recorder.launches, places, count)

    def run(self, query: Tensor, addresses: Addresses) -> tuple[Tensor, ...]:
        """Start the kernels on new memory, and return the results."""
        new, float32 = query.new_empty, torch.float32
        results = tuple([new(*shape, dtype=float32) for shape in self._shapes])
        for place, fill in self._fills:
            results[place].fill_(fill)
        for result in results:
            addresses.append(result.data_ptr())
        if self._size:
            memory = new(self._size, dtype=float32)
            start = memory.data_ptr()
            for offset in self._offsets:
                addresses.append(start + offset)
        active, device = driver.active, query.get_device()
        if device < 0 or device == active.get_current_device():
            self._launch(active.get_current_stream(device), *addresses)
        else:
            with torch.cuda.device(device):
                self._launch(active.get_current_stream(device), *addresses)
        return results


class Replay:
    """An operator that repeats its earlier calls; `compute` is its implementation.

    Its first `tensors` arguments are tensors or None, the others numbers.
    """

    def __init__(self, compute: Callable[..., Any], tensors: int) -> None:
        self._compute, self._tensors = compute, tensors
        self._plans: dict[tuple[Any, ...], Plan | None] = {}

    def __call__(self, *args: Any) -> Any:
        """Return a tuple of tensors."""
        key: list[Any] = [fp32_precision(), args[0].get_device(), *args[self._tensors :]]
        addresses, bits = [], 0
        for x in args[: self._tensors]:
            if x is None:
                key.append(None)
            else:
                address = x.data_ptr()
                addresses.append(address)
                bits |= address
                key += x.shape, x.is_contiguous() or x.stride(), x.dtype
        if bits % ALIGNED:  # Triton compiles a kernel anew where one of its addresses is not
            key += [address % ALIGNED == 0 for address in addresses]
        layout = tuple(key)
        plan = self._plans.get(layout)
        if plan is not None and plan.tiles is configs.TILES:
            runtime = knobs.runtime
            # a profiler wants to know of every launch
            if not (runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls):
                return plan.run(args[0], addresses)
        if layout in self._plans or target(args[0].device).name != "cuda":
            return self._compute(*args)
        return self._recorded(layout, args)

    def _recorded(self, layout: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        apart = _apart(args[: self._tensors])
        with recording() as recorder:
            results = self._compute(*apart, *args[self._tensors :])
        if len(self._plans) >= MOST:
            self._plans.clear()
        try:
            given = [x.data_ptr() for x in apart if x is not None]
            self._plans[layout] = Plan(recorder, given, results)
        except Unrepeatable:
            self._plans[layout] = None
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


def _launcher(launches: list[Launch], places: dict[int, int], count: int) -> Callable[..., None]:
    """Return a function of the stream and of `count` addresses that makes the launches.

    It is written out as source: a loop over the arguments would take longer than all the rest.
    """
    known: dict[str, Any] = {}  # what the source names

    def name(value: Any) -> str:
        known[f"v{len(known)}"] = value
        return f"v{len(known) - 1}"

    def written(argument: Any) -> str:
        if isinstance(argument, Tensor):
            if argument.data_ptr() not in places:
                raise Unrepeatable("a kernel reads memory that is neither given nor new")
            return f"a{places[argument.data_ptr()]}"
        if isinstance(argument, tuple):
            return f"({''.join(f'{written(each)}, ' for each in argument)})"
        return name(argument)

    lines = [f"def launch(stream, {', '.join(f'a{place}' for place in range(count))}):"]
    for compiled, programs, arguments in launches:
        given = ", ".join(map(written, arguments))
        of = map(name, (compiled.function, compiled.packed_metadata))
        lines.append(
            f" {name(compiled.run)}({programs}, 1, 1, stream, {', '.join(of)}, None, None, None,"
            f" {given})"
        )
    exec("\n".join([*lines, " return"]), known)
    return known["launch"]
