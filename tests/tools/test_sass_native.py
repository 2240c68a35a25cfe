"""tools.sass for the kernels of csrc/cuda: hand-written code, hand-written rows, and nvcc."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from build_cuda import Toolkit
from tools.sass import native as sass_native
from tools.sass import native_edges
from tools.sass.cubin import read, readable
from tools.sass.loops import Inner
from tools.sass.native import Build, Row

USED = """
Resource usage:
 Common:
  GLOBAL:0
 Function first:
  REG:48 STACK:8 SHARED:1056 LOCAL:0 CONSTANT[0]:1544 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function second:
  REG:30 STACK:0 SHARED:0 LOCAL:0 CONSTANT[2]:8 CONSTANT[0]:1544 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
LISTING = """
\t.section\t.nv.info.first,"",@"SHT_CUDA_INFO"
\t.sectionflags\t@""
\t//----- nvinfo : EIATTR_EXIT_INSTR_OFFSETS
        /*003c*/ \t.word\t0x0000ec30

\t//----- nvinfo : EIATTR_MAX_THREADS
\t.align\t\t4
.L_23:
        /*0044*/ \t.byte\t0x04, 0x05
        /*0046*/ \t.short\t(.L_25 - .L_24)
.L_24:
        /*0048*/ \t.word\t0x00000080
        /*004c*/ \t.word\t0x00000001
        /*0050*/ \t.word\t0x00000001

\t//----- nvinfo : EIATTR_CRS_STACK_SIZE
        /*0058*/ \t.word\t0x00000000

\t.section\t.nv.info.second,"",@"SHT_CUDA_INFO"
\t//----- nvinfo : EIATTR_CRS_STACK_SIZE
        /*0058*/ \t.word\t0x00000100

//--------------------- .text.first --------------------------
\t.section\t.text.first,"ax",@progbits
.text.first:
        .type           first,@function
first:
        /*0000*/                   STL [R1], R2 ;
.L_x_0:
        /*0010*/                   MUFU.RCP R8, R8 ;
        /*0020*/                   LDL R28, [R1] ;
        /*0030*/               @P0 BRA `(.L_x_0) ;
\t.section\t.text.second,"ax",@progbits
.text.second:
second:
.L_x_1:
        /*0000*/                   BRA `(.L_x_1);
\t.section\t.nv.shared.first,"aw",@nobits
"""


def test_a_cubin_has_several_functions() -> None:
    found = read(USED, LISTING)
    assert list(found) == ["first", "second"]
    first, second = found.values()
    assert (first.registers, first.memory, first.threads) == (48, 1056, 128)
    assert first.spills == {"STACK": 8, "STL": 1, "LDL": 1}
    assert first.code.innermost == [{"MUFU.RCP": 1, "LDL": 1, "BRA": 1}]
    assert (second.registers, second.memory, second.threads) == (30, 0, None)
    assert second.spills == {} and second.code.innermost == [{"BRA": 1}]


SPACE = "_ZN11attnkernels4cuda41_GLOBAL__N__915970be_9_scores_cu_8f80d7a3"


@pytest.mark.parametrize(
    "symbol, name",
    [
        (f"{SPACE}13scores_kernelILb1EEEvNS0_7ProblemEPf", "scores_kernel<true>"),
        (f"{SPACE}13scores_kernelINS0_8LogisticEEEvNS0_7ProblemEPfT_", "scores_kernel<Logistic>"),
        (f"{SPACE}11step_kernelILi4ENS0_9RectifierEEEvNS0_7ProblemE", "step_kernel<4, Rectifier>"),
        (f"{SPACE}12delta_kernelENS0_7ProblemENS0_8BackwardEPf", "delta_kernel"),
        ("_ZN1a6kernelILi64ELb0EEEvPf", "kernel<64, false>"),
        ("_Z6kernelPf", "kernel"),
        ("kernel", "kernel"),
    ],
)
def test_names_are_readable(symbol: str, name: str) -> None:
    assert readable(symbol) == name


def loop(**instructions: int) -> Counter[str]:
    """RCP and EX2 are MUFU, and RED is an addition to memory."""
    full = {"RCP": "MUFU.RCP", "EX2": "MUFU.EX2", "RED": "RED.E.ADD.F32.FTZ.RN.STRONG.GPU"}
    return Counter({full.get(name, name): times for name, times in instructions.items()})


@pytest.mark.parametrize(
    "variant, elements, instructions",
    [
        ("quad", 128, {"FFMA": 256, "FMUL": 96, "RCP": 32}),
        ("bounded quad", 128, {"FFMA": 256, "FMUL": 96, "FMNMX": 128, "RCP": 32}),
        ("direct", 32, {"FFMA": 32, "FADD": 64, "RCP": 32, "EX2": 32}),
        ("direct", 96, {"FFMA": 96, "FADD": 192, "RCP": 96, "EX2": 96}),  # a copy for each dtype
        ("sweep: shared", 32, {"FFMA": 160, "RCP": 24, "RED": 1}),
        ("sweep: shared", 64, {"FFMA": 320, "RCP": 48, "REDG.E.ADD": 2}),
        ("sweep: single", 32, {"FFMA": 160, "RCP": 32, "RED": 1}),
        ("sweep: direct", 32, {"FFMA": 128, "RCP": 32, "EX2": 32, "RED": 1}),
    ],
)
def test_variants(variant: str, elements: int, instructions: dict[str, int]) -> None:
    found = sass_native.classify(loop(**instructions, SHFL=1, BAR=2, NOP=9))
    assert found is not None and found.variant == variant
    assert found.issued == (sum(instructions.values()) + 3) / elements
    assert found.mufu == (instructions["RCP"] + instructions.get("EX2", 0)) / elements
    assert (found.shuffles, found.barriers) == (1, 2)


@pytest.mark.parametrize(
    "instructions",
    [
        {"FFMA": 96, "FMNMX": 32, "RED": 1},  # of a pointwise activation
        {"FFMA": 160, "RCP": 25, "RED": 1},
        {"RCP": 4, "IMAD": 100},  # divisions of integers
        {"FFMA": 64, "REDUX.SUM": 1},
    ],
)
def test_other_loops_are_left_out(instructions: dict[str, int]) -> None:
    assert sass_native.classify(loop(**instructions)) is None


def test_the_loop_over_edges_is_the_one_that_gathers() -> None:
    wide = Counter({"LDG.E.128": 5, "FFMA": 90, "SHFL.IDX": 5})
    (found,) = native_edges.find(
        "edge_forward_kernel<Float32, 2, true, Logistic>", [loop(FFMA=300), wide, loop(RCP=2)]
    )
    assert isinstance(found, native_edges.Loop) and found.variant == "edges"
    assert (found.wide, found.shuffles, found.issued) == (5, 5, 100 / (4 * 8))
    assert found.elements_a_clock == 128 / found.issued
    assert not native_edges.find("edge_sources_kernel<Float16, 1, Logistic>", [loop(FFMA=300)])


@pytest.mark.parametrize(
    ("kernel", "loads"),
    [
        ("edge_forward_kernel<Float32, 1, true, Rectifier>", 4),
        ("edge_targets_kernel<Float32, 2, false, Logistic>", 16),
        ("edge_sources_kernel<Float16, 1, Logistic>", 12),
        ("edge_sources_kernel<Float32, 2, Rectifier>", 8),
    ],
)
def test_loads_of_a_pass(kernel: str, loads: int) -> None:
    """Of four edges: 16 bytes of each row, or 32, and as many channels in float32."""
    assert native_edges.gathers(kernel) == loads


def test_kernels_are_those_of_the_sources() -> None:
    source = """
    __global__ void __launch_bounds__(kThreads, 3)
        first_kernel(const __grid_constant__ Problem p);
    template <bool some> __global__ void second(float* x) { call(x); }
    __device__ void third(float* x) {}
    """
    assert sass_native.defined(source) == ["first_kernel", "second"]
    assert {"forward_kernel", "backward_kernel", "prepare_kernel"} <= sass_native.kernels()


def good() -> list[Row]:
    """Return rows of sm_90a without faults."""
    names = {f"{name}<Logistic>" for name in sass_native.kernels()} & set(sass_native.VARIANTS)
    names |= {*native_edges.GATHERED}
    written = {name.partition("<")[0] for name in names}
    names |= {name for name in sass_native.kernels() if name not in written}

    def row(kernel: str) -> Row:
        variants = sass_native.VARIANTS.get(kernel, ())
        loops = [Inner(variant, 4.0, 0.25, 0, 0) for variant in variants]
        if kernel in native_edges.GATHERED:
            loops = [native_edges.Loop("edges", 20.0, 0.0, 18, 0, native_edges.gathers(kernel))]
        flights = (sass_native.IN_FLIGHT,) * sass_native.FLIGHTS if kernel == "step_kernel" else ()
        return Row("sm_90a", kernel, "a.cu", 128, 128, 1024, {}, loops, flights)

    return [row(name) for name in sorted(names)]


def change(kernel: str, variant: str = "", /, **changes: Any) -> list[Row]:
    """Return good rows with changes in that of a kernel, or in its loop of a variant."""
    rows = good()
    (place,) = [i for i, row in enumerate(rows) if row.kernel == kernel]
    if variant:
        loops = rows[place].loops
        changes = {"loops": [replace(x, **changes) if x.variant == variant else x for x in loops]}
    rows[place] = replace(rows[place], **changes)
    return rows


def without(kernel: str) -> list[Row]:
    return [row for row in good() if row.kernel != kernel]


# The assertion that fails, the rows, and the failure printed below it.
WRONG: dict[str, tuple[Callable[[], list[Row]], str]] = {
    "every CUDA kernel is there": (lambda: without("step_kernel"), "step_kernel"),
    "no spills": (
        lambda: change("prepare_kernel", spills={"STACK": 8, "LDL": 2}),
        "prepare_kernel: STACK 8, LDL 2",
    ),
    "every inner loop": (
        lambda: change("forward_kernel<Logistic>", "direct", variant="quad"),
        "forward_kernel<Logistic>: no loop is direct",
    ),
    "no SHFL and no BAR": (
        lambda: change("backward_kernel<Logistic>", "sweep: single", shuffles=5),
        "backward_kernel<Logistic>, sweep: single: 5 and 0",
    ),
    "at most 5 instructions": (
        lambda: change("scores_kernel<Logistic>", "bounded quad", issued=5.1),
        "scores_kernel<Logistic>, bounded quad: 5.10 and 0.25",
    ),
    "and 0.55 MUFU": (
        lambda: change("forward_kernel<Logistic>", "quad", mufu=0.6),
        "forward_kernel<Logistic>, quad: 4.00 and 0.60",
    ),
    "16 bytes at a time": (
        lambda: change("edge_sources_kernel<Bfloat16, 1, Rectifier>", "edges", wide=7),
        "edge_sources_kernel<Bfloat16, 1, Rectifier>: 7 loads of 16 bytes, not 8 or more",
    ),
    "this many instructions: forward": (
        lambda: change("edge_forward_kernel<Float32, 1, true, Rectifier>", "edges", issued=49.0),
        "edge_forward_kernel<Float32, 1, true, Rectifier>: 49.00",
    ),
    "6 runs of loads of 2048 bytes": (
        lambda: change("step_kernel", flights=(512, 4096, 2048, 1024)),
        "step_kernel: [4096, 2048, 1024, 512]",
    ),
    "at most 12 instructions": (
        lambda: change("backward_kernel<Logistic>", "sweep: shared", issued=8.1),
        "12.10",
    ),
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return the command for sm_90a, with rows in place of compiled kernels."""
    pytest.importorskip("triton", reason="the package triton is not installed")
    sass = import_module("tools.sass.run")
    toolkit = Toolkit(["nvcc"], {90}, [], [])
    monkeypatch.setattr(sass_native, "toolkit", lambda: toolkit)
    monkeypatch.setattr(sass_native, "builds", lambda *_: [Build("sm_90a", "a.cu", [])])
    monkeypatch.setattr(sass_native, "release", lambda toolkit: "13.0")

    def run(rows: list[Row], *arguments: str) -> int:
        monkeypatch.setattr(sass, "compiled", lambda *_: ({}, rows))
        return sass.main(["--kernels", "native", "--targets", "sm_90", *arguments])

    return run


def test_nothing_wrong(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(good(), "--json", str(tmp_path / "sass.json")) == 0
    said = capsys.readouterr().out
    assert "FAILED" not in said and "nvcc 13.0" in said
    result = json.loads((tmp_path / "sass.json").read_text())
    assert result["nvcc"] == "13.0" and result["rows"] == []
    assert {row["kernel"].partition("<")[0] for row in result["native"]} == sass_native.kernels()
    assert len(result["checks"]) == 9


@pytest.mark.parametrize("sentence", WRONG)
def test_a_failing_assertion_is_the_exit_status(
    sentence: str, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    rows, failure = WRONG[sentence]
    assert run(rows()) == 1
    lines = capsys.readouterr().out.splitlines()
    (failed,) = [place for place, line in enumerate(lines) if line.startswith("FAILED")]
    assert sentence in lines[failed]
    assert lines[failed + 1].strip() == failure


def test_a_kernel_that_no_source_has_any_more_is_missed_in_its_loops() -> None:
    checks = sass_native.checks("sm_80", without("scores_kernel<Logistic>"), set())
    (failed,) = [check for check in checks if check.failures]
    assert failed.failures == [
        f"scores_kernel<Logistic>: no loop is {x}" for x in sass_native.SCORES
    ]


def test_without_nvcc_a_sentence_says_so(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sass_native, "toolkit", lambda: "there is no nvcc")
    assert run([]) == 0
    said = capsys.readouterr().out
    assert "The CUDA kernels were not compiled: there is no nvcc." in said and "ok" not in said


@pytest.fixture(scope="module")
def toolkit() -> Toolkit:
    found = sass_native.toolkit()
    if isinstance(found, str):
        pytest.skip(found)
    return found


def test_commands_are_those_of_the_library_for_one_architecture(
    toolkit: Toolkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)  # may list what `known` lacks
    builds = sass_native.builds(toolkit._replace(known={80, 90}), list(sass_native.TARGETS))
    assert {build.target for build in builds} == {"sm_80", "sm_90a"}
    sources = {path.name for path in sass_native.SOURCES.glob("*.cu")}
    assert {build.source for build in builds} == sources and len(builds) == 2 * len(sources)
    for build in builds:
        name = build.target.removeprefix("sm_")
        chosen = ["-cubin", "-gencode", f"arch=compute_{name},code=sm_{name}"]
        assert build.command[-3:] == chosen and build.command.count("-gencode") == 1
        assert {"-O3", "-std=c++20"} <= set(build.command)
        assert not {"-c", "-o", "-MD", "-MF"} & set(build.command)


def test_a_source_that_nvcc_compiles(toolkit: Toolkit) -> None:
    pytest.importorskip("triton", reason="the tools that read cubins come with triton")
    builds = sass_native.builds(toolkit, ["sm_90a"])
    (build,) = [build for build in builds if build.source == "scores.cu"]
    rows = {row.kernel: row for row in sass_native.rows(build)}
    assert {"scores_kernel<Logistic>", "scores_kernel<Rectifier>"} <= set(rows)
    assert {row.threads for row in rows.values()} == {128}
    assert all(16 < row.registers <= 128 and not row.spills for row in rows.values())
    assert {loop.variant for loop in rows["scores_kernel<Logistic>"].loops} == {*sass_native.SCORES}
    assert not rows["scores_kernel<Rectifier>"].loops


def test_what_nvcc_says_is_the_error(toolkit: Toolkit, tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text("#error no such kernel\n")
    with pytest.raises(RuntimeError, match="no such kernel"):
        sass_native.rows(Build("sm_80", source.name, [*toolkit.command, "-cubin", str(source)]))
