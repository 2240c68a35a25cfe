"""Leading dimensions as the kernels take them: few, innermost first, one stride per tensor."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..device.rows import SCALE

Ints = tuple[int, ...]
Owned = tuple[Ints, Ints]  # the leading dimensions that a tensor itself has, and their strides


def lead_of(tensor: Tensor | None, trailing: int) -> Owned:
    """Return the leading dimensions of `tensor`: all but the last `trailing` ones."""
    if tensor is None:
        return (), ()
    own = tensor.dim() - trailing
    return tuple(tensor.shape[:own]), tensor.stride()[:own]


def contiguous(shape: Ints, unit: int) -> Owned:
    """Return those of a dense array of `shape` whose innermost index steps by `unit`."""
    strides = []
    for size in reversed(shape):
        strides.append(unit)
        unit *= size
    return tuple(shape), tuple(reversed(strides))


def merged(lead: Ints, owned: Sequence[Owned]) -> tuple[Ints, ...]:
    """Return (sizes, strides of each) of the dimensions `lead` that all broadcast to.

    The stride of a broadcast dimension is 0. Nothing is expanded or copied. Neighbours that every
    tensor lays out as one dimension become one: batch and heads of a dense call are one number.
    """
    rows = []
    for shape, strides in owned:
        own = [0 if size == 1 else stride for size, stride in zip(shape, strides, strict=True)]
        rows.append([0] * (len(lead) - len(own)) + own)
    sizes: list[int] = []
    kept: list[Ints] = []
    for dim in reversed(range(len(lead))):
        size, here = lead[dim], tuple(row[dim] for row in rows)
        if size == 1:
            continue
        if sizes and all(s == inner * sizes[-1] for s, inner in zip(here, kept[-1], strict=True)):
            sizes[-1] *= size
        else:
            sizes.append(size)
            kept.append(here)
    if not sizes:
        sizes, kept = [1], [(0,) * len(rows)]
    return tuple(sizes), *zip(*kept, strict=True)


def scaled(numbers: Ints) -> Ints:
    """Return sizes or strides as device/rows.py takes them."""
    return tuple(SCALE.value * each for each in numbers)
