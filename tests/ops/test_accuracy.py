"""Results are as accurate as those of the plain formula in float32, as a norm over many entries.

The budget bounds the largest error that any input may have; this is the usual one.
"""

from __future__ import annotations

import pytest
from conftest import EMULATED, INTERPRETED

from benchmarks.accuracy import NAMES, SHAPES, error_ratios

pytestmark = pytest.mark.skipif(EMULATED or INTERPRETED, reason="of the CPU kernels")

# as the budget says: at most twice as inaccurate as the plain formula
LIMIT = 2


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0, 10.0, 1e4])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_the_usual_error(shape: tuple[int, int, int, int], scale: float) -> None:
    ratios = error_ratios(shape, scale, backend="native")
    assert all(ratios[name] <= LIMIT for name in NAMES), ratios
