"""The table of sines, (E14), on the device of a call."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ....ops.series import SERIES
from ..device.sines import FEWEST, HEAD, LAST, WIDTH

# device/sines.py finds a series by arithmetic
assert [each.reach for each in SERIES] == [*range(2, int(LAST.value) + 1, 2)]
assert [len(each.sines) for each in SERIES] == [FEWEST.value + 2 * i for i in range(len(SERIES))]


@cache
def table(device: torch.device) -> Tensor:
    """Return float32 [series, WIDTH]: step, line and sines of each, then zeros."""
    with _disable_current_modes():  # or a recorded call would make it again
        return _rows().to(device)


def _rows() -> Tensor:
    rows = torch.zeros(len(SERIES), WIDTH.value)
    for row, each in zip(rows, SERIES, strict=True):
        row[: HEAD.value + len(each.sines)] = torch.tensor((each.step, each.linear, *each.sines))
    return rows
