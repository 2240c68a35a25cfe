"""DTensors: each rank computes its shard, and wrong placements are named."""

from __future__ import annotations

import re
from typing import Any

import pytest
from helpers import ranks
from helpers.dtensors import CASES, WRONG, worker


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each process found, started once for all cases."""
    return ranks.spawned(worker, tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_shards_are_those_of_one_process(name: str, results: list[dict[str, Any]]) -> None:
    for found in results:
        assert found[name] is None, found[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_the_placement_that_is_wanted(name: str, results: list[dict[str, Any]]) -> None:
    for found in results:
        assert re.search(WRONG[name][1], found[name]), found[name]
