"""Ranks that disagree say so on every rank, and a rank that fails does not leave others waiting."""

from __future__ import annotations

import re
from typing import Any

import pytest
from helpers import ranks
from helpers.rank_faults import DIFFERENT, LAST, worker

WANTED = {
    "another d": r"query must be the same on all ranks, got \(1, rows, 4\), .* 0; .*5.* rank 1",
    "another dv": r"value must be the same on all ranks",
    "another dtype": r"query must be the same on all ranks, got .*float32.* rank 0; .*float64",
    "another batch": r"query must be the same on all ranks",
    "another activation": r"activation must be the same on all ranks, got 'tanh' on rank 0; 'relu'",
    "another scale": r"scale must be the same on all ranks, got 1.0 on rank 0; 2.0 on rank 1",
    "causal": r"window_right must be the same on all ranks, got None on rank 0; 0 on rank 1",
    "dropout": r"dropout_p must be the same",
    "balanced": r"balanced must be the same on all ranks, got False on rank 0; True on rank 1",
    "other lengths": r"key_lengths must be the same",
    "a wrong mask": r"attn_mask must broadcast to \(..., n, m\) = \(..., 4, 12\), got \(4, 5\)",
    "a wrong option": r"dropout_p must lie in \[0, 1\], got 2",
    "no gradient": r"must require a gradient on all ranks .* rank 0: key, value; rank 1: none",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each process found, started once for all cases."""
    return ranks.spawned(worker, tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENT)
def test_both_ranks_raise(name: str, results: list[dict[str, Any]]) -> None:
    for found in results:
        assert re.match(r"(Type|Value)Error: .*" + WANTED[name], found[name]), found[name]
    if name.startswith("a wrong"):
        assert results[0][name].startswith("ValueError: the arguments of rank 1 are wrong: ")


@pytest.mark.slow
def test_a_rank_that_raises_leaves_no_other_waiting(results: list[dict[str, Any]]) -> None:
    assert results[0][LAST].startswith("RuntimeError"), results[0][LAST]
    assert "on its own" in results[1][LAST]


@pytest.mark.slow
def test_no_other_derivatives(results: list[dict[str, Any]]) -> None:
    for found in results:
        assert found["second derivatives"].startswith("create_graph must be False for context_par")
        assert "has no forward-mode derivatives" in found["forward mode"]


@pytest.mark.slow
def test_groups(results: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(results):
        whole, name, absent = found["groups"]
        assert "mesh_or_group must have one dimension, such as mesh['cp'], got a mesh of 2" in whole
        assert "mesh_or_group must be a DeviceMesh or a ProcessGroup, got str" in name
        assert rank == 0 or "mesh_or_group must have this process among its ranks" in absent


@pytest.mark.slow
def test_sequences_are_cut_and_put_together(results: list[dict[str, Any]]) -> None:
    for found in results:
        assert found["sequences"] is True, found["sequences"]
