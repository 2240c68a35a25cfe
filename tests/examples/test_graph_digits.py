"""The example of digits on a graph: its graph, its labels, and a tiny run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

from examples import graph_digits as example


def test_the_graph_joins_neighbours_both_ways() -> None:
    data = example.load(5, "cpu")
    source, target = data.edges.edge_index()
    assert (source != target).all()
    joined = set(zip(source.tolist(), target.tolist(), strict=True))
    assert {(j, i) for i, j in joined} == joined
    distances = torch.cdist(data.pixels, data.pixels).fill_diagonal_(float("inf"))
    nearest = distances.argmin(1).tolist()
    assert all((j, i) in joined for i, j in enumerate(nearest))
    assert example.same_class(data).double().mean() > 0.9


def test_ten_labels_per_class() -> None:
    labels = example.load(5, "cpu").labels
    drawn = example.draw_labels(labels, 3)
    assert labels[drawn].bincount().tolist() == [10] * 10 and len(drawn.unique()) == 100
    assert torch.equal(drawn, example.draw_labels(labels, 3))
    assert not torch.equal(drawn, example.draw_labels(labels, 4))


def test_labelled_digits_do_not_count_as_read() -> None:
    data = example.load(5, "cpu")
    labelled = example.draw_labels(data.labels, 0)
    said = data.labels.clone()
    said[labelled] = -1
    assert example.error(said, data, labelled) == 0
    assert example.error(example.nearest(data, labelled), data, labelled) < 0.2


def test_a_tiny_run(tmp_path: Path) -> None:
    assert example.main(["--tiny", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(found["errors"]) == {*example.NETS, "nearest labelled digit"}
    assert 0.9 < found["within_a_class"]["edges"] < 1
    assert (tmp_path / "graph.png").stat().st_size > 10_000
