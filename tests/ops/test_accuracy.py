"""Results are as accurate as those of the plain formula in float32, as a norm over many entries.

The budget bounds the largest error that any input may have; this is the usual one.
"""

from __future__ import annotations

import pytest
from conftest import EMULATED, INTERPRETED
from helpers.inputs import normal

from attnkernels.testing import check_scores
from benchmarks.accuracy import NAMES, SHAPES, error_ratios

pytestmark = pytest.mark.skipif(EMULATED or INTERPRETED, reason="of the CPU kernels")

# as the budget says: at most twice as inaccurate as the plain formula
LIMIT = 2
USUAL = 1.4  # for a single query, whose D_i has to be as accurate as the sum of a da


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0, 10.0, 1e4])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_the_usual_error(shape: tuple[int, int, int, int], scale: float) -> None:
    ratios = error_ratios(shape, scale, backend="native")
    assert all(ratios[name] <= LIMIT for name in NAMES), ratios


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(3, 1, 129, 31), (3, 2, 300, 31), (6, 1, 129, 300)], ids=str)
def test_the_mean_error_of_few_queries(shape: tuple[int, int, int, int], scale: float) -> None:
    ratios = error_ratios(shape, scale, backend="native", seeds=range(40))
    assert all(ratios[name] <= USUAL for name in NAMES), ratios


@pytest.mark.parametrize("n, m, d", [(5, 65, 512), (5, 65, 2048), (13, 36, 1024)])
def test_scores_of_small_inputs(n: int, m: int, d: int) -> None:
    """Sums of w / (1 + exp(y)) would have errors as large as w, whatever the size of the scores."""
    for _ in range(20):
        query, key = (normal(1, rows, d, size=1e-3, grad=False) for rows in (n, m))
        check_scores(query, key, normal(d, size=d**-0.5, grad=False), backend="native")
