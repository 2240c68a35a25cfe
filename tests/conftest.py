"""The setting of every test: one seed, NaN-filled empties, and one parameter per backend."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from math import prod

import pytest

# Threads that wait would otherwise spin, which on a busy machine takes ten times as long. torch
# reads it when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from attnkernels.backends import BACKENDS, native
from attnkernels.backends.base import Problem
from tools import interpreter

NAMES = [backend.NAME for backend in BACKENDS]

# With TRITON_INTERPRET=1 the suite tests the triton backend, as far as an interpreter can.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INTERPRETED_ELEMENTS = 12_000
if INTERPRETED:
    interpreter.improve()

# With ATTNKERNELS_LIBRARY set to what tests/emulator/library.py builds, the suite tests the CUDA
# kernels, which an emulator runs on the CPU.
EMULATED = native.build_info().get("instruction set") == "emulated CUDA"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        action="append",
        default=[],
        metavar="BACKEND",
        help="fail, rather than skip, where this backend is not available",
    )
    parser.addoption("--without", metavar="BACKEND", help="leave out this backend's tests of a GPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    without = config.getoption("--without")
    if without:
        others = [item for item in items if _parameters(item).get("name") != without]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(others)])
        items[:] = others
    if INTERPRETED or EMULATED:
        wanted = _worth_interpreting if INTERPRETED else _of_native
        chosen = [item for item in items if wanted(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking through thousands of tests at every collection."""
    gc.collect()
    gc.freeze()


def _of_native(item: pytest.Item) -> bool:
    return hasattr(item, "callspec") and "native" in item.callspec.params.values()


def _parameters(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def _worth_interpreting(item: pytest.Item) -> bool:
    parameters = _parameters(item)
    if "triton" not in parameters.values():
        return False
    if {torch.float16, torch.int32} & {
        x for x in parameters.values() if isinstance(x, torch.dtype)
    }:
        return False  # loaded like bfloat16 and int64; test_aot compiles them
    if parameters.get("seam", 0.0) < 0:
        return False  # test_every_seam_in_one_tile has them all in one tile
    shapes = [x for x in parameters.values() if isinstance(x, tuple) and len(x) == 5]
    return item.get_closest_marker("large") is None and all(
        prod(shape[:4]) <= INTERPRETED_ELEMENTS for shape in shapes
    )


@pytest.fixture(autouse=True)
def _seeded_and_nan_filled() -> Iterator[None]:
    """Seed torch, and let it fill torch.empty with NaN, so that a forgotten store shows."""
    torch.manual_seed(0)
    torch.set_num_threads(2)  # enough to split work, and the same on every machine
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def _available(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    dtypes = [
        x
        for x in request.node.callspec.params.values()
        if isinstance(x, torch.dtype) and x.is_floating_point
    ]
    why_not = BACKENDS[NAMES.index(name)].why_not
    sentences = [why_not(Problem("cpu", dtype)) for dtype in (torch.float32, *dtypes)]
    for sentence in filter(None, sentences):
        if name in request.config.getoption("--require") and sentence == sentences[0]:
            pytest.fail(f"backend {name} is required: {sentence}")
        pytest.skip(sentence)
    return name


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> str:
    """Return the name of a backend that is available here."""
    return _available(request)


@pytest.fixture(params=[name for name in NAMES if name != "reference"])
def fused(request: pytest.FixtureRequest) -> str:
    """Return the same without the reference, which makes no promise about memory."""
    return _available(request)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Handle SIGINT as programs in a terminal do; background processes start without a handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
