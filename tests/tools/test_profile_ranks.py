"""The profile over many ranks: one table, and refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.profile import refusal


@pytest.mark.slow
def test_two_ranks_print_one_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "attnkernels.profile", "--distributed", "--lengths", "16,33", "--dim", "8"]
    command += ["--backend", "reference", "--backward", "--json", str(tmp_path / "p.json")]
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "120"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("memory per rank") == 1 and "2 ranks" in done.stdout
    result = json.loads((tmp_path / "p.json").read_text())
    assert result["ranks"] == 2
    assert [row["length"] for row in result["rows"]] == [16, 33]
    for row in result["rows"]:
        assert row["ms"] > 0 and row["peak_mib"] >= 0 and 0 <= row["waiting"] <= 1


def test_ranks_need_torchrun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert "--distributed: start the ranks with torchrun" in refusal(capsys, "--distributed")
    monkeypatch.setenv("RANK", "0")
    said = refusal(capsys, "--distributed", "--compile")
    assert "--compile cannot be used with --distributed" in said
