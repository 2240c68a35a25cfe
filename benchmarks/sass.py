"""What the Triton kernels are compiled to, as they are shipped, and whether that is good enough.

    python -m benchmarks.sass [--targets sm_90,...] [--json FILE]

No GPU is needed. The exit status is 1 where registers are spilled, or where an inner loop has more
instructions than it should.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from triton import __version__, knobs

from attnkernels.backends.triton import configs, kernels
from benchmarks import aot
from benchmarks.aot import TARGETS, Launch
from benchmarks.sass_loops import ISSUED, MUFU, Code, Inner, classify, count, parse

META = ("BI", "BJ", "BD", "BV", "RI", "RJ", "TI", "TJ", "LANES")
TILED = {  # the kernels that go through tiles of scores, and those that they are given
    "forward_kernel": configs.TILES,
    "scores_kernel": configs.TILES,
    "gradient_kernel": configs.backward_tiles(),
}
QUADS = ("quad", "bounded quad")
VARIANTS = {  # the inner loops that there must be
    **dict.fromkeys(TILED, (*QUADS, "direct")),
    "sweep_kernel": ("shared", "single", "direct"),
}
LARGEST = configs.TILES[0].BI, configs.TILES[0].BJ
# What an element may cost on sm_90. By (E9) the forward's is 4 instructions, one of 16 a MUFU.
QUAD_ISSUED, QUAD_MUFU, BACKWARD_ISSUED = 5.0, 0.55, 12.0

WIDTH = 150
ABOUT = (
    f"elements/clk what a processor can do at {ISSUED} instructions and {MUFU} MUFU a clock, as an"
    " H100's can, where nothing else holds it up."
)


@dataclass(frozen=True)
class Row:
    """A kernel as it was compiled for the first of the calls that launch it."""

    target: str
    kernel: str
    call: str
    warps: int
    meta: dict[str, int]
    registers: int
    memory: int  # bytes that its threads share
    spills: dict[str, int]  # by name, those that there are
    loops: list[Inner]

    @property
    def block(self) -> tuple[int | None, int | None]:
        """Queries and keys of its tile, where it has them."""
        meta = self.meta
        if "TI" in meta:
            return meta["RI"] * meta["TI"], meta["RJ"] * meta["TJ"]
        return meta.get("BI"), meta.get("BJ")

    @property
    def tile(self) -> str:
        """The block, then hidden units, then columns."""
        sizes = (*self.block, self.meta.get("BD"), self.meta.get("BV"))
        return "x".join(str(size) for size in sizes if size)

    def __str__(self) -> str:
        return f"{self.kernel} {self.tile}, warps {self.warps}, of {self.call}"


class Check(NamedTuple):
    """An assertion about the kernels for a target, and what contradicts it."""

    target: str
    sentence: str
    failures: list[str]


def rows(target: str) -> list[Row]:
    """Every kernel that the shipped calls launch, each thing that it is compiled to once."""
    found: dict[str, Row] = {}
    for name, call in aot.shipped():
        with aot.compiling_for(target) as launches:
            call()
        for launch in launches:
            if launch.compiled.hash not in found:
                found[launch.compiled.hash] = _row(target, name, launch)
    return list(found.values())


def rows_of(targets: list[str]) -> dict[str, list[Row]]:
    """By target, several at a time."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return dict(zip(targets, pool.map(rows, targets), strict=True))


def _row(target: str, call: str, launch: Launch) -> Row:
    compiled, warps = launch.compiled, launch.arguments["num_warps"]
    meta = {name: launch.arguments[name] for name in META if name in launch.arguments}
    loops: list[Inner | None] = []
    if "cubin" in compiled.asm:
        registers, spills, code = _nvidia(compiled.asm["cubin"])
        pairs = _pairs(meta, warps * TARGETS[target].warp_size)
        loops = [classify(launch.name, pairs, loop) for loop in code.innermost]
    else:
        registers, spills = _amd(compiled.asm["amdgcn"])
    return Row(
        target=target,
        kernel=launch.name,
        call=call,
        warps=warps,
        meta=meta,
        registers=registers,
        memory=compiled.metadata.shared,
        spills={name: amount for name, amount in spills.items() if amount},
        loops=[loop for loop in loops if loop],
    )


def _pairs(meta: dict[str, int], threads: int) -> int:
    """What classify() wants to know."""
    if "LANES" in meta:
        return 4 * meta["RI"]
    if "RI" in meta:
        return meta["RI"] * meta["RJ"]
    return max(meta.get("BJ", 1) * meta.get("BD", 1) // threads, 1)


def _nvidia(cubin: bytes) -> tuple[int, dict[str, int], Code]:
    """(registers, spills, the code) of a kernel."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        used = _output(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file))
        code = parse(_output(knobs.nvidia.nvdisasm.path, "-c", "-ndf", str(file)))
    sizes = {name: int(size) for name, size in re.findall(r"(REG|STACK|LOCAL):(\d+)", used)}
    spills = {"STACK": sizes["STACK"], "LOCAL": sizes["LOCAL"]}
    return sizes["REG"], spills | {each: count(code.all, each) for each in ("STL", "LDL")}, code


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _amd(assembly: str) -> tuple[int, dict[str, int]]:
    """(registers, spills) of a kernel."""
    sizes = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", assembly))
    return int(sizes.pop("vgpr_count")), {name: int(size) for name, size in sizes.items()}


def checks(target: str, found: list[Row]) -> list[Check]:
    """The assertions about the rows of a target."""
    made = {
        "every kernel and every tile is there": _absent(found),
        "no spills": [f"{row}: {_spills(row)}" for row in found if row.spills],
    }
    if TARGETS[target].backend == "cuda":
        made["every inner loop is there"] = [
            f"{row}: no loop is {variant}"
            for row in found
            for variant in VARIANTS.get(row.kernel, ())
            if variant not in {loop.variant for loop in row.loops}
        ]
    if target == "sm_90":
        made |= _costs(found)
    return [Check(target, sentence, failures) for sentence, failures in made.items()]


def _absent(found: list[Row]) -> list[str]:
    modules = [
        import_module(f"{kernels.__name__}.{m.name}") for m in iter_modules(kernels.__path__)
    ]
    names = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    taken = {(row.kernel, row.block, row.warps) for row in found}
    return sorted(names - {row.kernel for row in found}) + [
        f"{name} {tile}"
        for name, tiles in TILED.items()
        for tile in tiles
        if (name, (tile.BI, tile.BJ), tile.warps) not in taken
    ]


def _costs(found: list[Row]) -> dict[str, list[str]]:
    """What the inner loops may cost, and those that cost more."""
    loops = [(row, loop) for row in found if row.kernel in VARIANTS for loop in row.loops]
    largest = [(row, loop) for row, loop in loops if row.block == LARGEST]

    def issued(kernel: str, variant: str) -> float:
        these = [each for row, each in largest if (row.kernel, each.variant) == (kernel, variant)]
        return max((each.issued for each in these), default=math.inf)

    backward = issued("gradient_kernel", "quad") + issued("sweep_kernel", "shared")
    return {
        f"quad loops, largest tile: at most {QUAD_ISSUED:g} instructions and {QUAD_MUFU} MUFU": [
            f"{row}: {loop.issued:.2f} and {loop.mufu:.2f}"
            for row, loop in largest
            if loop.variant == "quad" and (loop.issued > QUAD_ISSUED or loop.mufu > QUAD_MUFU)
        ],
        "no SHFL and no BAR in an inner loop": [
            f"{row}, {loop.variant}: {loop.shuffles} and {loop.barriers}"
            for row, loop in loops
            if loop.shuffles or loop.barriers
        ],
        f"backward, largest tile: at most {BACKWARD_ISSUED:g} instructions": (
            [f"{backward:.2f}"] if backward > BACKWARD_ISSUED else []
        ),
    }


def _spills(row: Row) -> str:
    return ", ".join(f"{name} {amount}" for name, amount in row.spills.items())


def table(target: str, found: list[Row]) -> Table:
    """A line a kernel, or a line for each of its inner loops."""
    table = Table(title=target, box=SIMPLE_HEAD, show_edge=False)
    table.padding = (0, 0, 0, 1)
    for heading in ("kernel", "tile", "call"):
        table.add_column(heading, overflow="fold")
    for heading in ("warps", "registers", "shared", "spills"):
        table.add_column(heading, justify="right")
    table.add_column("loop")
    for heading in ("issued", "MUFU", "SHFL", "elements/clk"):
        table.add_column(heading, justify="right")
    for row in sorted(found, key=lambda row: row.kernel):
        sizes = (row.warps, row.registers, row.memory)
        head = [row.kernel, row.tile, row.call, *map(str, sizes), _spills(row) or "none"]
        for loop in row.loops or [None]:
            table.add_row(*head, *(_cells(loop) if loop else ()))
            head = [""] * len(head)
    return table


def _cells(loop: Inner) -> tuple[str, ...]:
    figures = (f"{figure:.2f}" for figure in (loop.issued, loop.mufu))
    return loop.variant, *figures, str(loop.shuffles), f"{loop.elements_a_clock:.1f}"


def _plain(row: Row) -> dict[str, Any]:
    """The row for JSON, with what follows from it."""
    loops = [asdict(loop) | {"elements_a_clock": loop.elements_a_clock} for loop in row.loops]
    return asdict(row) | {"tile": row.tile, "loops": loops}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sass")
    parser.add_argument("--targets", default=",".join(TARGETS), help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="where to write what the tables show")
    options = parser.parse_args(arguments)
    targets = options.targets.split(",")
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    found = rows_of(targets)
    made = [check for target in targets for check in checks(target, found[target])]
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    for target in targets:
        console.print(table(target, found[target]), "")
    console.print(f"Triton {__version__}. Instructions and MUFU are an element's, and {ABOUT}")
    for check in made:
        console.print(f"{'FAILED' if check.failures else 'ok':6} {check.target}: {check.sentence}")
        for failure in check.failures:
            console.print(f"         {failure}")
    if options.json:
        plain = [_plain(row) for target in targets for row in found[target]]
        result = {"triton": __version__, "rows": plain, "checks": [each._asdict() for each in made]}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(any(check.failures for check in made))


if __name__ == "__main__":
    sys.exit(main())
