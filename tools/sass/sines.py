"""The kernels that score by sines, (E14): what an element costs, and the rate that this allows.

An element takes the loop over two values of p as often as its series has pairs of sines, and a
share of the loop over 16 hidden units around it, which begins the recurrences. The rate is that of
`benchmarks.predict`: a scheduler with w warps issues w / (w + 0.6) instructions per clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple

from attnkernels.backends.triton.device.sine_sweep import GROUP
from attnkernels.backends.triton.device.sines import UNITS
from tools.sass.cubin import Function
from tools.sass.loops import Code, Inner

FORWARD = ("forward_kernel",)
BACKWARD = ("gradient_kernel", "sine_sweep_kernel", "value_kernel")
KERNELS = FORWARD + BACKWARD
SIZES = 1024, 256, 256  # m, d, dv of the call that is counted
LEAST_FORWARD, LEAST_BACKWARD = 60.0, 20.0  # elements per clock on sm_90
VARIANTS = ("two sines", "four sines", "around them")
SINES = 10  # of the series for |y| <= 8, which inputs of unit scale need
MADE = ("FFMA", "FMUL", "FADD", "F2FP", "MUFU", "MOV", "IMAD.MOV")  # instructions that make sines
PACKS = 8  # conversions to 16 bits, by which the loop over p is known
REGISTERS, SHARED, SCHEDULERS, LANES = 65536, 228 << 10, 4, 32
Loop = tuple[int, int]


class Cost(NamedTuple):
    """Instructions per element, those of them that make sines, and warps per scheduler."""

    issued: float
    made: float
    warps: float

    @property
    def clocks(self) -> float:
        """Clocks of a processor per element."""
        rate = SCHEDULERS * LANES * self.warps / (self.warps + 0.6)
        return self.issued / rate


def _around(code: Code, inner: Loop) -> list[Loop]:
    """Return the loops around one, the smallest first; of those that begin alike, the longest."""
    by_start = {a: (a, b) for a, b in sorted(code.loops) if a <= inner[0] and inner[1] <= b}
    return sorted((each for each in by_start.values() if each != inner), key=lambda x: x[1] - x[0])


def _innermost(code: Code) -> list[Loop]:
    def has_loop(a: int, b: int) -> bool:
        return any(a <= x and y <= b and (x, y) != (a, b) for x, y in code.loops)

    return [each for each in code.loops if not has_loop(*each)]


def _of(code: Code, loop: Loop, *beginnings: str) -> int:
    return sum(name.startswith(beginnings) for name in code.names[loop[0] : loop[1]])


def _size(loop: Loop) -> int:
    return loop[1] - loop[0]


def over_sines(code: Code) -> Loop | None:
    """Return the loop over values of p, or over the rows of a sweep, in a kernel that has one."""
    found = [
        each
        for each in _innermost(code)
        if _multiplies(code, each) and _of(code, each, "F2FP") >= PACKS
    ]
    return min(found, key=_size, default=None)


def _multiplies(code: Code, loop: Loop) -> bool:
    return any("MMA" in name for name in code.names[loop[0] : loop[1]])


def inner_loops(kernel: str, meta: dict[str, Any], threads: int, code: Code) -> list[Inner]:
    """Return the loops of a kernel that scores by sines, per element."""
    loop = over_sines(code)
    if loop is None:
        return []
    elements = _elements(kernel, meta, threads)

    def inner(variant: str, size: int, mufu: int, barriers: int) -> Inner:
        return Inner(variant, size / elements, mufu / elements, 0, barriers)

    own = _of(code, loop, "MUFU")
    two, four, around = VARIANTS
    variant = four if kernel == "sine_sweep_kernel" else two
    found = [inner(variant, _size(loop), own, _of(code, loop, "BAR"))]
    units = _around(code, loop)[0]
    rest = _size(units) - _size(loop), _of(code, units, "MUFU") - own, 0
    return [*found, inner(around, *rest)]


def _elements(kernel: str, meta: dict[str, Any], threads: int) -> float:
    if kernel == "sine_sweep_kernel":
        rows, columns = meta["OWN"], meta["OTHER"]
    else:
        RI, RJ, TI, TJ = meta["SHAPE"]
        rows, columns = RI * TI, RJ * TJ
    return rows * columns * UNITS.value / threads


def cost(
    kernel: str,
    meta: dict[str, Any],
    warps: int,
    function: Function,
    memory: int,
) -> Cost:
    """Return the cost of an element of the call; memory: bytes of shared memory of a program."""
    m, d, dv = SIZES
    code, threads = function.code, warps * LANES
    resident = min(REGISTERS // (function.registers * threads), SHARED // max(memory, 1))
    per_scheduler = max(resident, 1) * warps / SCHEDULERS
    if kernel == "value_kernel":
        (loop,) = (each for each in _innermost(code) if _multiplies(code, each))
        pairs = 32 * meta["BJ"] * meta["BV"] / threads
        return Cost(_size(loop) / pairs * dv / d, 0.0, per_scheduler)
    loop = over_sines(code)
    assert loop is not None, kernel
    made, around = _of(code, loop, *MADE), _around(code, loop)
    elements = _elements(kernel, meta, threads)
    if kernel == "sine_sweep_kernel":
        groups = ceil(SINES / GROUP.value)
        tiles = m / meta["OTHER"]
        rest = _size(around[0]) - _size(loop)
        each = groups * (_size(loop) + rest / tiles) / elements
        return Cost(each, groups * made / elements, per_scheduler)
    units = around[0]
    rest = _size(units) - _size(loop)
    each = (SINES / 2 * _size(loop) + rest) / elements
    made_each = (SINES / 2 * made + _of(code, units, *MADE) - made) / elements
    # once per tile: all else but the loops, of which those over columns of values run
    whole = around[-1] if len(around) > 1 else (0, len(code.names))
    inside = [x for x in code.loops if whole[0] <= x[0] and x[1] <= whole[1] and x != whole]
    outside = set(range(*whole)).difference(*(range(*x) for x in inside))
    values = [x for x in _innermost(code) if x in inside and x != loop and _multiplies(code, x)]
    once = len(outside) + sum(map(_size, values)) * dv / meta["BV"]
    return Cost(each + once / (elements / UNITS.value * d), made_each, per_scheduler)


Found = Sequence[tuple[str, Cost | None]]  # kernels and what they cost


def rate(found: Found, kernels: Sequence[str]) -> float:
    """Return elements per clock and processor of the kernels of one direction; 0 without any."""
    clocks = sum(cost.clocks for kernel, cost in found if cost and kernel in kernels)
    return 1 / clocks if clocks else 0.0


def lines(found: Found) -> list[str]:
    """Return what is said about a target that scores by sines."""
    costs = {kernel: cost for kernel, cost in found if cost}
    if FORWARD[0] not in costs:
        return []
    forward = costs[FORWARD[0]]
    return [
        f"By sines, |y| <= 8: {rate(found, FORWARD):.0f} elements/clk forward,"
        f" {rate(found, BACKWARD):.0f} backward; of {forward.issued:.2f} instructions forward"
        f" {forward.made:.2f} make sines, and tensor cores do {2 * SINES} multiply-adds."
    ]


def checks(found: Found) -> dict[str, list[str]]:
    """Return the limits of sm_90 with what misses them."""
    made = {}
    for name, kernels, least in (
        ("forward", FORWARD, LEAST_FORWARD),
        ("backward", BACKWARD, LEAST_BACKWARD),
    ):
        reached = rate(found, kernels)
        sentence = f"by sines, {name}: at least {least:g} elements per clock"
        made[sentence] = [] if reached >= least else [f"{reached:.1f}"]
    return made


def occur(loops: Sequence[Inner]) -> bool:
    """Return True for the loops of a kernel that scores by sines."""
    return any(loop.variant in VARIANTS for loop in loops)
