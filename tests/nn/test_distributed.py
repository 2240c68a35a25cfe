"""Two processes train every module as one does: DDP, FSDP2 and distributed checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import ranks
from helpers.distributed import CASES, RATE, given, made, searched, train, whole, worker

from attnkernels.testing import assert_within_budget


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the results of each process, started once for all modules."""
    return ranks.spawned(worker, tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name: str, results: list[dict[str, Any]]) -> None:
    one, exact = made(name), made(name).double()
    train(one, given(name))
    sizes = train(exact, given(name, torch.float64))
    wanted, exactly = whole(one), whole(exact)
    # gradients of scores are differences (E4) of terms as large as those of other parameters
    step = RATE * max(sizes.values())
    for rank in range(ranks.RANKS):
        found = results[rank][name]
        assert not isinstance(found, str), found
        assert found.pop("checkpoint")
        for way, parameters in found.items():
            if way.startswith("search"):
                assert torch.equal(parameters, searched(name, made(name))), way
                continue
            assert parameters.keys() == wanted.keys()
            for each, x in parameters.items():
                terms = exactly[each].abs().max().item() + step
                assert_within_budget(
                    x, wanted[each], exactly[each], magnitude=terms, name=f"{way}, {each}"
                )
