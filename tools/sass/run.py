"""The machine code of the GPU kernels as they are shipped, and assertions about it.

    python -m tools.sass [--kernels triton|native] [--targets sm_90,...] [--json FILE]

No GPU is needed; the kernels of csrc/cuda, "native", need nvcc. The exit status is 1 if registers
are spilled, or if an inner loop has too many instructions.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from rich.console import Console
from rich.table import Table
from triton import __version__

from attnkernels.backends.triton import device as kernels
from attnkernels.backends.triton.host import configs
from attnkernels.measure import files
from attnkernels.measure.wording import tolerate_any_encoding
from tools.sass import aot
from tools.sass import edges as sass_edges
from tools.sass import native as sass_native
from tools.sass import report as sass_report
from tools.sass import sines as sass_sines
from tools.sass.aot import TARGETS, Launch
from tools.sass.cubin import Function, functions
from tools.sass.loops import ISSUED, MUFU, Inner, classify
from tools.sass.report import Check, print_checks, spilled

META = ("BI", "BJ", "BH", "BE", "BD", "BV", "RI", "SHAPE", "LANES", "WHOLE", "OWN", "OTHER")
TILED = {  # the kernels that work on tiles of scores, and their tiles
    "forward_kernel": configs.TILES,
    "scores_kernel": configs.TILES,
    "gradient_kernel": configs.backward_tiles(),
    "jvp_kernel": configs.tangent_tiles(),
    "scores_jvp_kernel": configs.TILES,
}
QUADS = ("quad", "bounded quad")
VARIANTS = {  # the inner loops that each kernel must have
    **dict.fromkeys(TILED, (*QUADS, "direct")),
    **dict.fromkeys(("jvp_kernel", "scores_jvp_kernel"), ("tangents", "direct")),
    "sweep_kernel": ("shared", "single", "direct"),
}
LARGEST = configs.TILES[0].BI, configs.TILES[0].BJ
# The maximum per element on sm_90. By (E9) the forward takes 4 instructions, one in 16 a MUFU.
QUAD_ISSUED, QUAD_MUFU, BACKWARD_ISSUED = 5.0, 0.55, 12.0

WIDTH = 150
ABOUT = (
    "an element of a loop over edges is an edge and head;"
    f" elements/clk is the most that a processor of an H100 can do, with {ISSUED} instructions and"
    f" {MUFU} MUFU per clock."
)


@dataclass(frozen=True)
class Row:
    """A compiled kernel, and the first of the calls that launch it."""

    target: str
    kernel: str
    call: str
    warps: int
    meta: dict[str, Any]
    registers: int
    memory: int  # bytes of shared memory
    spills: dict[str, int]  # by name, without zeros
    loops: list[Inner]
    sines: sass_sines.Cost | None = None

    @property
    def block(self) -> tuple[int | None, int | None]:
        """The queries and keys of its tile, or heads and edges, if it has one."""
        if "SHAPE" in self.meta:
            RI, RJ, TI, TJ = self.meta["SHAPE"]
            return RI * TI, RJ * TJ
        if "BE" in self.meta:
            return self.meta["BH"], self.meta["BE"]
        return self.meta.get("BI"), self.meta.get("BJ")

    @property
    def tile(self) -> str:
        """The block, then the hidden units, then the columns."""
        sizes = (*self.block, self.meta.get("BD"), self.meta.get("BV"))
        return "x".join(str(size) for size in sizes if size)

    def __str__(self) -> str:
        return f"{self.kernel} {self.tile}, warps {self.warps}, of {self.call}"


def rows(target: str) -> list[Row]:
    """Return every kernel that the shipped calls launch; equal machine code counts once."""
    found: dict[str, Row] = {}
    for name, call in aot.shipped():
        with aot.compiling_for(target) as launches:
            call()
        for launch in launches:
            if launch.compiled.hash not in found:
                found[launch.compiled.hash] = _row(target, name, launch)
    return list(found.values())


def rows_of(targets: list[str]) -> dict[str, list[Row]]:
    """Return the rows by target; several targets are compiled at a time."""
    return compiled(targets, [])[0]


def compiled(
    targets: list[str], builds: list[sass_native.Build]
) -> tuple[dict[str, list[Row]], list[sass_native.Row]]:
    """Return the rows of Triton kernels by target, and those of CUDA, from several processes."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        triton, native = pool.map(rows, targets), pool.map(sass_native.rows, builds)
        return dict(zip(targets, triton, strict=True)), [row for found in native for row in found]


def _row(target: str, call: str, launch: Launch) -> Row:
    compiled, warps = launch.compiled, launch.arguments["num_warps"]
    meta = {name: launch.arguments[name] for name in META if name in launch.arguments}
    loops: list[Inner | None] = []
    cost = None
    if "cubin" in compiled.asm:
        function = _nvidia(compiled.asm["cubin"])
        registers, spills = function.registers, function.spills
        threads, inner = warps * TARGETS[target].warp_size, function.code.innermost
        if launch.arguments.get("sines") is not None:
            loops = [*sass_sines.inner_loops(launch.name, meta, threads, function.code)]
        elif sass_edges.is_over_edges(launch.name, meta):
            loops = [sass_edges.classify(meta, threads, loop) for loop in inner]
        else:
            pairs = _pairs(meta, threads)
            loops = [classify(launch.name, pairs, loop) for loop in inner]
        if call == aot.FAST and aot.by_sines(target) and launch.name in sass_sines.KERNELS:
            cost = sass_sines.cost(launch.name, meta, warps, function, compiled.metadata.shared)
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
        sines=cost,
    )


def _pairs(meta: dict[str, Any], threads: int) -> int:
    """Return the pairs per thread, for classify()."""
    if "LANES" in meta:
        return 4 * meta["RI"]
    if "SHAPE" in meta:
        return meta["SHAPE"][0] * meta["SHAPE"][1]
    return max(meta.get("BJ", 1) * meta.get("BD", 1) // threads, 1)


def _nvidia(cubin: bytes) -> Function:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        (function,) = functions(file).values()
    return function


def _amd(assembly: str) -> tuple[int, dict[str, int]]:
    """Return (registers, spills) of a kernel."""
    sizes = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", assembly))
    return int(sizes.pop("vgpr_count")), {name: int(size) for name, size in sizes.items()}


# Registers that a kernel may store per thread, where a Triton from 3.6 to 3.9 finds no place for
# them. Under 3.9 prepare_kernel has 8 bytes of stack for 16-bit inputs, which nothing uses.
UNUSED = {(target, "prepare_kernel"): 8 for target in ("sm_80", "sm_90", "sm_100", "sm_120")}
SPILLS = UNUSED | {
    ("sm_80", "gradient_kernel"): 17,
    ("sm_80", "jvp_kernel"): 6,
    ("sm_90", "jvp_kernel"): 6,
    ("sm_100", "jvp_kernel"): 6,
    ("sm_120", "jvp_kernel"): 21,
    ("sm_120", "sweep_kernel"): 3,
    ("sm_120", "gradient_kernel"): 2,
}


def _stores(row: Row) -> int:
    """Return the spilled stores of a kernel, or its spilled registers where no stores are known."""
    return row.spills.get("STL") or max(row.spills.values())


def checks(target: str, found: list[Row]) -> list[Check]:
    """Return the assertions about the rows of a target."""
    made = {
        "every kernel and every tile is there": _absent(target, found),
        "no spills": [
            f"{row}: {spilled(row.spills)}"
            for row in found
            if row.spills and _stores(row) > SPILLS.get((target, row.kernel), 0)
        ],
    }
    if TARGETS[target].backend == "cuda":
        made["every inner loop is there"] = [
            f"{row}: no loop is {variant}"
            for row in found
            for variant in VARIANTS.get(row.kernel, ())
            if variant not in {loop.variant for loop in row.loops}
            and not (_takes_weights(row) or sass_sines.occur(row.loops))
        ]
    if target == "sm_90":
        made |= _costs(found) | sass_edges.checks(found, aot.EDGES)
        made |= sass_sines.checks([(row.kernel, row.sines) for row in found])
    return [Check(target, sentence, failures) for sentence, failures in made.items()]


def _takes_weights(row: Row) -> bool:
    """Return True for a gradient kernel that is given the weights, and scores nothing."""
    return row.kernel == "gradient_kernel" and row.call.endswith("return_weights")


def _absent(target: str, found: list[Row]) -> list[str]:
    modules = [
        import_module(f"{kernels.__name__}.{m.name}") for m in iter_modules(kernels.__path__)
    ]
    names = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    if not aot.by_sines(target):
        names -= {"sine_sweep_kernel"}
    taken = {(row.kernel, row.block, row.warps) for row in found}
    return sorted(names - {row.kernel for row in found}) + [
        f"{name} {tile}"
        for name, tiles in TILED.items()
        for tile in tiles
        if (name, (tile.BI, tile.BJ), tile.warps) not in taken
    ]


def _costs(found: list[Row]) -> dict[str, list[str]]:
    """Return the limits of the inner loops, with the loops that exceed them."""
    exact = [row for row in found if not sass_sines.occur(row.loops)]
    loops = [(row, loop) for row in exact if row.kernel in VARIANTS for loop in row.loops]
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


def table(target: str, found: list[Row]) -> Table:
    """Return a table with one line per kernel, or per inner loop if it has several."""
    lines = (
        (
            (row.kernel, row.tile, row.call, row.warps, row.registers, row.memory),
            row.spills,
            row.loops,
        )
        for row in sorted(found, key=lambda row: row.kernel)
    )
    numbers = ("warps", "registers", "shared")
    return sass_report.table(target, ("kernel", "tile", "call"), numbers, lines)


def _plain(row: Row | sass_native.Row) -> dict[str, Any]:
    """Return the row for JSON, with its tile and its rates."""
    loops = [asdict(loop) | {"elements_a_clock": loop.elements_a_clock} for loop in row.loops]
    tile = {"tile": row.tile} if isinstance(row, Row) else {}
    return asdict(row) | tile | {"loops": loops}


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    tolerate_any_encoding()
    parser = argparse.ArgumentParser(prog="python -m tools.sass")
    parser.add_argument("--kernels", choices=("triton", "native"), help="default: both")
    parser.add_argument("--targets", help="separated by commas; default: all")
    parser.add_argument(
        "--json", type=files.output, help="where to write the contents of the tables"
    )
    options = parser.parse_args(arguments)
    try:
        files.check({"--json": options.json})
    except ValueError as error:
        parser.error(str(error))
    of_triton, of_native = _targets(parser, options)
    toolkit = sass_native.toolkit() if of_native else None
    there = isinstance(toolkit, sass_native.Toolkit)
    builds = sass_native.builds(toolkit, of_native) if there else []
    found, compiled_by_nvcc = compiled(of_triton, builds)
    native = {
        target: [row for row in compiled_by_nvcc if row.target == target]
        for target in dict.fromkeys(build.target for build in builds)
    }
    made = [check for target in of_triton for check in checks(target, found[target])]
    names = sass_native.kernels()
    made += [x for target in native for x in sass_native.checks(target, native[target], names)]

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    for target in of_triton:
        console.print(table(target, found[target]), "")
        for line in sass_sines.lines([(row.kernel, row.sines) for row in found[target]]):
            console.print(line, "")
    for target in native:
        console.print(sass_native.table(target, native[target]), "")
    compilers = {"triton": __version__, "nvcc": sass_native.release(toolkit) if there else None}
    if there:
        console.print(sass_native.ABOUT)
    said = ", ".join(f"{name} {version}" for name, version in compilers.items() if version)
    console.print(f"By {said}. Instructions and MUFU are per element; {ABOUT}")
    if of_native and not there:
        console.print(f"The CUDA kernels were not compiled: {toolkit}.")
    print_checks(console, made)
    if options.json:
        result: dict[str, Any] = {
            **compilers,
            "rows": [_plain(row) for target in of_triton for row in found[target]],
            "native": [_plain(row) for target in native for row in native[target]],
            "checks": [check._asdict() for check in made],
        }
        files.write(options.json, json.dumps(result, indent=1) + "\n")
    return int(any(check.failures for check in made))


def _targets(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> tuple[list[str], list[str]]:
    """Return the targets of Triton and those of CUDA; sm_90 includes sm_90a."""
    of_triton = list(TARGETS) if options.kernels != "native" else []
    of_native = list(sass_native.TARGETS) if options.kernels != "triton" else []
    if not options.targets:
        return of_triton, of_native
    wanted = options.targets.split(",")
    known = dict.fromkeys([*of_triton, *of_native, *(name.rstrip("a") for name in of_native)])
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(known)}")
    return (
        [name for name in of_triton if name in wanted],
        [name for name in of_native if {name, name.rstrip("a")} & {*wanted}],
    )
