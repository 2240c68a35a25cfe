"""The inner loops of a kernel in NVIDIA's machine code, and the cost of an element in each."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

# A line of nvdisasm is a label, or an address with an instruction that may have a predicate.
_LINE = re.compile(r"^(\.\w+):|^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
_JUMP = re.compile(r"`\((\.\w+)\)")
_REGISTER = re.compile(r"\bU?R(\d+)")
_LOADED = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}  # bytes, elsewhere 4

# Instructions that a processor (SM) issues per clock, and those of its special function unit.
ISSUED, MUFU = 128, 16


@dataclass(frozen=True)
class Inner:
    """An inner loop over elements, with its costs."""

    variant: str
    issued: float  # instructions per element
    mufu: float  # reciprocals and exponentials per element
    shuffles: int  # per pass of the loop
    barriers: int

    @property
    def elements_a_clock(self) -> float:
        """The most elements per clock and processor."""
        return min(ISSUED / self.issued, MUFU / self.mufu if self.mufu else math.inf)


class Code(NamedTuple):
    """The names of a kernel's instructions, and the (first, end) of its loops.

    flights: bytes of each run of loads from memory that begin before one of them is used, per warp.
    """

    names: list[str]
    loops: list[tuple[int, int]]
    flights: tuple[int, ...] = ()

    @property
    def all(self) -> Counter[str]:
        return Counter(self.names)

    @property
    def innermost(self) -> list[Counter[str]]:
        """The instructions of every loop without a loop inside."""
        return [
            Counter(self.names[start:end])
            for start, end in self.loops
            if not any(start <= a and b <= end for a, b in self.loops if (a, b) != (start, end))
        ]


def parse(sass: str) -> Code:
    """Parse the output of nvdisasm: a jump back ends a loop."""
    names: list[str] = []
    starts: dict[str, int] = {}
    jumps: list[tuple[str, int]] = []
    flights, pending, size = [], set[int](), 0
    for line in sass.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        label, name, operands = found.groups()
        if label:
            starts[label] = len(names)
            continue
        names.append(name)
        registers = [int(number) for number in _REGISTER.findall(operands)]
        is_load = name.startswith("LDG") and bool(registers)  # none is RZ
        if pending.intersection(registers[1:] if is_load else registers):
            flights.append(32 * size)
            pending, size = set(), 0
        if is_load:
            bytes_each = next((_LOADED[x] for x in name.split(".") if x in _LOADED), 4)
            pending.update(range(registers[0], registers[0] + max(1, bytes_each // 4)))
            size += bytes_each
        to = _JUMP.search(operands)
        if to and name.startswith("BRA"):
            jumps.append((to[1], len(names)))
    loops = [(starts[to], end) for to, end in jumps if starts.get(to, end) < end]
    return Code(names, loops, tuple(flights))


def count(instructions: Counter[str], *beginnings: str) -> int:
    """Return the number of instructions whose names have this prefix."""
    return sum(n for name, n in instructions.items() if name.startswith(beginnings))


def classify(kernel: str, pairs: int, loop: Counter[str]) -> Inner | None:
    """Return the costs per element of a loop, or None if it is not over elements.

    `pairs` is the number of (query, key) pairs per thread in a loop over single hidden units, and a
    quarter of the elements of a loop over four at a time.
    """
    found = _variant(kernel, pairs, loop)
    return costs(*found, loop) if found else None


def costs(variant: str, elements: float, loop: Counter[str]) -> Inner:
    """Return the costs of a loop over this many elements."""
    return Inner(
        variant=variant,
        issued=(sum(loop.values()) - count(loop, "NOP")) / elements,
        mufu=count(loop, "MUFU") / elements,
        shuffles=count(loop, "SHFL"),
        barriers=count(loop, "BAR"),
    )


def _variant(kernel: str, pairs: int, loop: Counter[str]) -> tuple[str, int] | None:
    """Return (variant, elements), by the number of reciprocals and exponentials."""
    reciprocals, exponentials = count(loop, "MUFU.RCP"), count(loop, "MUFU.EX2")
    if kernel == "sweep_kernel" and 0 < exponentials < reciprocals:
        elements = exponentials * pairs  # one exponential per key
        if reciprocals * 4 == elements * 3:
            return "shared", elements
        return ("single", elements) if reciprocals == elements else None
    if reciprocals == 0 or reciprocals % pairs:
        return None
    if exponentials == reciprocals:
        return "direct", reciprocals
    if kernel in ("jvp_kernel", "scores_jvp_kernel"):
        return None if exponentials else ("tangents", reciprocals)
    elements = 4 * reciprocals
    if exponentials or count(loop, "FFMA") < elements // 2:  # divisions
        return None
    return "bounded quad" if count(loop, "FMNMX") >= elements // 2 else "quad", elements
