"""The numbers of the contract: activations, wanted gradients, and the sizes that both sides use.

Each is defined here once for Python and once for C++, in csrc/common; tests/ops/test_codes.py holds
the two together.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Activation(NamedTuple):
    """A function f of (E1), as the kernels see it.

    A "logistic" activation is f(x) = 1 - span * r with r = 1 / (1 + exp(gain * x)), (E7), and one
    kernel serves all of them. A "pointwise" one is computed from x itself; gain and span are 1.
    """

    name: str
    code: int
    family: Literal["logistic", "pointwise"]
    gain: float = 1.0
    span: float = 1.0


TANH = Activation("tanh", 0, "logistic", gain=2.0, span=2.0)
SIGMOID = Activation("sigmoid", 1, "logistic")
RELU = Activation("relu", 2, "pointwise")
LEAKY_RELU = Activation("leaky_relu", 3, "pointwise")

ACTIVATIONS = {f.name: f for f in (TANH, SIGMOID, RELU, LEAKY_RELU)}

# Bits of the operators' argument `wanted`: the gradients to compute, and whether to add them in the
# same order each time where that costs something. A gradient that is not wanted has no elements.
QUERY, KEY, WEIGHT, VALUE, MASK = 1, 2, 4, 8, 16
DETERMINISTIC = 32

STEP_QUERIES = 4  # up to here a call is a decoder's step; beyond, it is worked through in tiles
PANEL = 32  # keys prepared together
LANE = 16  # d is rounded up to whole vectors of a panel
