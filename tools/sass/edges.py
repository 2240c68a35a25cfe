"""The loops over edges, the cost of an edge and head in each, and assertions about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from tools.sass.loops import Inner, costs, count

# The most instructions per edge and head of 32 channels on sm_90, of a plain call in float32.
ISSUED = {"edge_forward_kernel": 600, "edge_target_kernel": 910, "edge_source_kernel": 600}
LOOP, NARROW = "edges", "edges, narrow loads"


class Row(Protocol):
    """A compiled kernel, as in tools/sass/run.py."""

    @property
    def kernel(self) -> str: ...
    @property
    def call(self) -> str: ...
    @property
    def meta(self) -> dict[str, Any]: ...
    @property
    def loops(self) -> list[Inner]: ...


def is_over_edges(kernel: str, meta: dict[str, Any]) -> bool:
    """Return True for a kernel whose innermost loop is over edges, not over columns of a row."""
    return kernel in ISSUED and bool(meta.get("WHOLE", True))


def classify(meta: dict[str, Any], threads: int, loop: Counter[str]) -> Inner | None:
    """Return the costs per edge and head of a loop, or None if it is not over edges."""
    if count(loop, "LDG") < 2 or count(loop, "FFMA") < 4:
        return None
    pairs = meta["BH"] * meta["BE"] / threads
    return costs(LOOP if count(loop, "LDG.E.128") else NARROW, pairs, loop)


def checks(found: Sequence[Row], plain: str) -> dict[str, list[str]]:
    """Return the assertions about the rows of a target; ISSUED is about the call `plain`."""
    rows = [row for row in found if is_over_edges(row.kernel, row.meta)]
    return {
        "every loop over edges is there, with loads of 16 bytes": [
            str(row) for row in rows if [x.variant for x in row.loops] != [LOOP]
        ],
        f"plain loops over edges: at most {', '.join(map(str, ISSUED.values()))} instructions": [
            f"{row}: {loop.issued:.0f}"
            for row in rows
            if row.call == plain
            for loop in row.loops
            if loop.issued > ISSUED[row.kernel]
        ],
    }
