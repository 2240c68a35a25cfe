"""tools.sass on hand-written code: loops, their work, and limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tools.sass import edges, sines
from tools.sass.loops import Inner, classify, count, parse

NESTED = """
.text.forward_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
.L_x_1:
        /*0020*/                   LDG.E.64 R4, desc[UR4][R6.64] ;
        /*0030*/              @!P1 MUFU.RCP R8, R8 ;
        /*0040*/               @P0 BRA `(.L_x_1) ;
        /*0050*/                   BRA `(.L_x_3) ;
        /*0060*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
.L_x_2:
        /*0070*/                   MUFU.EX2 R8, R8 ;
        /*0080*/                   BRA.U UP0, `(.L_x_2) ;
        /*0090*/             @!UP1 BRA `(.L_x_0) ;
.L_x_3:
        /*00a0*/                   EXIT ;
.L_x_4:
        /*00b0*/                   BRA `(.L_x_4);
        /*00c0*/                   NOP;
"""


def code(**instructions: int) -> str:
    """Return a loop of these instructions; RCP and EX2 are MUFU."""
    lines = [".L_x_0:"]
    for name, times in instructions.items():
        full = f"MUFU.{name}" if name in ("RCP", "EX2") else name
        lines += [f"        /*{16 * i:04x}*/  {full} R0, R1 ;" for i in range(times)]
    return "\n".join([*lines, "        /*1000*/  @P0 BRA `(.L_x_0) ;"])


def inner(kernel: str, pairs: int, **instructions: int) -> Inner | None:
    (loop,) = parse(code(**instructions)).innermost
    return classify(kernel, pairs, loop)


def test_loops_are_those_without_a_loop_inside() -> None:
    parsed = parse(NESTED)
    assert [dict(loop) for loop in parsed.innermost] == [
        {"LDG.E.64": 1, "MUFU.RCP": 1, "BRA": 1},
        {"MUFU.EX2": 1, "BRA.U": 1},
        {"BRA": 1},
    ]
    assert len(parsed.loops) == 4
    assert len(parsed.names) == 13 and count(parsed.all, "MUFU", "BAR") == 3


def test_loads_that_are_under_way_together() -> None:
    """Loads end a run where one of their registers is used, as an address too."""
    lines = [
        "LDG.E.64 R4, [R2.64]",
        "LDG.E.128.CONSTANT R8, [R2.64+0x10]",
        "FADD R0, R0, R1",
        "FADD R0, R0, R5",
        "LDG.E.U16 R6, [R2.64]",
        "LDG.E R3, [R6.64]",
        "FADD R0, R0, R3",
    ]
    sass = "\n".join(f"        /*{16 * i:04x}*/  {line} ;" for i, line in enumerate(lines))
    assert parse(sass).flights == (32 * 24, 32 * 2, 32 * 4)


@pytest.mark.parametrize(
    "variant, kernel, pairs, elements, instructions",
    [
        ("quad", "forward_kernel", 8, 32, {"FFMA": 64, "FMUL": 48, "RCP": 8}),
        ("quad", "forward_kernel", 8, 64, {"FFMA2": 64, "FMUL2": 48, "RCP": 16}),  # unrolled
        ("bounded quad", "gradient_kernel", 8, 32, {"FFMA": 64, "FMNMX.NAN": 32, "RCP": 8}),
        ("direct", "scores_kernel", 8, 8, {"FADD": 16, "EX2": 8, "RCP": 8}),
        ("tangents", "jvp_kernel", 16, 32, {"FFMA": 160, "RCP": 32}),
        ("direct", "step_kernel", 16, 16, {"FFMA": 32, "EX2": 16, "RCP": 16}),
        ("shared", "sweep_kernel", 32, 32, {"FFMA": 163, "EX2": 1, "RCP": 24}),
        ("single", "sweep_kernel", 32, 32, {"FFMA": 163, "EX2": 1, "RCP": 32}),
        ("single", "sweep_kernel", 32, 64, {"FFMA": 326, "EX2": 2, "RCP": 64}),
        ("direct", "sweep_kernel", 32, 32, {"FFMA": 127, "EX2": 32, "RCP": 32}),
    ],
)
def test_variants(
    variant: str, kernel: str, pairs: int, elements: int, instructions: dict[str, int]
) -> None:
    found = inner(kernel, pairs, **instructions, NOP=3, SHFL=2, **{"BAR.SYNC": 1})
    assert found is not None and found.variant == variant
    assert found.issued == (sum(instructions.values()) + 4) / elements
    assert found.mufu == (instructions.get("RCP", 0) + instructions.get("EX2", 0)) / elements
    assert (found.shuffles, found.barriers) == (2, 1)


@pytest.mark.parametrize(
    "kernel, instructions",
    [
        ("forward_kernel", {"FFMA": 64}),
        ("forward_kernel", {"FMUL": 40, "FSETP": 8, "RCP": 8}),  # divisions
        ("forward_kernel", {"FFMA": 64, "RCP": 6}),  # no whole iteration of 8 pairs per thread
        ("forward_kernel", {"FADD": 8, "EX2": 3, "RCP": 8}),
        ("sweep_kernel", {"FFMA": 163, "EX2": 1, "RCP": 25}),
    ],
)
def test_other_loops_are_left_out(kernel: str, instructions: dict[str, int]) -> None:
    assert inner(kernel, 8, **instructions) is None


@pytest.mark.parametrize(
    ("instructions", "variant", "issued"),
    [
        ({"LDG.E.64": 1, "LDG.E.128": 2, "FFMA": 20, "EX2": 4}, "edges", 112.0),
        ({"LDG.E.64": 1, "LDG.E": 8, "FFMA": 20, "EX2": 4}, "edges, narrow loads", 136.0),
        ({"LDG.E.64": 1, "IADD3": 20}, None, None),  # the search for a program's share
    ],
)
def test_loops_over_edges(
    instructions: dict[str, int], variant: str | None, issued: float | None
) -> None:
    """A thread has a quarter of an edge and head."""
    (loop,) = parse(code(**instructions)).innermost
    found = edges.classify({"BH": 8, "BE": 1}, 32, loop)
    assert (found and found.variant, found and found.issued) == (variant, issued)


def test_what_holds_a_loop_up() -> None:
    assert Inner("quad", 4.0, 0.25, 0, 0).elements_a_clock == 32
    assert Inner("direct", 4.0, 2.0, 0, 0).elements_a_clock == 8
    assert Inner("edges", 512.0, 0.0, 0, 0).elements_a_clock == 0.25


def test_the_loops_over_sines() -> None:
    """The loop over two values of p, and the share of the loop over hidden units around it."""

    def lines(**instructions: int) -> list[str]:
        return [name for name, times in instructions.items() for _ in range(times)]

    begin, again = lines(FMUL=30, MUFU_SIN=6), lines(FFMA=64, F2FP=32, HGMMA=4, BAR=2)
    names = [".L_x_0:", *begin, ".L_x_1:", *again, "BRA `(.L_x_1)", "BRA `(.L_x_0)"]
    text = "\n".join(
        name
        if name.startswith(".")
        else f"        /*0000*/  {name.replace('_', '.', 1)} ;"
        if not name.startswith("BRA")
        else f"        /*0000*/  {name} ;"
        for name in names
    )
    parsed = parse(text)
    meta = {"SHAPE": (4, 8, 16, 16)}  # 64 x 128 pairs by 256 threads: 512 elements each
    two, around = sines.inner_loops("forward_kernel", meta, 256, parsed)
    assert (two.variant, two.issued, two.barriers) == ("two sines", 103 / 512, 2)
    assert (around.issued, around.mufu) == (37 / 512, 6 / 512)
    assert sines.occur([two]) and not sines.occur([Inner("quad", 4.0, 0.25, 0, 0)])
    # the same rows in a sweep, whose tile is square
    (four, _) = sines.inner_loops("sine_sweep_kernel", {"OWN": 128, "OTHER": 128}, 256, parsed)
    assert (four.variant, four.issued) == ("four sines", 103 / 1024)


@pytest.fixture
def sass() -> Any:
    """Return the module, which imports triton."""
    pytest.importorskip("triton", reason="the package triton is not installed")
    return import_module("tools.sass.run")


# Kernels that score by sines, or go with them, and their instructions per element.
BY_SINES = (
    ("forward_kernel", 1.5),
    ("gradient_kernel", 2.3),
    ("sine_sweep_kernel", 1.4),
    ("sine_sweep_kernel", 1.0),
    ("value_kernel", 0.1),
)


def good(sass: Any) -> list[Any]:
    """Return rows of sm_90 without faults."""

    def row(kernel: str, meta: dict[str, Any], warps: int = 4) -> Any:
        loops = [Inner(each, 4.0, 0.25, 0, 0) for each in sass.VARIANTS.get(kernel, ())]
        return sass.Row("sm_90", kernel, "a call", warps, meta, 255, 0, {}, loops)

    tiled = [
        row(kernel, {"SHAPE": tile.shape(32)}, tile.warps)
        for kernel, tiles in sass.TILED.items()
        for tile in tiles
    ]
    rows, columns = sass.LARGEST
    others = ("prepare", "combine", "weights", "value", "step", "step_gradient", "step_sweep")
    others += ("combine_jvp", "weights_jvp")
    others += tuple(f"edge_{name}" for name in ("dropout", "merge", "weights", "delta", "sum"))
    plain, tile = sass.aot.EDGES, {"BH": 8, "BE": 1, "WHOLE": True}
    loop = Inner("edges", 480.0, 16.0, 6, 0)
    edges = [
        sass.Row("sm_90", kernel, plain, 1, tile, 128, 0, {}, [loop])
        for kernel in sass.sass_edges.ISSUED
    ]
    sweep = row("sweep_kernel", {"BI": rows, "BJ": columns, "RI": 8, "LANES": 32}, 1)
    two = [Inner("two sines", 0.2, 0.0, 0, 2)]
    by_sines = [
        sass.Row("sm_90", kernel, sass.aot.FAST, 8, {}, 255, 0, {}, two, sines.Cost(each, 0.5, 2.0))
        for kernel, each in BY_SINES
    ]
    rest = [row(f"{name}_kernel", {"BJ": 32}) for name in others]
    return [*tiled, sweep, *edges, *by_sines, *rest]


def change(
    rows: list[Any], kernel: str, variant: str = "", by_sines: bool = False, **changes: Any
) -> list[Any]:
    """Return the rows with changes in the first of a kernel, or in its loop of a variant."""
    (place, old), *_ = [
        each
        for each in enumerate(rows)
        if each[1].kernel == kernel and (each[1].sines is not None) == by_sines
    ]
    if variant:
        loops = [replace(x, **changes) if x.variant == variant else x for x in old.loops]
        changes = {"loops": loops}
    return [*rows[:place], replace(old, **changes), *rows[place + 1 :]]


WRONG: dict[str, Callable[[list[Any]], list[Any]]] = {
    "no spills": lambda rows: change(rows, "step_kernel", spills={"STACK": 8}),
    "every kernel and every tile is there": lambda rows: rows[1:],
    "every inner loop is there": lambda rows: change(rows, "scores_kernel", loops=[]),
    "at most 5 instructions": lambda rows: change(rows, "forward_kernel", "quad", issued=5.1),
    "and 0.55 MUFU": lambda rows: change(rows, "forward_kernel", "quad", mufu=0.6),
    "no SHFL and no BAR": lambda rows: change(rows, "sweep_kernel", "shared", barriers=1),
    "with loads of 16 bytes": lambda rows: change(
        rows, "edge_source_kernel", loops=[Inner("edges, narrow loads", 480.0, 16.0, 6, 0)]
    ),
    "at most 600, 910, 600 instructions": lambda rows: change(
        rows, "edge_forward_kernel", "edges", issued=601.0
    ),
    "forward: at least 60": lambda rows: change(
        rows, "forward_kernel", by_sines=True, sines=sines.Cost(1.7, 0.5, 2.0)
    ),
    "backward: at least 20": lambda rows: change(
        rows, "sine_sweep_kernel", by_sines=True, sines=sines.Cost(1.6, 0.5, 2.0)
    ),
    "at most 12 instructions": lambda rows: change(rows, "sweep_kernel", "shared", issued=9.1),
}


def test_nothing_wrong(
    sass: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = good(sass)
    monkeypatch.setattr(sass, "compiled", lambda targets, builds: ({"sm_90": rows}, []))
    wanted = ["--kernels", "triton", "--targets", "sm_90"]
    assert sass.main([*wanted, "--json", str(tmp_path / "sass.json")]) == 0
    assert "FAILED" not in capsys.readouterr().out
    result = json.loads((tmp_path / "sass.json").read_text())
    assert [each["kernel"] for each in result["rows"]] == [row.kernel for row in rows]
    assert result["rows"][0]["tile"].startswith("x".join(map(str, sass.LARGEST)))
    assert result["rows"][0]["loops"][0]["elements_a_clock"] == 32
    assert not any(check["failures"] for check in result["checks"])


@pytest.mark.parametrize("sentence", WRONG)
def test_a_failing_assertion_is_the_exit_status(
    sentence: str, sass: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = WRONG[sentence](good(sass))
    monkeypatch.setattr(sass, "compiled", lambda targets, builds: ({"sm_90": rows}, []))
    assert sass.main(["--kernels", "triton", "--targets", "sm_90"]) == 1
    (failed,) = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    assert sentence in failed


def test_targets_are_by_name(sass: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        sass.main(["--targets", "sm_90,sm_1"])
    assert exit.value.code == 2 and "no target sm_1; there are sm_80" in capsys.readouterr().err
