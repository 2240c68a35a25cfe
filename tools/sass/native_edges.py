"""The loops over edges of the CUDA kernels, edge_*.cu: their cost, and how they load rows."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import Any

from tools.sass.loops import Inner, costs, count

VARIANT = "edges"
EDGES = 4  # of a pass of the loop
# The channels of a row that a lane holds, and the loads of 16 bytes for them in the inputs' dtype,
# by the template arguments for the dtype and the number of loads.
HELD = {"Float32, 1": (4, 1), "Float32, 2": (8, 2), "Bfloat16, 1": (8, 1), "Float16, 1": (8, 1)}
ACTIVATIONS = ("Logistic", "Rectifier")
# The tables of rows that a pass gathers from, in the inputs' dtype and in float32.
# A rectifier's second pass has the signs of q + k in place of the queries.
KEYS, KEYS_AND_VALUES, GRADIENTS, QUERIES_AND_GRADIENTS = (1, 0), (2, 0), (0, 1), (1, 1)
GATHERED = {
    **{
        f"{kernel}<{shape}, {one}, {act}>": KEYS if one == "true" else KEYS_AND_VALUES
        for kernel, shape, one, act in product(
            ("edge_forward_kernel", "edge_targets_kernel"), HELD, ("true", "false"), ACTIVATIONS
        )
    },
    **{
        f"edge_sources_kernel<{shape}, {act}>": (
            QUERIES_AND_GRADIENTS if act == "Logistic" else GRADIENTS
        )
        for shape, act in product(HELD, ACTIVATIONS)
    },
}
# The most that a loop may issue per edge and channel: that of a warp per edge and head of 32.
ISSUED = {"edge_forward_kernel": 48.0, "edge_targets_kernel": 88.0, "edge_sources_kernel": 40.0}

ABOUT = (
    "In a loop over edges an element is a channel of an edge and head, so that issued also counts"
    " the instructions of a warp per edge and head of 32 channels."
)


@dataclass(frozen=True)
class Loop(Inner):
    """A loop over edges, with its loads of 16 bytes from global memory per pass."""

    wide: int


def find(kernel: str, innermost: list[Counter[str]]) -> list[Inner]:
    """Return the loop over edges of a kernel of GATHERED: the one with most loads of 16 bytes."""
    wide = max(innermost, key=_wide, default=Counter[str]())
    if not _wide(wide):
        return []
    channels, _ = HELD[_shape(kernel)]
    found = costs(VARIANT, EDGES * channels, wide)
    return [Loop(**found.__dict__, wide=_wide(wide))]


def _wide(loop: Counter[str]) -> int:
    return count(loop, "LDG.E.128")


def _shape(kernel: str) -> str:
    shape = re.search(r"<(\w+, \d+)", kernel)
    assert shape is not None, kernel
    return shape[1]


def gathers(kernel: str) -> int:
    """Return the loads of 16 bytes with which a pass gathers its rows."""
    channels, loads = HELD[_shape(kernel)]
    inputs, floats = GATHERED[kernel]
    return EDGES * (inputs * loads + floats * channels // 4)


def checks(rows: list[Any], counted: bool) -> dict[str, list[str]]:
    """Return the failures of the assertions about rows of `native`, by sentence."""
    each = [(row, loop) for row in rows for loop in row.loops if isinstance(loop, Loop)]
    made = {
        "rows of edges are gathered 16 bytes at a time": [
            f"{row.kernel}: {loop.wide} loads of 16 bytes, not {gathers(row.kernel)} or more"
            for row, loop in each
            if loop.wide < gathers(row.kernel)
        ]
    }
    if counted:
        most = ", ".join(f"{name.split('_')[1]} {limit:g}" for name, limit in ISSUED.items())
        made[f"CUDA loops over edges: at most this many instructions: {most}"] = [
            f"{row.kernel}: {loop.issued:.2f}"
            for row, loop in each
            if loop.issued > ISSUED[row.kernel.partition("<")[0]]
        ]
    return made
