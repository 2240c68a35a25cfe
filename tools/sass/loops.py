"""The inner loops of a kernel in NVIDIA's machine code, and what an element costs in each."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

# A line of nvdisasm is a label, or an address with an instruction that may have a predicate.
_LINE = re.compile(r"^(\.\w+):|^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
_JUMP = re.compile(r"`\((\.\w+)\)")

# What a processor (SM) issues in a clock, and what its unit for reciprocals and exponentials takes.
ISSUED, MUFU = 128, 16


@dataclass(frozen=True)
class Inner:
    """An inner loop that goes through elements."""

    variant: str
    issued: float  # instructions, an element
    mufu: float  # of them reciprocals and exponentials
    shuffles: int  # instructions of the loop
    barriers: int

    @property
    def elements_a_clock(self) -> float:
        """Of a processor that nothing else holds up."""
        return min(ISSUED / self.issued, MUFU / self.mufu)


class Code(NamedTuple):
    """The names of a kernel's instructions, and from which to which its loops go."""

    names: list[str]
    loops: list[tuple[int, int]]

    @property
    def all(self) -> Counter[str]:
        return Counter(self.names)

    @property
    def innermost(self) -> list[Counter[str]]:
        """Of every loop that has no loop inside."""
        return [
            Counter(self.names[start:end])
            for start, end in self.loops
            if not any(start <= a and b <= end for a, b in self.loops if (a, b) != (start, end))
        ]


def parse(sass: str) -> Code:
    """What nvdisasm printed: a jump back is the end of a loop."""
    names: list[str] = []
    starts: dict[str, int] = {}
    jumps: list[tuple[str, int]] = []
    for line in sass.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        label, name, operands = found.groups()
        if label:
            starts[label] = len(names)
            continue
        names.append(name)
        to = _JUMP.search(operands)
        if to and name.startswith("BRA"):
            jumps.append((to[1], len(names)))
    loops = [(starts[to], end) for to, end in jumps if starts.get(to, end) < end]
    return Code(names, loops)


def count(instructions: Counter[str], *beginnings: str) -> int:
    """How many have names that begin so."""
    return sum(n for name, n in instructions.items() if name.startswith(beginnings))


def classify(kernel: str, pairs: int, loop: Counter[str]) -> Inner | None:
    """What a loop costs an element; None where it goes through something else.

    `pairs` is how many pairs of a query and a key a thread has in a loop that takes one hidden unit
    at a time, and a quarter of the elements of a loop that takes four.
    """
    found = _variant(kernel, pairs, loop)
    return costs(*found, loop) if found else None


def costs(variant: str, elements: int, loop: Counter[str]) -> Inner:
    """What a loop that goes through so many elements costs each."""
    return Inner(
        variant=variant,
        issued=(sum(loop.values()) - count(loop, "NOP")) / elements,
        mufu=count(loop, "MUFU") / elements,
        shuffles=count(loop, "SHFL"),
        barriers=count(loop, "BAR"),
    )


def _variant(kernel: str, pairs: int, loop: Counter[str]) -> tuple[str, int] | None:
    """(the variant, its elements), by how many reciprocals and exponentials there are."""
    reciprocals, exponentials = count(loop, "MUFU.RCP"), count(loop, "MUFU.EX2")
    if kernel == "sweep_kernel" and 0 < exponentials < reciprocals:
        elements = exponentials * pairs  # an exponential is a key
        if reciprocals * 4 == elements * 3:
            return "shared", elements
        return ("single", elements) if reciprocals == elements else None
    if reciprocals == 0 or reciprocals % pairs:
        return None
    if exponentials == reciprocals:
        return "direct", reciprocals
    elements = 4 * reciprocals
    if exponentials or count(loop, "FFMA") < elements // 2:  # divisions
        return None
    return "bounded quad" if count(loop, "FMNMX") >= elements // 2 else "quad", elements
