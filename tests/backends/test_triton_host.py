"""The host side of the Triton backend: leading dimensions and the choice of a tile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.inputs import make

from attnkernels import additive_attention
from attnkernels.backends import BACKENDS, select
from attnkernels.backends.base import Problem

pytest.importorskip("triton", reason="the package triton is not installed")

from attnkernels.backends.triton.host import call, configs, geometry, sines
from attnkernels.backends.triton.host.launch import Target
from attnkernels.ops.codes import activation_code
from attnkernels.ops.series import SERIES


def test_neighbouring_dimensions_become_one() -> None:
    dense, strided = torch.empty(2, 3, 4, 5, 6), torch.empty(2, 4, 3, 5, 6).transpose(1, 2)
    owned = [geometry.lead_of(x, 2) for x in (dense, strided)]
    assert geometry.merged((2, 3, 4), owned[:1]) == ((24,), (30,))
    assert geometry.merged((2, 3, 4), owned) == ((4, 3, 2), (30, 120, 360), (90, 30, 360))


def test_a_dimension_that_broadcasts_has_no_stride() -> None:
    owned = [geometry.lead_of(torch.empty(shape), 1) for shape in ((7, 3, 9), (3, 9), (7, 1, 9))]
    assert geometry.merged((7, 3), owned) == ((3, 7), (9, 27), (9, 0), (0, 9))
    assert geometry.merged((1, 1), owned[:0]) == ((1,),)
    assert geometry.merged((), [geometry.lead_of(None, 2)]) == ((1,), (0,))


@pytest.mark.parametrize(
    "shape, tile",
    [
        ((8, 1024, 1024), (64, 64)),
        ((8, 256, 256), (32, 32)),  # too few tiles of the largest size
        ((8, 50, 50), (16, 16)),
        ((4096, 20, 20), (32, 32)),  # enough of any size; the largest would be mostly padding
    ],
)
def test_the_tile_follows_from_the_sizes(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], tile: tuple[int, int]
) -> None:
    monkeypatch.setattr(call, "target", lambda device: Target("cuda", 32, 132))
    batch, n, m = shape
    with torch.device("meta"):
        inputs = torch.empty(batch, n, 8), torch.empty(batch, m, 8), torch.empty(8)
    tiles = configs.parse("64x64x16x4,32x32x8x2,16x16x8x1")
    chosen = call.Call(*inputs, activation=0, negative_slope=0.2, scale=1.0).tile(tiles)
    assert (chosen.BI, chosen.BJ) == tile


@pytest.mark.parametrize(
    "capability, shape, forward, backward",
    [
        (9, (8, 1024, 1024), configs.LARGE_SINE_TILE, configs.SINE_TILE),
        (10, (8, 1024, 1024), configs.SINE_TILE, configs.SINE_TILE),
        (8, (8, 1024, 1024), None, None),
        (9, (8, 50, 50), None, None),  # few tiles: small ones are exact
        (9, (4096, 32, 32), None, None),  # large ones would be padding
        (9, (140, 60, 128), configs.SINE_TILE, configs.SINE_TILE),
    ],
)
def test_where_sines_pay(
    monkeypatch: pytest.MonkeyPatch,
    capability: int,
    shape: tuple[int, int, int],
    forward: configs.Tile | None,
    backward: configs.Tile | None,
) -> None:
    monkeypatch.setattr(call, "target", lambda device: Target("cuda", 32, 132, capability))
    batch, n, m = shape
    with torch.device("meta"):
        inputs = torch.empty(batch, n, 256), torch.empty(batch, m, 256), torch.empty(256)
    for precision in ("exact", "fast"):
        code = activation_code("tanh", precision)
        made = call.Call(*inputs, activation=code, negative_slope=0.2, scale=1.0)
        found = made.tile(configs.TILES, forward=True), made.tile(configs.backward_tiles())
        for tile, by_sines in zip(found, (forward, backward), strict=True):
            if precision == "fast" and by_sines is not None:
                assert tile == by_sines
            else:
                assert tile in configs.TILES


def test_the_table_of_sines() -> None:
    rows = sines.table(torch.device("cpu"))
    assert rows is sines.table(torch.device("cpu")) and rows.dtype == torch.float32
    for row, each in zip(rows.tolist(), SERIES, strict=True):
        head = [each.step, each.linear, *each.sines]
        assert row[: len(head)] == pytest.approx(head, rel=1e-6)
        assert not any(row[len(head) :]) and len(row) >= 2 + 24  # in groups of four


def test_rows_that_are_far_apart_are_copied() -> None:
    """Offsets inside a tile have 32 bits."""
    near = torch.empty(1000, 3, device="meta")
    far = torch.empty(2, 1 << 26, device="meta")[:, :3]
    assert call._near(near) is near and call._near(far).is_contiguous()


@pytest.mark.parametrize("text", ["", "64x64", "64x64x16xfour", "64x64x16x4,", "16x16x8x1"])
def test_tiles_that_cannot_be_used(text: str) -> None:
    with pytest.raises(ValueError, match="ATTNKERNELS_TILES must"):
        configs.parse(text)


def test_where_it_is_taken() -> None:
    assert select(Problem("cuda", torch.float32), "triton").NAME == "triton"
    assert select(Problem("cuda", torch.float64)).NAME == "reference"
    triton = next(each for each in BACKENDS if each.NAME == "triton")
    assert triton.why_not(Problem("xpu", torch.float32)) == "it runs on cuda tensors, not on xpu"


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="CPU tensors are interpreted")
def test_a_cpu_tensor_is_told_why_not() -> None:
    with pytest.raises(
        ValueError, match="'triton' cannot be used: it runs on cuda tensors, not on"
    ):
        additive_attention(*make((1, 2, 3, 4, 5)), backend="triton")


def test_shapes_without_data() -> None:
    inputs = [x.to("meta") for x in make((2, 3, 5, 8, 7), torch.bfloat16)]
    context, lse = additive_attention(*inputs, return_lse=True, backend="triton")
    assert context.shape == (2, 3, 7) and context.dtype == torch.bfloat16
    assert lse.shape == (2, 3) and lse.dtype == torch.float32
    gradients = torch.autograd.grad(context.sum() + lse.sum(), inputs[:4], allow_unused=True)
    assert all(g is None or g.shape == x.shape for g, x in zip(gradients, inputs, strict=True))


def test_sums_that_are_only_compiled() -> None:
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), str(tests.parent)])
    done = subprocess.run(
        [sys.executable, "-m", "helpers.triton_products"],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
