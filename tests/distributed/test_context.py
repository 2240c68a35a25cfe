"""Two and four processes attend as one does: every option, outputs and gradients.

ATTNKERNELS_EXAMPLES=200 tries as many random cases, instead of a few.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from helpers import ranks
from helpers.context_parallel import CASES
from helpers.random_ranks import RANDOM, worker


@pytest.fixture(scope="module", params=[2, 4])
def results(request: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each process found, started once for all cases."""
    count: int = request.param
    folder = tmp_path_factory.mktemp("ranks")
    return ranks.spawned(partial(worker, count=count), folder, count)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, RANDOM])
def test_ranks_attend_as_one(name: str, results: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(results):
        assert found[name] is None, f"rank {rank}: {found[name]}"
