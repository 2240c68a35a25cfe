"""Write down the steps of a recorded call as a function that repeats them for other tensors.

The functions are Python, made as source and compiled once: a loop over steps and arguments would
take longer than all that they do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .recorder import Launch, Operation, Recorder

Function = Callable[..., Any]

GRAIN = 64  # numbers between the starts of two pieces of memory; no kernel wants more alignment
MOST = 100  # steps of a call that is worth repeating
ALLOCATE, FILL = torch.ops.aten.new_empty.default, torch.ops.aten.fill_.Scalar
TENSOR = re.compile(r"\bt\d+\b")  # names of tensors in the lines of `_everything`


class Unrepeatable(Exception):
    """A call does something that its function would not."""


class Source:
    """The lines of a function, and the values that they name."""

    def __init__(self, of_tensor: Callable[[Tensor], str]) -> None:
        self.lines: list[str] = []
        self._of_tensor = of_tensor
        self._known: dict[str, Any] = {"float32": torch.float32}

    def written(self, value: Any) -> str:
        """Return an expression for an argument, which may be a tuple or a list of others."""
        if isinstance(value, Tensor):
            return self._of_tensor(value)
        if isinstance(value, tuple | list):
            each = "".join(f"{self.written(x)}, " for x in value)
            return f"[{each}]" if isinstance(value, list) else f"({each})"
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        name = f"v{len(self._known)}"
        self._known[name] = value
        return name

    def launch(self, step: Launch) -> None:
        """Add the launch of a kernel in the stream `stream`."""
        compiled, programs, arguments = step
        run = self.written(compiled.run)
        fixed = programs, 1, 1, "stream", compiled.function, compiled.packed_metadata, *3 * [None]
        parts = ["stream" if x == "stream" else self.written(x) for x in (*fixed, *arguments)]
        self.lines.append(f"{run}({', '.join(parts)})")

    def function(self) -> Function:
        """Return the function, of a stream, and of the tensors of a call and their addresses."""
        body = "\n ".join(self.lines)
        exec(f"def repeat(stream, tensors, addresses):\n {body}", self._known)
        return self._known["repeat"]


def written(recorder: Recorder, given: Sequence[Tensor], results: Sequence[Tensor]) -> Function:
    """Return a function that does what was recorded, and returns new results.

    `given` are the tensors of the call, whose addresses differ.

    Raises:
        Unrepeatable: there is none.
    """
    if len(recorder.steps) > MOST:
        raise Unrepeatable("it takes long anyway")
    addresses = {x.data_ptr() for x in given}
    if len(addresses) < len(given) or 0 in addresses:
        raise Unrepeatable("two tensors share their memory, or one has none")
    try:
        return _launches(recorder, given, results)
    except Unrepeatable:
        return _everything(recorder, given, results)


def _launches(recorder: Recorder, given: Sequence[Tensor], results: Sequence[Tensor]) -> Function:
    """Write down a call that only launches on new memory; what it does not return is one tensor."""
    for step in recorder.steps:
        if isinstance(step, Operation) and not _is_view(step.function):
            if step.function not in (ALLOCATE, FILL):
                raise Unrepeatable(f"{step.function} is more than a launch")
    names = {x.data_ptr(): f"a{place}" for place, x in enumerate(given)}
    names |= {x.data_ptr(): str(x.data_ptr()) for x in recorder.constants}
    source = Source(lambda x: _known(names, x.data_ptr()))
    source.lines.append(f"({''.join(f'a{place}, ' for place in range(len(given)))}) = addresses")
    source.lines.append("new = tensors[0].new_empty")
    new = {each.tensor.data_ptr(): each for each in recorder.memory if each.tensor.numel()}
    for place, result in enumerate(results):
        sizes = "".join(f"{size}, " for size in result.shape)
        source.lines.append(f"r{place} = new({sizes}dtype=float32)")
        if not result.numel():
            continue
        if result.data_ptr() not in new or not result.is_contiguous():
            raise Unrepeatable("a result is not new memory as it was made")
        fill = new.pop(result.data_ptr()).fill
        if fill is not None:
            source.lines.append(f"r{place}.fill_({source.written(fill)})")
        names[result.data_ptr()] = f"r{place}.data_ptr()"
    size = 0
    for address, (tensor, fill) in new.items():
        if fill is not None:
            raise Unrepeatable("memory that is not returned is filled")
        names[address] = f"start + {4 * size}"
        size += -(-tensor.numel() // GRAIN) * GRAIN
    if size:
        source.lines += [f"memory = new({size}, dtype=float32)", "start = memory.data_ptr()"]
    for step in recorder.steps:
        if isinstance(step, Launch):
            source.launch(step)
    source.lines.append(f"return {''.join(f'r{place}, ' for place in range(len(results)))}")
    return source.function()


def _everything(recorder: Recorder, given: Sequence[Tensor], results: Sequence[Tensor]) -> Function:
    """Write down a call step by step, with its operations of torch."""
    names = {id(x): f"t{place}" for place, x in enumerate(given)}
    source = Source(lambda x: _known(names, id(x)))
    addressed = Source(lambda x: f"{_known(names, id(x))}.data_ptr()")
    addressed.lines, addressed._known = source.lines, source._known
    for place, constant in enumerate(recorder.constants):
        names[id(constant)] = f"c{place}"
        source._known[f"c{place}"] = constant
    source.lines.append(f"({''.join(f't{place}, ' for place in range(len(given)))}) = tensors")
    for step in recorder.steps:
        if isinstance(step, Launch):
            addressed.launch(step)
            continue
        function, args, options, result = step
        if function is ALLOCATE and options.get("dtype") is torch.float32:  # in half the time
            of, sizes = source.written(args[0]), "".join(f"{size}, " for size in args[1])
            name = names[id(result)] = f"t{len(names)}"
            source.lines.append(f"{name} = {of}.new_empty({sizes}dtype=float32)")
            continue
        call = source.written(function._op)
        parts = [source.written(each) for each in args]
        parts += [f"{name}={source.written(each)}" for name, each in options.items()]
        made = [result] if isinstance(result, Tensor) else result
        if not isinstance(made, tuple | list) or not all(isinstance(x, Tensor) for x in made):
            raise Unrepeatable(f"{function} reads what a tensor holds")
        fresh = [names.setdefault(id(x), f"t{len(names)}") for x in made]
        targets = fresh[0] if isinstance(result, Tensor) else f"({', '.join(fresh)},)"
        source.lines.append(f"{targets} = {call}({', '.join(parts)})")
    source.lines.append(f"return {''.join(f'{source.written(x)}, ' for x in results)}")
    source.lines = _forgetting(source.lines)
    return source.function()


def _forgetting(lines: list[str]) -> list[str]:
    """Return the lines, which delete every tensor after its last use."""
    last = {name: place for place, line in enumerate(lines) for name in TENSOR.findall(line)}
    done: dict[int, list[str]] = {}
    for name, place in last.items():
        if place < len(lines) - 1:  # what is returned goes anyway
            done.setdefault(place, []).append(name)
    ends = [
        f"; del {', '.join(done[place])}" if place in done else "" for place in range(len(lines))
    ]
    return list(map("".join, zip(lines, ends, strict=True)))


def _is_view(function: Any) -> bool:
    aliases = [each.alias_info for each in function._schema.returns]
    return all(alias is not None and not alias.is_write for alias in aliases)


def _known(names: dict[int, str], key: int) -> str:
    if key not in names:
        raise Unrepeatable("it uses memory that is neither given nor new")
    return names[key]
