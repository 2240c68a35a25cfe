"""The emulator of CUDA that runs the GPU's kernels in tests: it computes, and it finds faults.

Every fault is one line of a sound kernel in tests/emulator/faults.cpp.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from emulator import build
from helpers.extensions import SETUP, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")

TESTS = Path(__file__).parents[1]
RANDOM = np.random.default_rng(0)
HALVES = np.arange(1 << 16, dtype=np.uint16)

# AddressSanitizer, where enabled, ends the process before the guards can report.
UNWATCHED = pytest.mark.skipif(SETUP["SANITIZE"], reason="AddressSanitizer ends the process")


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    return build.load("-O1")


def rows(columns: int, count: int = 9) -> np.ndarray:
    """Return whole numbers, whose sum is the same in every order."""
    return RANDOM.integers(1, 100, (count, columns)).astype(np.float32)


@pytest.mark.parametrize("columns", [1, 4, 511, 512, 1036, 1537, 2048])
def test_a_sound_kernel(faults: ModuleType, columns: int) -> None:
    x = rows(columns)
    assert np.array_equal(faults.row_sums(x, "none"), x.sum(1))


# a fault, and a number of columns that shows it
WRONG_NUMBERS = {
    "tail cut": 1033,
    "read too early": 1536,
    "overwritten too early": 1536,
    "wait for too few": 1536,
}


@pytest.mark.parametrize("columns", [1033, 1536])
@pytest.mark.parametrize("fault", WRONG_NUMBERS)
def test_wrong_numbers(faults: ModuleType, fault: str, columns: int) -> None:
    x = rows(columns)
    same = faults.row_sums(x, fault) == x.sum(1)
    if columns == WRONG_NUMBERS[fault]:
        assert not same.any()  # in every block, whatever the order of its threads
    assert np.array_equal(faults.row_sums(x, "none"), x.sum(1))


def test_a_row_that_is_not_written(faults: ModuleType) -> None:
    x = rows(1036)
    sums = faults.row_sums(x, "row unwritten")
    assert np.isnan(sums[-1]) and np.array_equal(sums[:-1], x.sum(1)[:-1])


# the error of launch, after the kernel's name, the block and the thread
BARRIER, SHUFFLE = r"__syncthreads \(faults.cpp:\d+\)", r"__shfl_xor_sync \(faults.cpp:\d+\)"
MASK = f"divergent barrier or wrong lane mask: {SHUFFLE} with lane mask 0x"
ERRORS = {
    "no wait": "returned with asynchronous copies under way",
    "lanes left out": rf"{MASK}f{{8}} waits for lane \d+, which is at {BARRIER}",
    "masks differ": rf"{MASK}f{{8}} waits for lane \d+, which is at {BARRIER}",
    "own lane left out": f"wrong lane mask: {SHUFFLE} with lane mask 0x7f{{7}} leaves out its own",
    "lane returned": f"wrong lane mask: {SHUFFLE} .* waits for lane 31, which has returned",
    "lanes apart": rf"wrong lane mask: {SHUFFLE} .* waits for lane \d+, which is at {SHUFFLE}",
    "thread missing": f"divergent barrier: {BARRIER} waits for thread 127, which has returned",
    "two barriers": rf"divergent barrier: {BARRIER} waits for thread \d+, which is at {BARRIER}",
    "barrier and warp": rf"divergent barrier or .*__syncwarp .* which is at {BARRIER}",
    "misaligned shared": "async_copy16: an address is not a multiple of 16",
    "misaligned global": "async_copy16: an address is not a multiple of 16",
    "not shared": "async_copy16: out of bounds of shared memory",
}


@pytest.mark.parametrize("fault", ERRORS)
def test_errors(faults: ModuleType, fault: str) -> None:
    x = rows(1536)
    where = r"^attnkernels: row_sums: block \d+, thread \d+: "
    with pytest.raises(RuntimeError, match=where + ERRORS[fault]):
        faults.row_sums(x, fault)
    assert np.array_equal(faults.row_sums(x, "none"), x.sum(1))  # the error leaves no state behind


@UNWATCHED
@pytest.mark.parametrize("fault", ["past dynamic", "before dynamic", "past array"])
def test_guards_of_shared_memory(faults: ModuleType, fault: str) -> None:
    x = rows(1036)
    with pytest.raises(RuntimeError, match="row_sums: block 0: out of bounds of shared memory"):
        faults.row_sums(x, fault)
    assert np.array_equal(faults.row_sums(x, "none"), x.sum(1))


@pytest.mark.parametrize("shape", [(1, 1), (32, 64), (33, 31), (70, 45)])
def test_transposition(faults: ModuleType, shape: tuple[int, int]) -> None:
    x = RANDOM.standard_normal(shape).astype(np.float32)
    assert np.array_equal(faults.transpose(x, "none"), x.T)
    unwritten = np.isnan(faults.transpose(x, "tail cut"))
    assert unwritten[-1].all() and not unwritten[:-1].any()
    early = faults.transpose(x, "read too early")
    assert np.prod(shape) == 1 or not np.array_equal(early, x.T)


@pytest.mark.parametrize("rows, depth", [(16, 8), (48, 136)])
def test_product(faults: ModuleType, rows: int, depth: int) -> None:
    """Tensor cores read ten bits of each fraction, and round the sum of eight terms toward zero."""
    a = RANDOM.standard_normal((rows, depth)).astype(np.float32)
    b = RANDOM.standard_normal((depth, 8)).astype(np.float32)
    a10, b10 = (
        (x.view(np.uint32) & 0xFFFFE000).view(np.float32).astype(np.float64) for x in (a, b)
    )
    found = faults.product(a, b)
    sums = np.zeros((rows, 8))
    for k in range(0, depth, 8):
        sums += a10[:, k : k + 8] @ b10[k : k + 8]
        sums = (sums.view(np.uint64) & np.uint64(0xFFFFFFFFE0000000)).view(np.float64)
    assert np.array_equal(found, sums)
    assert np.abs(found - a.astype(np.float64) @ b).max() > 1e-4  # it did take ten bits


def test_atomics(faults: ModuleType) -> None:
    bins = RANDOM.integers(0, 7, 1000).astype(np.int32)
    counts, sums, highest = faults.histogram(bins, 7)
    for k in range(7):
        where = np.flatnonzero(bins == k)
        assert (counts[k], sums[k], highest[k]) == (where.size, where.sum(), where.max())


def test_collectives(faults: ModuleType) -> None:
    t = np.arange(64)
    lane, warp = t % 32, t // 32
    xor = lane ^ 12
    expected = [
        warp * 32 + (lane + 1) % 32,
        t // 8 * 8 + 3,
        t ^ 5,
        np.where(xor <= (lane | 7), warp * 32 + xor, t),  # a group may see those before it
        np.where(t % 16 + 3 < 16, t + 3, t),
        np.where(lane >= 2, t - 2, t),
        np.full(64, sum(1 << k for k in range(0, 32, 3)), np.uint32).view(np.int32),
        warp == 1,
        warp == 0,
        t >= 0,
        t < 0,
        t ^ 1,
        np.where(lane < 15, t + 1, np.where(lane > 16, t - 1, -1)),  # of no lane of the mask
        np.where(lane % 2, -1, 0),
    ]
    assert np.array_equal(faults.collectives(), np.array(expected, np.int64))


def test_orders(faults: ModuleType) -> None:
    """Warps and lanes run up, down and shuffled, and in the same order every time."""
    found = faults.order(20, 128, 30)
    assert np.array_equal(np.sort(found, -1), np.broadcast_to(np.arange(128), found.shape))
    assert np.array_equal(found, faults.order(20, 128, 30))
    lanes = found.reshape(20, 30, 4, 32)
    warps = lanes[..., 0] // 32
    for steps in (np.diff(lanes), np.diff(warps)):
        up, down = (steps > 0).all(-1).mean(), (steps < 0).all(-1).mean()
        assert 0.1 < up < 0.4 and 0.1 < down < 0.4


@pytest.mark.parametrize(
    "blocks, threads, shared, what",
    [
        (1, 1056, 0, "threads of a block: 1056"),
        (1, 0, 0, "threads of a block: 0"),
        (1, 33, 0, "threads of a block: 33"),
        (-1, 32, 0, "blocks: -1"),
        (1 << 31, 32, 0, "blocks: 2147483648"),
        (1, 32, 232449, "bytes of shared memory: 232449"),
    ],
)
def test_limits(faults: ModuleType, blocks: int, threads: int, shared: int, what: str) -> None:
    with pytest.raises(RuntimeError, match=f"count: {what}"):
        faults.count(blocks, threads, shared)


def test_at_the_limits(faults: ModuleType) -> None:
    assert faults.count(0, 5000, 0) == 0
    assert faults.count(3, 1024, 232448) == 3072


def test_launches_from_several_threads(faults: ModuleType) -> None:
    """autograd has a thread of its own, with another stack."""
    x = rows(1036, 60)
    with ThreadPoolExecutor(4) as pool:
        for sums in pool.map(lambda _: faults.row_sums(x, "none"), range(12)):
            assert np.array_equal(sums, x.sum(1))


def test_halves(faults: ModuleType) -> None:
    exact = HALVES.view(np.float16).astype(np.float32)
    assert np.array_equal(faults.from_half(HALVES), exact, equal_nan=True)

    bits = exact[np.isfinite(exact)].view(np.uint32)
    middle = bits + 0x1000  # between a normal number and the next
    small = RANDOM.uniform(-(2.0**-13), 2.0**-13, 100_000).astype(np.float32)
    steps = np.arange(-4096, 4097, dtype=np.float32) * np.float32(2.0**-25)  # and of the others
    x = np.concatenate(
        [exact, small, steps, *(y.view(np.float32) for y in (middle - 1, middle, middle + 1))]
        + [np.float32([65519.996, 65520, -65520, 1e-30, -1e-30, -1e38, np.inf, np.nan])]
    )
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    found = faults.to_half(x)
    assert np.array_equal(found.view(np.float16), expected, equal_nan=True)
    finite = ~np.isnan(x)
    assert np.array_equal(found[finite], expected.view(np.uint16)[finite])  # the sign of 0, too


def test_special_functions(faults: ModuleType) -> None:
    inf, nan, tiny = np.inf, np.nan, 2.0**-127  # below the normal numbers
    x = np.float32([0, 1, -126, -127, -1000, 128, tiny, -inf, nan])
    assert np.array_equal(
        faults.exp2(x), np.float32([1, 2, 2.0**-126, 0, 0, inf, 1, 0, nan]), equal_nan=True
    )
    x = np.float32([2, -4, 2.0**127, -inf, inf, tiny, -tiny, nan])
    found = faults.reciprocal(x)
    assert np.array_equal(found, np.float32([0.5, -0.25, 0, 0, 0, inf, -inf, nan]), equal_nan=True)
    assert np.signbit(found[3]) and not np.signbit(found[4])
    assert faults.max_nan(1, 2) == faults.max_nan(2, 1) == 2
    assert faults.min_nan(1, 2) == faults.min_nan(2, 1) == 1 and np.isnan(faults.min_nan(nan, 1))
    assert np.isnan(faults.max_nan(nan, 1)) and np.isnan(faults.max_nan(1, nan))
    assert not np.signbit(faults.max_nan(-0.0, 0.0)) and not np.signbit(faults.max_nan(0.0, -0.0))


def under_sanitizers(code: str) -> subprocess.CompletedProcess[str]:
    """Run code with `faults` and `x` in a process under AddressSanitizer and UBSan."""
    compiler = SETUP["compiler"]()
    libraries = [
        subprocess.check_output([*compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("the compiler has no sanitizers")
    lines = [
        "import numpy as np",
        "from emulator import build",
        "faults = build.load('-O0')",
        "x = np.ones((3, 1033), np.float32)",
        code,
    ]
    watched = {
        "ATTNKERNELS_SANITIZE": "1",
        "ASAN_OPTIONS": "detect_leaks=0",
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONPATH": str(TESTS),
    }
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        env={**os.environ, **watched},
    )


def test_sound_kernels_and_errors_under_the_sanitizers() -> None:
    """They mistake neither fibers, nor the remains of fibers after an error, for bad accesses."""
    done = under_sanitizers(f"""
y = np.ones((9, 1536), np.float32)
for fault in ["none", *{list(ERRORS)!r}, *{list(WRONG_NUMBERS)!r}, "none"]:
    try:
        assert (faults.row_sums(y, fault) == 1536).all() or fault in {list(WRONG_NUMBERS)!r}
    except RuntimeError:
        assert fault in {list(ERRORS)!r}
assert (faults.transpose(x, "none") == x.T).all()
assert (faults.product(np.ones((16, 64)), np.ones((64, 8))) == 64).all()
assert faults.collectives()[0, 0] == 1 and faults.count(2, 1024, 232448) == 2048
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "fault, what",
    [
        ("past global", "heap-buffer-overflow"),
        ("past dynamic", "use-after-poison"),
        ("past array", "use-after-poison|index 4 out of bounds"),
    ],
)
def test_what_the_sanitizers_find(fault: str, what: str) -> None:
    done = under_sanitizers(f"faults.row_sums(x, {fault!r})")
    assert done.returncode != 0
    assert any(words in done.stderr for words in what.split("|")), done.stderr
