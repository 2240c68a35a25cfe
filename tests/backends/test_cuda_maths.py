"""The inner functions of the CUDA kernels on a CPU, against float64, torch and Python's integers.

The emulator rounds 2^x and 1 / x correctly, while a GPU is within 2 units and 1 unit of them.
"""

from __future__ import annotations

from itertools import product
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.arrays import bytes_of, f32
from helpers.extensions import why_not

from attnkernels.ops.codes import EXP_QUAD, FACTORED, PAIR, QUAD

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")

INF, NAN = np.inf, np.nan
ROUNDING = 2.0**-24  # relative, of one operation
SEAMS = [0, 1e-8, -1e-8, 9, -9, 11, -11, 22, -22, 43, -43, 44, -44, 60, -60, 80, -80]

TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
HALVES = np.arange(1 << 16, dtype=np.uint16)


def floats(low: float, high: float) -> np.ndarray:
    """Return all float32 from one positive number to another."""
    first, last = f32([low, high]).view(np.uint32).tolist()
    return np.arange(first, last + 1, dtype=np.uint32).view(np.float32)


def test_limits(maths: ModuleType) -> None:
    quad, pair, factored, exp_quad = maths.limits()
    assert (quad, pair, factored) == tuple(map(np.float32, (QUAD, PAIR, FACTORED)))
    assert np.float32(exp_quad) == np.float32(EXP_QUAD) == np.float32(1 + np.exp(QUAD))


def test_exp_exact(maths: ModuleType) -> None:
    """Test every number of size 64 to 86, where h has the fewest bits left, and many below.

    The error is 1.0008 units in the last place; the bound leaves room for another exp2f.
    """
    edge = floats(64, FACTORED)
    small = floats(1e-8, 2e-8)[::64]
    y = np.concatenate(
        [edge, -edge, small, -small]
        + [np.linspace(-end, end, 1_000_001).astype("f") for end in (FACTORED, 1)]
    )
    exact = np.exp(y.astype("d"))
    error = np.abs(maths.exp_exact(y) - exact) / np.spacing(exact.astype("f")).astype("d")
    assert error.max() <= 1.05
    assert np.array_equal(maths.exp_exact(f32([0, -0.0, 1e-30, -1e-30])), np.ones(4))
    assert np.isnan(maths.exp_exact(f32([NAN]))).all()


def test_exp_fast(maths: ModuleType) -> None:
    """Allow for rounding log2(e), and the product with it: an error that grows with |y|."""
    y = -np.concatenate([np.linspace(0, 87, 1_000_001).astype("f"), floats(64, 87)])
    exact = np.exp(y.astype("d"))
    error = np.abs(maths.exp_fast(y) - exact) / exact
    assert (error <= (1.1 + 1.25 * np.abs(y)) * ROUNDING).all()

    ends = f32([0, -0.0, -87.4, -88, -1e4, -3e38, -INF])  # below the normal numbers it is 0
    assert maths.exp_fast(ends).tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert np.isnan(maths.exp_fast(f32([NAN]))).all()


def numbers(random: np.random.Generator) -> np.ndarray:
    """Return every 16-bit number, numbers between neighbours, and numbers that overflow."""
    brain = HALVES.astype(np.uint32) << 16
    half = HALVES.view(np.float16).astype("f").view(np.uint32)
    with np.errstate(invalid="ignore"):
        bits = np.concatenate(
            [brain + step for step in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
            + [half + step for step in (0, 0xFFF, 0x1000, 0x1001)]
            + [random.integers(1 << 32, size=300_000).astype(np.uint32)]
        )
        big = f32([3.3895e38, 3.3961e38, 3.4028235e38, 65519.996, 65520, 1e-45, 3e-8])
        return np.concatenate([bits.astype(np.uint32).view("f"), big, -big])


def test_bfloat16(maths: ModuleType, random: np.random.Generator) -> None:
    exact = (HALVES.astype(np.uint32) << 16).view("f")
    assert np.array_equal(maths.from_bfloat16(HALVES), exact, equal_nan=True)
    ours = torch.from_numpy(HALVES.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.array_equal(exact, ours, equal_nan=True)

    x = numbers(random)
    found = maths.to_bfloat16(x)
    expected = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    nan = np.isnan(x)
    assert np.array_equal(found[~nan], expected[~nan]) and (found[nan] == 0x7FC0).all()
    with np.errstate(invalid="ignore"):
        hidden = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], np.uint32).view("f")
    assert (maths.to_bfloat16(hidden) == 0x7FC0).all()
    assert maths.to_bfloat16(f32([3.4028235e38, -3.4028235e38])).tolist() == [0x7F80, 0xFF80]


@pytest.mark.parametrize("dtype", TORCH)
def test_loads_and_stores(maths: ModuleType, random: np.random.Generator, dtype: str) -> None:
    code = getattr(maths.Dtype, dtype)
    x = numbers(random)
    at = 2 * random.permutation(x.size) + 1
    unset = torch.full((2 * x.size + 1,), -1.0, dtype=TORCH[dtype])
    memory = unset.view(torch.uint8).numpy().copy()
    maths.store(memory, code, at, x)
    stored = torch.from_numpy(memory).view(TORCH[dtype])
    expected = torch.from_numpy(x).to(TORCH[dtype])
    assert torch.equal(stored[::2], unset[::2])  # and nothing between them
    assert np.array_equal(stored[at].float(), expected.float(), equal_nan=True)
    signs = ~expected.isnan()  # of zeros, too
    assert torch.equal(stored[at].signbit()[signs], expected.signbit()[signs])

    for load in (maths.load, maths.load_by_dtype):
        assert np.array_equal(load(memory, code, at), expected.float(), equal_nan=True)
    if dtype != "f32":
        every = torch.from_numpy(HALVES.view(np.int16)).view(TORCH[dtype])
        for load in (maths.load, maths.load_by_dtype):
            found = load(bytes_of(HALVES), code, np.arange(1 << 16))
            assert np.array_equal(found, every.float(), equal_nan=True)


@pytest.mark.parametrize("dtype", TORCH)
def test_short_dtypes_fit_tf32(maths: ModuleType, dtype: str) -> None:
    """Ten bits of the fraction hold every 16-bit number."""
    code = getattr(maths.Dtype, dtype)
    assert maths.is_short(code) == (dtype != "f32")
    if dtype != "f32":
        every = maths.load(bytes_of(HALVES), code, np.arange(1 << 16))
        assert not (every.view(np.uint32) & 0x1FFF)[~np.isnan(every)].any()


@pytest.mark.parametrize("dtype, numpy", [("i32", np.int32), ("i64", np.int64)])
def test_integers(maths: ModuleType, random: np.random.Generator, dtype: str, numpy: type) -> None:
    ends = np.iinfo(numpy)
    x = np.concatenate([random.integers(ends.min, ends.max, 50), [ends.min, -1, 0, 1, ends.max]])
    at = random.permutation(x.size)
    found = maths.load_integer(bytes_of(x.astype(numpy)), getattr(maths.Dtype, dtype), at)
    assert np.array_equal(found, x[at])


def splits(y: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Split y into q + k, evenly and unevenly, as far as |q| and |k| may go."""
    room = limit - np.abs(y) / 2
    offsets = [np.sign(o) * np.minimum(abs(o), room) for o in (0, 5, -5, 43, -43, limit, -limit)]
    q = np.concatenate([y / 2 + offset for offset in offsets]).astype("f")
    k = np.concatenate([y / 2 - offset for offset in offsets]).astype("f")
    return np.clip(q, -limit, limit), np.clip(k, -limit, limit)


def quads_at_seams(random: np.random.Generator, highest: float) -> np.ndarray:
    """Return exponents up to `highest`, four per row: at one seam or near it, or at several."""
    seams = np.array([y for y in SEAMS if y <= highest])
    same = np.repeat(seams[:, None], 4, 1)
    rows = [same + size * random.uniform(-1, 0, (40, *same.shape)) for size in (0, 1e-7, 1e-2, 3)]
    mixed = random.choice(seams, (3000, 4)) + random.uniform(-1, 0, (3000, 4))
    return np.concatenate([*(r.reshape(-1, 4) for r in rows), mixed])


def weights(random: np.random.Generator, count: int) -> np.ndarray:
    """Return weights of both signs and many sizes up to 1, as prepare() leaves them."""
    sizes = random.choice([0, 1, 1, 0.7, 0.1, 1e-3, 1e-6, 1e-12], (count, 4))
    return (sizes * random.choice([-1, 1], (count, 4))).astype("f")


@pytest.mark.parametrize("form, highest", [("factored", QUAD), ("bounded", 80)])
def test_quads_at_the_seams(
    maths: ModuleType, random: np.random.Generator, form: str, highest: float
) -> None:
    """The error is six roundings per term; terms below 2^-31 of their weight may be lost."""
    q, k = splits(quads_at_seams(random, highest), FACTORED)
    if form == "factored":
        k = np.minimum(k, QUAD - q)  # rounding must not leave the range
    w = weights(random, len(q))
    s = (random.standard_normal(len(q)) * random.choice([0, 1e-6, 1, 100], len(q))).astype("f")
    a, b = maths.exp_exact(q).reshape(q.shape), maths.exp_exact(k).reshape(k.shape)
    found = getattr(maths, form)(s, a, b, w, 0, 0)

    r = 1 / (1 + np.exp(q.astype("d") + k))
    size = np.abs(w).astype("d")
    bound = ROUNDING * (6 * (size * r).sum(1) + np.abs(s)) + 2.0**-31 * size.sum(1)
    assert (np.abs(found - (s + (w * r).sum(1))) <= bound).all()


def test_the_bound_beyond_its_range(maths: ModuleType) -> None:
    """Products of exponentials may be infinite; the bound protects their neighbours."""
    w = f32([[1, -1, 0.5, 0.25]])
    for count in range(5):
        big = np.arange(4) < count
        a = np.where(big, maths.exp_exact(f32([FACTORED])), 1).astype("f")[None]
        found = maths.bounded(f32([0]), a, a, w, 0, 0)
        assert abs(found[0] - (w * np.where(big, 0, 0.5)).sum()) <= 4 * ROUNDING


@pytest.mark.parametrize("which", range(4))
def test_what_makes_a_quad_nan(maths: ModuleType, which: int) -> None:
    """0 times infinity, and NaN among the weights or exponentials, gives NaN as docs/math.md says.

    The bounded form does not propagate NaN from its exponentials, because fminf drops it: such a
    tile has an infinite range and is computed from the inputs.
    """
    s, one = np.zeros(1, "f"), np.ones((1, 4), "f")

    def spoiled(x: float) -> np.ndarray:
        return np.where(np.arange(4) == which, x, one).astype("f")

    for form in (maths.factored, maths.bounded):
        assert np.isnan(form(s, one, one, spoiled(NAN), 0, 0))
        assert np.isnan(form(f32([NAN]), one, one, one, 0, 0))
    assert np.isnan(maths.factored(s, spoiled(NAN), one, one, 0, 0))
    assert np.isnan(maths.factored(s, one, spoiled(NAN), one, 0, 0))
    assert np.isnan(maths.factored(s, spoiled(INF), spoiled(0), one, 0, 0))


# Slope and floor of relu, then of leaky relu; with slope 0 its f(-inf) is NaN, as in torch.
RECTIFIERS = [(0, 0), (0.01, -INF), (0.25, -INF), (1, -INF), (-0.5, -INF), (0, -INF)]


def rectified(x: torch.Tensor, slope: float, floor: float) -> torch.Tensor:
    f = torch.nn.functional
    return f.relu(x) if floor == 0 else f.leaky_relu(x, float(np.float32(slope)))


def rectify(x: np.ndarray, slope: float, floor: float) -> np.ndarray:
    """Return torch's relu if the floor is 0, otherwise its leaky relu."""
    return rectified(torch.from_numpy(np.asarray(x, "d")), slope, floor).numpy()


@pytest.mark.parametrize("slope, floor", RECTIFIERS)
def test_rectified(
    maths: ModuleType, random: np.random.Generator, slope: float, floor: float
) -> None:
    x = np.concatenate(
        [f32([0, -0.0, 1e-30, -1e-30, 3e38, -3e38, INF, -INF, NAN]), random.normal(size=100)]
    ).astype("f")
    expected = rectify(x, slope, floor)
    found = maths.rectified(x, slope, floor)
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert np.array_equal(found, expected.astype("f"), equal_nan=True)  # one rounding

    y = torch.from_numpy(x.astype("d")).requires_grad_()
    (derivative,) = torch.autograd.grad(rectified(y, slope, floor).sum(), y)
    found = maths.rectified_slope(x, slope)
    real = ~np.isnan(x)
    assert np.array_equal(found[real], derivative.numpy()[real]) and np.isnan(found[~real]).all()


@pytest.mark.parametrize("slope, floor", RECTIFIERS)
def test_rectified_quads(
    maths: ModuleType, random: np.random.Generator, slope: float, floor: float
) -> None:
    """The error is five roundings of each term and of the sum so far."""
    y = random.choice(SEAMS + [1e4, -1e4], (4000, 4)) + random.normal(size=(4000, 4))
    q = (y / 2 + random.choice([0, 43, -1e4], (4000, 1))).astype("f")
    k = (y - q).astype("f")
    w, s = weights(random, 4000), random.normal(size=4000).astype("f")
    f = rectify(q.astype("d") + k, slope, floor)
    found = maths.rectified_quads(s, q, k, w, slope, floor)
    bound = 5 * ROUNDING * (np.abs(s) + (np.abs(w) * np.abs(f)).sum(1))
    assert (np.abs(found - (s + (w * f).sum(1))) <= bound).all()

    # infinite and missing: in every place, against the sum in float64
    odd = np.array([INF, -INF, NAN, 1])
    q, k = (x.reshape(-1).astype("f") for x in np.meshgrid(odd, odd))
    for place, weight in product(range(4), (1, -1)):
        a, b = np.ones((2, 16, 4), "f")
        a[:, place], b[:, place] = q, k
        w = np.full((16, 4), weight, "f")
        found = maths.rectified_quads(np.zeros(16, "f"), a, b, w, slope, floor)
        with np.errstate(invalid="ignore"):
            expected = (w * rectify(a.astype("d") + b, slope, floor)).sum(1)
        assert np.allclose(found, expected, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("way, highest", [("shared", PAIR), ("single", 80)])
def test_sweep_at_the_seams(
    maths: ModuleType, random: np.random.Generator, way: str, highest: float
) -> None:
    """The error of r is seven roundings; r below e^-43, or 2^-125, may be lost."""
    k = random.uniform(-FACTORED, FACTORED, 20_000).astype("f")
    seam = random.choice([y for y in SEAMS if y <= highest], (k.size, 4))
    seam[::2] = seam[::2, :1]  # all four at one
    y = seam - random.choice([0, 1e-7, 1e-2, 1], (k.size, 1)) * random.uniform(0, 1, seam.shape)
    q = np.clip(y - k[:, None], -FACTORED, FACTORED).astype("f")
    if way == "shared":  # a tile chooses by its highest query and its highest key
        q = np.minimum(q, PAIR - k[:, None])
    found = getattr(maths, way)(maths.exp_exact(q).reshape(q.shape), maths.exp_exact(k))
    r = 1 / (1 + np.exp(q.astype("d") + k[:, None]))
    gone = 2.0**-62 if way == "shared" else 2.0**-125
    assert (np.abs(found - r) <= 7 * ROUNDING * r + gone).all()


def test_single_takes_the_whole_range(maths: ModuleType) -> None:
    """It holds if both exponentials are the largest allowed and their product is infinite."""
    end = maths.exp_exact(f32([FACTORED, -FACTORED, FACTORED, -FACTORED]))[None]
    for k, expected in ((FACTORED, [0, 0.5, 0, 0.5]), (-FACTORED, [0.5, 1, 0.5, 1])):
        found = maths.single(end, maths.exp_exact(f32([k])))
        assert np.abs(found - expected).max() <= 4 * ROUNDING


@pytest.mark.parametrize("gain", [1, 2])
def test_logistic_from_inputs(maths: ModuleType, random: np.random.Generator, gain: float) -> None:
    """The sum is rounded, and the exponent of 2, whose error counts r (1 - r) |y| times.

    That of r (1 - r) is relative, even near r = 1.
    """
    y = random.choice(SEAMS + [1e4, -1e4], (20_000, 4)) + random.normal(size=(20_000, 4))
    k = random.choice([0, 1, -43, 86, 100, -1e4], 20_000)
    q, k = (y / gain - k[:, None]).astype("f"), k.astype("f")
    y = gain * (q.astype("d") + k[:, None])
    found, slopes = (x.reshape(y.shape) for x in maths.with_slope(q + k[:, None], gain))
    e = np.exp(np.minimum(y, 700))
    r = 1 / (1 + e)
    bound = ROUNDING * r * (4 + 2.5 * (1 - r) * np.abs(y)) + 2.0**-125
    assert (np.abs(found - r) <= bound).all()
    slope = e * r**2
    assert (np.abs(slopes - slope) <= ROUNDING * slope * (9 + 2.5 * np.abs(y)) + 2.0**-120).all()

    q = f32([[1e4, 3e38, INF, -INF], [INF, -INF, NAN, 0], [NAN, INF, -INF, 0]])
    sums = maths.sums(q, f32([-1e4, INF, -INF]))
    found, slopes = (x.reshape(q.shape) for x in maths.with_slope(sums, gain))
    expected = [[0.5, 0, 0, 1], [0, NAN, NAN, 0], [NAN, NAN, 1, 1]]
    assert np.array_equal(found, f32(expected), equal_nan=True)
    expected = [[0.25, 0, 0, 0], [0, NAN, NAN, 0], [NAN, NAN, 0, 0]]
    assert np.array_equal(slopes, f32(expected), equal_nan=True)


def test_sums(maths: ModuleType, random: np.random.Generator) -> None:
    q = (random.normal(size=(1000, 4)) * 1e3).astype("f")
    k = random.normal(size=1000).astype("f")
    q[:3, 0], k[:3] = [INF, -INF, NAN], [-INF, -INF, 1]
    found = maths.sums(q, k)
    with np.errstate(invalid="ignore"):
        assert np.array_equal(found, q + k[:, None], equal_nan=True)
