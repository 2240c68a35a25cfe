"""Fixtures of the tests of the CUDA kernels' inner functions."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="session")
def maths() -> ModuleType:
    """Return tests/emulator/maths.cpp, compiled."""
    from emulator import build  # here: it wants packages that the tests of `make arm` do without

    return build.load("-O1", name="cuda_maths")


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)
