"""What every test runs under: one seed, NaN-filled empties, and a `backend` parameter a backend."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# A thread that waits for its neighbour would otherwise spin, which costs a machine that does
# something else besides ten times the suite's time. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from attnkernels.backends import BACKENDS
from attnkernels.backends.base import Problem

NAMES = [backend.NAME for backend in BACKENDS]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        action="append",
        default=[],
        metavar="BACKEND",
        help="fail, rather than skip, where this backend is not available",
    )


@pytest.fixture(autouse=True)
def _seeded_and_nan_filled() -> Iterator[None]:
    """torch fills torch.empty with NaN, in deterministic mode only: a forgotten store shows."""
    torch.manual_seed(0)
    torch.set_num_threads(2)  # enough to split work, and the same on every machine
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def _available(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    sentence = BACKENDS[NAMES.index(name)].why_not(Problem("cpu", torch.float32))
    if sentence is not None:
        if name in request.config.getoption("--require"):
            pytest.fail(f"backend {name} is required: {sentence}")
        pytest.skip(sentence)
    return name


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend that is available here."""
    return _available(request)


@pytest.fixture(params=[name for name in NAMES if name != "reference"])
def fused(request: pytest.FixtureRequest) -> str:
    """The same, without the reference, which makes no promise about memory."""
    return _available(request)
