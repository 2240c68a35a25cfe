"""The numbers of the contract: activations, wanted gradients, sizes and limits that kernels share.

Each is defined here once for Python and once for C++, in csrc/common; tests/ops/test_codes.py
compares the two.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

ActivationName: TypeAlias = Literal["tanh", "sigmoid", "relu", "leaky_relu"]
PrecisionName: TypeAlias = Literal["exact", "fast"]


class Activation(NamedTuple):
    """A function f of (E1), as the kernels see it.

    A "logistic" activation is f(x) = 1 - span * r with r = 1 / (1 + exp(gain * x)), (E7): one
    kernel serves all of them. A "pointwise" one is computed from x itself; gain and span are 1.
    """

    name: ActivationName
    code: int
    family: Literal["logistic", "pointwise"]
    gain: float = 1.0
    span: float = 1.0


_TABLE = (
    Activation("tanh", 0, "logistic", gain=2.0, span=2.0),
    Activation("sigmoid", 1, "logistic"),
    Activation("relu", 2, "pointwise"),
    Activation("leaky_relu", 3, "pointwise"),
)

OVER_EDGES: ActivationName = "leaky_relu"  # the default of attention over edges, as in GATv2

ACTIVATIONS: dict[str, Activation] = {f.name: f for f in _TABLE}
BY_CODE: dict[int, Activation] = {f.code: f for f in _TABLE}


# Added to the code of a logistic activation, it allows kernels to take f as a sum of sines, (E14),
# as precision="fast" asks for. Those that have no such form compute f itself.
FAST = 16


def find_activation(code: int) -> Activation:
    """Return the activation of `code`, whether or not `FAST` was added to it.

    Raises:
        RuntimeError: the code is not in the table; compiled kernels raise the same.
    """
    found = BY_CODE.get(code & ~FAST)
    if found is None or (code & FAST and found.family != "logistic"):
        known = ", ".join(f"{f.code} ({f.name})" for f in _TABLE)
        raise RuntimeError(f"activation must be one of {known}, got {code}")
    return found


def activation_code(name: ActivationName, precision: PrecisionName) -> int:
    """Return the code of an activation, with `FAST` where that is allowed and there are sines."""
    found = ACTIVATIONS[name]
    fast = precision == "fast" and found.family == "logistic"
    return found.code + FAST if fast else found.code


# Bits of the operators' argument `wanted`: the gradients to compute, and whether to sum in a fixed
# order even if that costs time. A gradient that is not wanted has no elements.
QUERY, KEY, WEIGHT, VALUE, MASK = 1, 2, 4, 8, 16
DETERMINISTIC = 32
EDGE_KEY, EDGE_BIAS = 64, 128
BLOCK = 256  # the keys are only some of those that the rows see: their weights need not sum to 1

STEP_QUERIES = 4  # a call with at most this many queries is a decoder's step; others run in tiles
PANEL = 32  # keys per group of prepared keys
LANE = 16  # d is rounded up to a multiple of this in prepared keys

# Limits of float32 for exponents y = gain * x (docs/math.md, "Ranges"): the product of four factors
# 1 + exp(y) and its reciprocal are normal numbers while y <= QUAD, those of two while y <= PAIR;
# exp(y) alone is one while |y| <= FACTORED. EXP_QUAD is exp(QUAD) in float32.
QUAD, PAIR, FACTORED = 21.8, 43.6, 86.0
EXP_QUAD = 2.9350784e9
