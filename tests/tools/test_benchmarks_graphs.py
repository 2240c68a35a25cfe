"""The benchmark of graphs keeps what it has measured when it is interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suite import graphs


def test_every_graph_is_saved_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(case: graphs.Case, what: str, duration: float) -> list[dict[str, Any]]:
        if what == "layer":
            raise KeyboardInterrupt
        timing = {"ms": duration, "peak_mib": 1.0}
        providers = dict.fromkeys(("PyG", "PyG, compiled", "attnkernels"), timing)
        return [{"case": case.name, "what": what, "direction": "forward", **providers}]

    monkeypatch.setattr(graphs, "measure", measure)
    monkeypatch.setattr(graphs, "version", lambda name: "2.8")
    monkeypatch.setattr(graphs.torch, "set_num_threads", lambda threads: None)
    file = tmp_path / "graphs.json"
    with pytest.raises(KeyboardInterrupt):
        graphs.main(["--cases", "cora-like", "--seconds", "3", "--json", str(file)])
    saved = json.loads(file.read_text())
    assert saved["torch_geometric"] == "2.8"
    assert [(row["case"], row["attnkernels"]["ms"]) for row in saved["rows"]] == [("cora-like", 3)]
