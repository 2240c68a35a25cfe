"""The benchmark of decoders in miniature: its results, its JSON and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.suite import decoders


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("BATCH", 2), ("KEYS", 9), ("FEATURES", 8)):
        monkeypatch.setattr(decoders, name, size)


@pytest.mark.parametrize("name", decoders.ATTENTIONS)
def test_both_backends_compute_the_same(name: str) -> None:
    plain, fused = (decoders.training(name, x, 3)() for x in decoders.BACKENDS.values())
    for x, y in zip(plain, fused, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "decoders.json"
    threads = torch.get_num_threads()
    options = ["--attention", "location", "--steps", "2", "--seconds", "0.01", "--threads", "1"]
    assert decoders.main([*options, "--json", str(out)]) == 0
    torch.set_num_threads(threads)
    assert "location" in capsys.readouterr().out
    (row,) = json.loads(out.read_text())["rows"]
    for backend in decoders.BACKENDS:
        assert row[backend].keys() == {"median_ms", "min_ms", "processor_ms", "peak_mib"}


def test_refuses_an_unknown_attention(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        decoders.main(["--attention", "location,looking"])
    assert "no attention looking" in capsys.readouterr().err
