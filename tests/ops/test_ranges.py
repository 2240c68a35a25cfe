"""The seams of the range choice (docs/math.md, "Ranges"), each by itself and all in one tile.

Products of factors 1 + exp(2 sum) overflow when four sums average above 11, a pair above 22, one
above 44; exp(2 q) and exp(2 k) leave float32 by themselves at 43.
"""

from __future__ import annotations

import pytest
import torch
from helpers.inputs import BF16, F16, F64, MANY, POINTWISE, Shape, normal, supports
from torch import Tensor

from attnkernels import additive_attention
from attnkernels.testing import check_attention, check_scores

SEAMS = [
    0.0,
    1e-8,
    -1e-8,
    9,
    -9,
    10.5,
    -10.5,
    11,
    -11,
    21.5,
    -21.5,
    22,
    -22,
    43,
    -43,
    44,
    -44,
    60,
    -60,
    1e4,
    -1e4,
]
INF = float("inf")

# a decoder step (rows), a short one, and one with whole panels, tails and two key tiles
SHAPES: list[Shape] = [(1, 1, 70, 36, 4), (1, 6, MANY, 19, 4)]


def around(
    sums: Tensor,
    offset: float,
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    jitter: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return inputs whose sums q + k are `sums` (d,) up to the jitter, with keys at -offset."""
    batch, n, m, d, dv = shape
    noise = min(jitter, 1.0)
    query = (sums + offset + normal(batch, n, d, dtype=F64, size=noise / 2, grad=False)).to(dtype)
    key = (-offset + normal(batch, m, d, dtype=F64, size=noise / 2, grad=False)).to(dtype)
    weight = normal(d, dtype=F64, size=d**-0.5, grad=False).to(dtype)
    value = normal(batch, m, dv, dtype=dtype)
    return query.requires_grad_(), key.requires_grad_(), value, weight.requires_grad_()


@pytest.mark.parametrize("seam", SEAMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_seam_a_tile(backend: str, shape: Shape, seam: float) -> None:
    """All sums are at the seam, so one variant has the tile: split evenly, or opposed by 60."""
    sums = torch.full((shape[3],), seam, dtype=F64)
    for offset in (-seam / 2, 0.0, 60.0):
        check_attention(*around(sums, offset, shape, jitter=max(abs(seam), 1e-8)), backend=backend)


@pytest.mark.parametrize("offset", [0.0, 20.0, -30.0, 42.0, 60.0, -60.0, 1e4])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_every_seam_in_one_tile(backend: str, activation: str, offset: float) -> None:
    """Hidden units of every size lie side by side: an overflow must not reach its quad."""
    sums = torch.tensor(SEAMS, dtype=F64)
    for shape in ((1, 1, 70, len(SEAMS), 4), (1, 6, MANY, len(SEAMS), 4)):
        check_attention(*around(sums, offset, shape), activation=activation, backend=backend)


@pytest.mark.parametrize("activation", POINTWISE)
def test_pointwise_activations_at_the_seams(backend: str, activation: str) -> None:
    for seam in (0.0, 1e-8, -9.0, 60.0, 1e4):
        sums = torch.full((19,), seam, dtype=F64)
        check_attention(
            *around(sums, 60.0, (1, 6, MANY, 19, 4)), activation=activation, backend=backend
        )


@pytest.mark.parametrize("dtype", [BF16, F16, F64])
def test_other_dtypes(backend: str, dtype: torch.dtype) -> None:
    sums = torch.tensor(SEAMS, dtype=F64)
    for offset in (0.0, 60.0, 300.0, 1000.0):
        check_attention(*around(sums, offset, (1, 5, 40, len(SEAMS), 4), dtype), backend=backend)


@pytest.mark.parametrize("seam", [88.0, 175.0, 176.5, 349.0, 351.0, 354.5, -360.0, 1e4, 1e300])
def test_seams_of_float64(backend: str, seam: float) -> None:
    if not supports(backend, F64):
        pytest.skip(f"{backend} has no kernels for float64")
    """The same overflows at the limits of float64."""
    sums = torch.full((19,), seam, dtype=F64)
    for offset in (-seam / 2, 0.0, 400.0):
        check_attention(*around(sums, offset, (1, 5, 40, 19, 4), F64), backend=backend)


KIND = 128 if MANY > 100 else 32  # keys: whole tiles


def test_one_tile_of_each_kind(backend: str) -> None:
    """Each key tile chooses its variant: quiet, bounded, direct and opposed tiles in one call."""
    query, key, value, weight = around(torch.zeros(20, dtype=F64), 0.0, (1, 9, 5 * KIND, 20, 4))
    with torch.no_grad():
        for kind, shift in enumerate((0.0, 15.0, 30.0, 60.0, -1e4)):
            key[:, kind * KIND : (kind + 1) * KIND] += shift
    check_attention(query, key, value, weight, backend=backend)
    check_scores(query, key, weight, backend=backend)


def test_one_outlier(backend: str) -> None:
    """Put a single large entry into a quiet tile, in a query and in a key."""
    for size in (12.0, 25.0, 50.0, 1e4, INF):
        query, key, value, weight = around(torch.zeros(20, dtype=F64), 0.0, (1, 9, MANY, 20, 4))
        with torch.no_grad():
            query[0, 3, 7], key[0, MANY - 10, 2], key[0, 5, 19] = size, -size, size
        check_attention(query, key, value, weight, backend=backend)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_infinite_inputs_saturate(backend: str, activation: str, sign: float) -> None:
    """f(inf) = 1 with derivative 0, from either side and from both; everything stays finite."""
    for n, m in ((1, 70), (6, MANY)):
        query, key, value, weight = around(torch.zeros(20, dtype=F64), 0.0, (1, n, m, 20, 4))
        with torch.no_grad():
            query[..., 3] = key[..., 3] = sign * INF
            query[..., 7] = sign * INF
            key[:, 2:5, 11] = -sign * INF
        check_attention(query, key, value, weight, activation=activation, backend=backend)
        check_scores(query, key, weight, activation=activation, backend=backend)


@pytest.mark.parametrize("size", [1.0, 10.0, 100.0, 1e3, 1e4])
def test_inputs_of_every_size(backend: str, size: float) -> None:
    query, key = normal(2, 7, 33, size=size), normal(2, MANY, 33, size=size)
    check_attention(query, key, normal(2, MANY, 5), normal(33, size=33**-0.5), backend=backend)


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e4, 1e30, 1e37])
def test_huge_and_tiny_weights(backend: str, size: float) -> None:
    """Scores are far apart, so the softmax is one-hot and lse is the score itself."""
    query, key = normal(2, 7, 33), normal(2, MANY, 33)
    check_attention(
        query, key, normal(2, MANY, 5), normal(33, size=size), return_lse=True, backend=backend
    )


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_huge_and_tiny_values(backend: str, size: float) -> None:
    query, key = normal(2, 7, 33), normal(2, MANY, 33)
    check_attention(
        query, key, normal(2, MANY, 5, size=size), normal(33, size=0.2), backend=backend
    )


@pytest.mark.parametrize("n", [1, 33])
@pytest.mark.parametrize("score", [0.5, 2.9])
def test_a_late_value_near_the_largest_number(backend: str, n: int, score: float) -> None:
    """Exponentials of scores beyond the maximum so far must stay small."""
    query, key, value = torch.zeros(1, n, 1), torch.zeros(1, 100, 1), torch.zeros(1, 100, 3)
    key[0, 90], value[0, 90] = 30, 1e38
    weight = torch.tensor([score])
    context = additive_attention(query, key, value, weight, backend=backend)
    share = torch.tensor(score, dtype=F64).exp()
    wanted = (1e38 * share / (share + 99)).expand(1, n, 3)
    torch.testing.assert_close(context.double(), wanted, rtol=1e-5, atol=0)


def test_scores_at_the_seams(backend: str) -> None:
    sums = torch.tensor(SEAMS, dtype=F64)
    for offset in (0.0, 42.0, 60.0):
        query, key, _, weight = around(sums, offset, (1, 40, 70, len(SEAMS), 1))
        check_scores(query, key, weight, backend=backend)


def test_units_near_their_ends(backend: str) -> None:
    """The slopes of sigmoid are small there, and those of a shared reciprocal are rounded."""
    query, key = torch.zeros(1, 1), torch.linspace(-16, -4, 1000).unsqueeze(-1)
    inputs = query.requires_grad_(), key.requires_grad_(), torch.ones(1)
    check_scores(*inputs, activation="sigmoid", backend=backend)


@pytest.mark.parametrize("offset", [40.0, 60.0, 80.0])
def test_exponentials_of_large_inputs(backend: str, offset: float) -> None:
    """Their arguments are large, and rounded by more than the sum of query and key."""
    query, key = offset + torch.randn(20, 1), torch.randn(9, 1) - offset
    check_scores(query, key, torch.ones(1), activation="sigmoid", backend=backend)
