"""The inner functions of the CPU kernels, in units in the last place, on every instruction set."""

import numpy as np
import pytest
import torch
from helpers.extensions import why_not
from helpers.philox import philox4x32_10
from native import build

from attnkernels import additive_scores
from attnkernels.ops.codes import ACTIVATIONS

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


@pytest.fixture(scope="module", params=build.isas())
def maths(request):
    return build.load(request.param)


def ulps(actual, exact):
    """Return the largest error, in units in the last place of the exact value in actual's dtype."""
    exact = np.asarray(exact, np.longdouble)
    spacing = np.spacing(np.abs(exact).astype(actual.dtype))
    return float(np.max(np.abs(actual.astype(np.longdouble) - exact) / spacing))


def test_exp(maths):
    x = np.concatenate([np.linspace(-87, 88, 200_001), np.linspace(-1, 1, 20_001)]).astype("f")
    assert ulps(maths.exp(x), np.exp(x.astype(np.longdouble))) <= 1.5


def test_exp_double(maths):
    x = np.linspace(-700, 700, 20_001)
    assert ulps(maths.exp_double(x), np.exp(x.astype(np.longdouble))) <= 1.5


def test_exp_at_its_ends(maths):
    inf, nan = np.inf, np.nan
    low, minus, missing, zero = maths.exp(np.array([-1e4, -inf, nan, 0], "f"))
    assert 0 < low == minus < 2e-38 and np.isnan(missing) and zero == 1
    weights = maths.exp_weight(np.array([0, -87, -88, -inf, nan], "f"))
    assert weights[0] == 1 and weights[1] > 0 and (weights[2:4] == 0).all() and np.isnan(weights[4])


@pytest.mark.parametrize("gain", [1, 2])
def test_exp_times(maths, gain):
    y = np.concatenate([np.linspace(-86, 86, 200_001), np.linspace(-3, 3, 50_001)])
    x = (y / gain).astype("f")
    exact = np.exp(gain * x.astype(np.longdouble))
    relative = np.abs(maths.exp_times(x, gain) / exact - 1)
    assert (relative <= 3 * ROUNDING + 1.4e-8 * np.abs(y)).all()
    r = 1 / (1 + maths.exp_times(x, gain)).astype(np.longdouble)
    assert np.abs(r - 1 / (1 + exact)).max() <= 2 * ROUNDING  # one ULP of 1
    low, minus, missing = maths.exp_times(np.array([-1e4, -np.inf, np.nan], "f"), gain)
    assert 0 < low == minus < 2e-38 and np.isnan(missing)


def test_reciprocal(maths):
    x = np.concatenate([np.linspace(1, 4, 100_001), np.geomspace(1, 2.0**125, 10_001)]).astype("f")
    assert ulps(maths.reciprocal(x), 1 / x.astype(np.longdouble)) <= 1
    powers = np.exp2(np.arange(126)).astype("f")
    assert (maths.reciprocal(powers) == 1 / powers).all()
    assert np.isnan(maths.reciprocal(np.array([np.nan], "f"))).all()


@pytest.mark.parametrize("payload", [0x7FC00000, 0x7FC00001, 0xFFC12345])
def test_every_nan_stays_one(maths, payload):
    x = np.array([payload] * 16, np.uint32).view("f")
    assert np.isnan(maths.exp(x)).all()


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100])
def test_range(maths, count):
    x = np.random.default_rng(0).normal(size=count).astype("f") - 3
    empty = [0] if count % maths.lanes else []  # the unused lanes of the last vector
    assert maths.range(x) == (max([*x, *empty]), np.abs(x).max())
    for place in (0, count - 1):
        for spoiled in (np.nan, np.inf, -np.inf):
            x[place] = spoiled
            assert np.isnan(maths.range(x)).all()
        x[place] = 0


def quad(y):
    """sum_e w_e (1 / (1 + exp(y_e)) - 1/2) in extended precision."""
    y = np.asarray(y, np.longdouble)
    return (WEIGHTS * (1 / (1 + np.exp(np.minimum(y, 11000))) - 0.5)).sum(-1)


WEIGHTS = np.array([0.5, -1, 0.25, 1], "f")
ROUNDING = 2.0**-24


@pytest.mark.parametrize("spread", [0.0, 1e-8, 0.5, 3.0])
def test_forms_agree_where_they_meet(maths, spread):
    """Within its range, each form gives the same quad for sums on both sides of every limit."""
    quads, pairs, factored = maths.limits()
    seams = np.array([-86, -44, -22, -1e-8, 0, 1e-8, 9, quads - 0.01, 22, pairs, 60, 85])
    y = (seams[:, None] + spread * np.array([-1, 0, 0.5, 1])).astype("f")
    q = (y / 2).astype("f")  # y = 2 q + 2 k
    k = (y - q) / 2
    q = q / 2
    exact = quad(2 * q.astype(np.longdouble) + 2 * k.astype(np.longdouble))
    a, b = np.exp(2 * q.astype("d")).astype("f"), np.exp(2 * k.astype("d")).astype("f")
    within = y.max(-1) <= quads
    bound = 8 * ROUNDING * np.abs(WEIGHTS).sum()
    assert np.abs(maths.factored(a, b, WEIGHTS) - exact)[within].max() <= bound
    assert np.abs(maths.bounded(a, b, WEIGHTS) - exact).max() <= bound
    assert np.abs(maths.direct(q.astype("f"), k.astype("f"), WEIGHTS) - exact).max() <= bound


def test_direct_takes_anything(maths):
    inf = np.inf
    q = np.array([[60, -1e4, inf, -inf], [1e4, 0, -inf, inf]], "f")
    k = np.array([[-60, 1e4, 0, 0], [-1e4, 0, 1, -1]], "f")
    exact = quad(2 * q.astype(np.longdouble) + 2 * k.astype(np.longdouble))
    actual = maths.direct(q, k, WEIGHTS)
    assert np.abs(actual - exact).max() <= 8 * ROUNDING * np.abs(WEIGHTS).sum()
    q[0, 0], k[1, 3] = np.nan, inf  # inf - inf
    q[1, 3] = -inf
    assert np.isnan(maths.direct(q, k, WEIGHTS)).all()
    assert np.isnan(maths.bounded(q, k, WEIGHTS)).all()


@pytest.mark.parametrize("count", [1, 16, 18, 32])
def test_transpose(maths, count):
    rows = np.random.default_rng(0).normal(size=(count, 48)).astype("f")
    panel = maths.transpose(rows)
    whole = -(-count // 16) * 16  # lanes beyond are not written
    assert (panel[:, :count] == rows.T).all() and (panel[:, count:whole] == 0).all()


def test_philox(maths):
    rng = np.random.default_rng(0)
    for _ in range(20):
        seed = int(rng.integers(2**63))
        counter = [int(c) for c in rng.integers(2**32, size=4)]
        key = (seed & 0xFFFFFFFF, seed >> 32)
        assert maths.philox(seed, counter) == list(philox4x32_10(tuple(counter), key))


POINTWISE = [name for name, f in ACTIVATIONS.items() if f.family == "pointwise"]


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise(maths, name):
    """Value and slope of every pointwise activation against the formula in float64."""
    x = np.concatenate([np.linspace(-30, 30, 4001), [0, -1e-8, 1e-8, -1e4, 1e4]]).astype("f")
    query = torch.from_numpy(x.astype("d"))[:, None].requires_grad_()
    one = torch.ones(1, dtype=torch.float64)
    y = additive_scores(
        query,
        0 * one[None],
        one,
        scale=1.0,
        activation=name,
        negative_slope=0.25,
        backend="reference",
    )
    (slope,) = torch.autograd.grad(y.sum(), query)
    exact = y.detach()[:, 0].numpy()
    value, three = maths.pointwise(ACTIVATIONS[name].code, 0.25, x, 3)
    assert (np.abs(value - exact) <= 8 * ROUNDING * np.maximum(1, np.abs(exact))).all()
    assert np.abs(three - 3 * slope[:, 0].numpy()).max() <= 3 * 8 * ROUNDING
    spoiled, _ = maths.pointwise(ACTIVATIONS[name].code, 0.25, np.array([np.nan], "f"), 1)
    assert np.isnan(spoiled).all()
