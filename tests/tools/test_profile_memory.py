"""The memory that the profile estimates, and the memory that it may use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.profile import MIB, refusal, run

from attnkernels.measure import device, machine, memory
from attnkernels.profile import command as profile
from attnkernels.profile import sweep


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "REPEAT_SECONDS", 0.0)


def test_the_fused_operator_is_not_run_where_it_does_not_fit(
    fused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "free_memory", lambda: MIB // 64)
    _, result = run(tmp_path, "--lengths", "16,1024", "--backend", fused)
    small, large = (row for row in result["rows"] if row["method"] == "fused")
    assert small["skipped"] is None
    assert large["ms"] is None and large["does_not_fit"]
    assert large["skipped"] == "needs 0.04 MiB, does not fit"


@pytest.mark.parametrize("flag", [[], ["--device", "cpu"]])
def test_refuses_a_text_whose_encoding_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flag: list[str]
) -> None:
    monkeypatch.setattr(profile, "free_memory", lambda: 30 * MIB)
    monkeypatch.setattr(profile, "_run", None)
    said = refusal(capsys, "--lengths", "64,16384", *flag).splitlines()[-1]
    assert "encoding 16,384 characters at width 256 needs about" in said
    assert "and 30 MiB are free" in said
    assert "TiB" in refusal(capsys, "--lengths", "64", "--dim", str(2**62))


def in_a_new_process(ratio: str) -> float:
    """Evaluate `ratio` where no earlier call has left pages that a measurement would reuse.

    Nor has one left a hole in the heap that takes a tensor, and is not given back with it.
    """
    if not memory._can_reset():
        pytest.skip("this system does not reset the high water mark of memory")
    code = f"""
import torch
from attnkernels.measure import memory
from attnkernels.profile import naive, sweep, text

characters = text.read_text().characters[:16000]

def encoder(dim):
    text.encode(characters, dim, 0)
    peak = memory.measure(lambda: text.encode(characters, dim, 0)).peak_bytes
    return text.encoder_bytes(len(characters), dim) / peak

def formula(backward):
    given = text.Attended(*(torch.randn(1, 384, 64) for _ in range(3)), torch.randn(64))
    call = sweep.call_of(naive.naive_attention, given, backward)
    call()
    return naive.naive_bytes(384 * 384, 64, 4, backward) / memory.measure(call).peak_bytes

def fused(name, backward):
    given = text.Attended(*(torch.randn(1, 4000, 64) for _ in range(3)), torch.randn(64))
    methods = sweep.methods(64, backward, False, "native", 1, 1, window=256)
    (method,) = (m for m in methods if m.name == name)
    call = sweep.call_of(method.attention, given, backward)
    call()
    return method.needed_bytes(4000) / memory.measure(call).peak_bytes

print({ratio})
"""
    return float(subprocess.check_output([sys.executable, "-c", code], text=True))


@pytest.mark.parametrize("dim", [8, 64, 256])
def test_the_encoder_needs_what_is_estimated(dim: int) -> None:
    assert 0.7 < in_a_new_process(f"encoder({dim})") < 1.5


@pytest.mark.parametrize("backward", [False, True])
def test_the_naive_formula_needs_what_is_estimated(backward: bool) -> None:
    """36 MiB per tensor, which glibc maps separately."""
    assert 1 / in_a_new_process(f"formula({backward})") == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("name", ["fused", "window"])
@pytest.mark.parametrize("backward", [False, True])
def test_the_fused_operator_needs_what_is_estimated(fused: str, backward: bool, name: str) -> None:
    if fused != "native":
        pytest.skip("the estimate is of the native backend, by its pages")
    assert 0.7 < in_a_new_process(f"fused({name!r}, {backward})") < 1.5


@pytest.mark.parametrize(
    "line, folder, names",
    [
        ("0::/", "", ("memory.max", "memory.current", "inactive_file")),
        ("0::/a/b", "a/b", ("memory.max", "memory.current", "inactive_file")),
        ("0::/a/b", "a", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:cpu,memory:/a/b",
            "memory/a/b",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_free_memory_heeds_every_group_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, folder: str, names: tuple[str, ...]
) -> None:
    limit, used, cache = names
    group = tmp_path / "cgroup" / folder
    group.mkdir(parents=True)
    (group / limit).write_text(f"{9 * MIB}\n")
    (group / used).write_text(f"{8 * MIB}\n")
    (tmp_path / "self").write_text(f"7:pids:/x\n{line}\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "self")
    assert machine.free_memory() == MIB
    (group / "memory.stat").write_text(f"anon 1\n{cache} {3 * MIB}\n")  # pages it can drop
    assert machine.free_memory() == 4 * MIB


def test_free_memory_heeds_a_limit_of_the_address_space() -> None:
    program = (
        "import resource; from attnkernels.measure import machine;"
        "size = machine.address_space();"
        f"resource.setrlimit(resource.RLIMIT_AS, (size + {64 * MIB}, resource.RLIM_INFINITY));"
        "print(machine.free_memory())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert 32 * MIB < int(done.stdout) <= 64 * MIB
