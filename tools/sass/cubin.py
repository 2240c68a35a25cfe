"""The functions of a cubin: what they use, what they spill and their code, as NVIDIA's tools say.

Triton's package brings the tools.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from tools.sass.loops import Code, count, parse


class Function(NamedTuple):
    """A function as it was compiled."""

    registers: int
    memory: int  # bytes of shared memory, without those that a launch asks for
    spills: dict[str, int]  # by name, those that there are
    threads: int | None  # the most that a block may have, where the source says it
    code: Code


def functions(cubin: Path) -> dict[str, Function]:
    """By symbol."""
    from triton import knobs  # which those who only read a listing do without

    used = _output(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin))
    return read(used, _output(knobs.nvidia.nvdisasm.path, "-ndf", str(cubin)))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def read(used: str, listing: str) -> dict[str, Function]:
    """What cuobjdump said of the functions' resources, and nvdisasm of their sections."""
    parts = re.split(r"^\s*\.section\s+([^\s,]+).*$", listing, flags=re.M)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    found = {}
    for symbol, sizes in re.findall(r"Function (\S+):\s+(.*)", used):
        size = {name: int(number) for name, number in re.findall(r"(\w+):(\d+)", sizes)}
        code = parse(sections[f".text.{symbol}"])
        spills = {"STACK": size["STACK"], "LOCAL": size["LOCAL"]}
        spills |= {name: count(code.all, name) for name in ("STL", "LDL")}
        found[symbol] = Function(
            registers=size["REG"],
            memory=size["SHARED"],
            spills={name: amount for name, amount in spills.items() if amount},
            threads=_threads(sections.get(f".nv.info.{symbol}", "")),
            code=code,
        )
    return found


def _threads(section: str) -> int | None:
    """Of the words of EIATTR_MAX_THREADS, which are those of the block's three dimensions."""
    attribute = re.search(r"EIATTR_MAX_THREADS\n(.*?)(?:\n\s*//|\Z)", section, re.S)
    words = re.findall(r"\.word\s+0x([0-9a-f]+)", attribute[1]) if attribute else []
    return int(words[0], 16) if words else None


def readable(symbol: str) -> str:
    """ "some_kernel<true>" of a mangled name: no namespaces, and of its arguments none."""
    if not symbol.startswith("_Z"):
        return symbol
    name, rest = symbol, symbol[2:].removeprefix("N")
    while length := re.match(r"\d+", rest):
        end = length.end() + int(length[0])
        name, rest = rest[length.end() : end], rest[end:]
    given = re.match(r"I((?:L[a-z]\d+E)+)E", rest)
    if given is None:
        return name
    literals = re.findall(r"L([a-z])(\d+)E", given[1])
    words = (("false", "true")[int(n)] if kind == "b" else n for kind, n in literals)
    return f"{name}<{', '.join(words)}>"
