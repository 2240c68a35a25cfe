"""Heads on two ranks: results and gradients of the whole module."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import ranks
from helpers.head_ranks import CASES, worker

WRONG = {
    "heads": "the mesh must have one dimension whose size divides num_heads, 3, got (2,)",
    "dropout": "dropout must be 0 with heads on several ranks, got 0.1",
    "class": "module must be an AdditiveAttention, got HardAttention",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each process found, started once for all cases."""
    return ranks.spawned(worker, tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_heads_of_all_ranks_are_those_of_one(name: str, results: list[dict[str, Any]]) -> None:
    for found in results:
        assert found[name] is None, found[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str, results: list[dict[str, Any]]) -> None:
    for found in results:
        assert found[name] == WRONG[name]
