"""Scatter handwritten digits over canvases: scikit-learn's 1797 digits of 8 x 8 pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attnkernels.extras import needs

with needs("examples"):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

SIDE = 8  # of a digit, in pixels


class Digits(NamedTuple):
    """Digits: images (N, 8, 8), float32 in [0, 1], and labels (N,), int64."""

    images: Tensor
    labels: Tensor


class Canvases(NamedTuple):
    """Canvases with their digits, from left to right.

    Attributes:
        images: (B, 1, H, W), float32 in [0, 1].
        labels: (B, most), int64; -1 beyond the count.
        corners: (B, most, 2), int64: row and column of a digit's upper left pixel.
        counts: (B,), int64, from 1 to most.
    """

    images: Tensor
    labels: Tensor
    corners: Tensor
    counts: Tensor


def split(test_share: float = 0.2) -> tuple[Digits, Digits]:
    """Return the digits for training and those for the test, always the same ones."""
    found = load_digits()
    images = torch.tensor(found.images / 16, dtype=torch.float32)
    labels = torch.tensor(found.target, dtype=torch.int64)
    train, test = train_test_split(
        range(len(labels)), test_size=test_share, random_state=0, stratify=found.target
    )
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])


def scatter(
    digits: Digits,
    batch: int,
    *,
    generator: torch.Generator,
    most: int = 5,
    size: tuple[int, int] = (32, 48),
    apart: int = 5,
) -> Canvases:
    """Make canvases with one to ``most`` digits, equally likely, at uniformly drawn places.

    Places are drawn until no digits overlap and their left edges are at least ``apart`` pixels
    apart, so that their order from left to right is clear.

    Args:
        digits: the digits to draw from.
        batch: number of canvases.
        generator: source of all random numbers.
        size: height and width of a canvas.

    Raises:
        ValueError: ``most`` digits at that distance do not fit.
    """
    height, width = size
    if (most - 1) * apart + SIDE > width or height < SIDE:
        raise ValueError(f"{most} digits {apart} pixels apart do not fit into {height} x {width}")
    counts = torch.randint(1, most + 1, (batch,), generator=generator)
    there = torch.arange(most) < counts.unsqueeze(-1)
    corners = torch.zeros(batch, most, 2, dtype=torch.int64)
    wrong = torch.ones(batch, dtype=torch.bool)
    room = torch.tensor([height - SIDE + 1, width - SIDE + 1])
    while wrong.any():
        drawn = torch.rand(int(wrong.sum()), most, 2, generator=generator)
        corners[wrong] = (drawn * room).long()
        between = (corners.unsqueeze(1) - corners.unsqueeze(2)).abs()
        clash = (between < SIDE).all(-1) | (between[..., 1] < apart)
        pairs = there.unsqueeze(1) & there.unsqueeze(2) & ~torch.eye(most, dtype=torch.bool)
        wrong = (clash & pairs).flatten(1).any(1)
    columns = corners[..., 1].masked_fill(~there, width)
    order = columns.argsort(1)
    corners = corners.gather(1, order.unsqueeze(-1).expand_as(corners))

    chosen = torch.randint(len(digits.labels), (batch, most), generator=generator)
    images = torch.zeros(batch, 1, height, width)
    canvas, place = there.nonzero(as_tuple=True)  # sorted, so that present digits come first
    row, column = corners[canvas, place].unbind(-1)
    pixel = torch.arange(SIDE)
    images[
        canvas[:, None, None],
        0,
        row[:, None, None] + pixel[:, None],
        column[:, None, None] + pixel,
    ] = digits.images[chosen[canvas, place]]
    labels = digits.labels[chosen].masked_fill(~there, -1)
    return Canvases(images, labels, corners, counts)
