"""The functions of a cubin: resources, spills and code, as NVIDIA's tools report them.

Triton's package brings the tools.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from tools.sass.loops import Code, count, parse


class Function(NamedTuple):
    """A compiled function."""

    registers: int
    memory: int  # bytes of static shared memory
    spills: dict[str, int]  # by name, without zeros
    threads: int | None  # the maximum per block, if the source gives it
    code: Code


def functions(cubin: Path) -> dict[str, Function]:
    """Return the functions of a cubin by symbol."""
    from triton import knobs  # not needed to read a listing

    used = _output(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin))
    return read(used, _output(knobs.nvidia.nvdisasm.path, "-ndf", str(cubin)))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def read(used: str, listing: str) -> dict[str, Function]:
    """Read the resources that cuobjdump printed, and the sections that nvdisasm did."""
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
    """Return the first of the words of EIATTR_MAX_THREADS, one per dimension of a block."""
    attribute = re.search(r"EIATTR_MAX_THREADS\n(.*?)(?:\n\s*//|\Z)", section, re.S)
    words = re.findall(r"\.word\s+0x([0-9a-f]+)", attribute[1]) if attribute else []
    return int(words[0], 16) if words else None


def readable(symbol: str) -> str:
    """Return "some_kernel<4, Logistic>" for a mangled name, without namespaces and parameters."""
    if not symbol.startswith("_Z"):
        return symbol
    name, rest = symbol, symbol[2:].removeprefix("N")
    while rest[:1].isdigit():
        name, rest = _word(rest)
    if not rest.startswith("I"):
        return name
    rest, given = rest[1:], []
    while not rest.startswith("E"):
        if literal := re.match(r"L([a-z])(\d+)E", rest):
            kind, number = literal.groups()
            given.append(("false", "true")[int(number)] if kind == "b" else number)
            rest = rest[literal.end() :]
        else:  # a type in a namespace, which is S_ or S0_ where it came before
            word, rest = _word(re.sub(r"^(N(S\d*_)?)?", "", rest))
            given.append(word)
            rest = rest.removeprefix("E")
    return f"{name}<{', '.join(given)}>"


def _word(mangled: str) -> tuple[str, str]:
    """Split a name preceded by its length, such as 4cuda, from the rest."""
    length = re.match(r"\d+", mangled)
    assert length is not None, mangled
    end = length.end() + int(length[0])
    return mangled[length.end() : end], mangled[end:]
