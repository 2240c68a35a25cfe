"""One random case, as numbers and names: a pure function of its seed and number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attnkernels.ops.codes import ACTIVATIONS

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """The limits of a backend.

    Attributes:
        dtypes: one of them is drawn for each case.
        units: the hidden units and value columns of all pairs, in a usual case, in a large one (one
            of ten), and in a huge one (one of a hundred).
        callers: the Python threads of a case that has several.
    """

    dtypes: tuple[str, ...]
    units: tuple[int, int, int]
    callers: int = 3


_HALVES = ("bfloat16", "float16")
LIMITS = {
    "native": Limits(("float32", "float32", *_HALVES, "float64"), (12_000, 80_000, 600_000)),
    "reference": Limits(("float32", "float32", *_HALVES, "float64"), (6_000, 12_000, 24_000)),
    "emulated": Limits(("float32", "float32", *_HALVES), (6_000, 20_000, 80_000)),
    # Triton's interpreter keeps the place in the grid in a global variable
    "interpreted": Limits(("float32", "float32", *_HALVES), (500, 1_500, 5_000), callers=1),
}

# Every value of every option, as `Case.tags` names them. tests/tools/test_soak.py looks for each.
VALUES: dict[str, tuple[str, ...]] = {
    "call": ("attention", "attend", "varlen", "scores", "vmap"),
    "dtype": ("float32", "bfloat16", "float16", "float64"),
    "activation": tuple(ACTIVATIONS),
    "slope": ("0.0", "0.01", "0.2", "1.0"),
    "scale": ("-1.0", "0.0", "0.125", "1.0", "3.5"),
    "mask": ("none", "bool", "float"),
    "mask rows": ("all", "one"),
    "mask columns": ("all", "one"),
    "excluded": ("none", "some", "rows", "most"),
    "lengths": ("none", "int32", "int64"),
    "padding": ("numbers", "nan"),
    "causal": ("no", "yes"),
    "window": ("none", "left", "right", "left, right"),
    "dropout": ("0.0", "0.1", "0.5", "0.9", "1.0"),
    "returns": ("context", "context, lse", "context, weights", "context, weights, lse"),
    "through": (
        *("nothing", "context", "weights", "lse", "context, lse", "context, weights"),
        *("weights, lse", "context, weights, lse", "scores"),
    ),
    "leading": ("0", "1", "2", "3"),
    "broadcast": ("none", "query", "key", "value", "weight", "attn_mask", "several"),
    "layout": ("plain", "transposed", "sliced", "batch last", "rows expanded", "columns expanded"),
    "gradient layout": ("plain", "transposed", "sliced", "batch last", "expanded"),
    "wants": ("all", "none", "query", "key", "value", "weight", "attn_mask", "several"),
    "size": ("0.0", "0.001", "1.0", "4.0", "12.0", "40.0", "100.0", "10000.0", "opposite"),
    "nan": ("none", "query", "key", "value", "weight", "attn_mask"),
    "zero": ("none", "n", "m", "dv", "leading"),
    "edge": ("none", "31..33", "63..65", "127..129"),
    "threads": ("1", "2"),
    "callers": ("1", "3"),
    "deterministic": ("no", "yes"),
}

TRAILING = {"query": 2, "key": 2, "value": 2, "weight": 1, "attn_mask": 2}


@dataclass(frozen=True)
class Operand:
    """A tensor of the call: its shape and strides, the size of its numbers, and its gradient."""

    shape: Shape
    layout: str = "plain"
    size: float = 1.0
    shift: float = 0.0
    wants_gradient: bool = False


@dataclass(frozen=True)
class Case:
    """All that a case depends on; `tensor_seed` is that of its tensors' numbers."""

    seed: int
    number: int
    backend: str
    tensor_seed: int
    call: str
    dtype: str
    lead: Shape
    sizes: tuple[int, int, int, int]  # n, m, d, dv
    sequences: tuple[tuple[int, int], ...]  # of a packed call: queries and keys of each
    operands: dict[str, Operand]
    options: dict[str, Any]
    size: float | str
    mask: str
    excluded: str
    lengths: Operand | None
    lengths_dtype: str
    padding: str
    through: tuple[str, ...]
    gradient_layout: str
    nan: str
    threads: int
    callers: int
    deterministic: bool

    @property
    def command(self) -> str:
        """The command that runs this case alone."""
        return (
            f"python -m tools.soak --backend {self.backend} --seed {self.seed} --case {self.number}"
        )

    def tags(self) -> dict[str, list[str]]:
        """Return the values of `VALUES` that the case has, by option."""
        n, m, _, dv = self.sizes
        mask = self.operands.get("attn_mask")
        wants = [name for name, x in self.operands.items() if x.wants_gradient]
        narrow = [name for name in self.operands if self._is_broadcast(name)]
        returns = ["context"]
        returns += [x for x in ("weights", "lse") if self.options.get(f"return_{x}")]
        limits = zip(("left", "right"), self.options.get("window_size", ()), strict=False)
        sides = [side for side, limit in limits if limit >= 0]
        sizes = [*self.sizes, *(size for pair in self.sequences for size in pair)]
        edges = [f"{e - 1}..{e + 1}" for e in (32, 64, 128) if {e - 1, e, e + 1} & set(sizes)]
        empty = {"n": n == 0, "m": m == 0, "dv": dv == 0, "leading": 0 in self.lead}
        shapes = {"rows": -2, "columns": -1}
        found: dict[str, list[str]] = {
            "call": [self.call],
            "dtype": [self.dtype],
            "activation": [self.options["activation"]],
            "slope": [str(self.options["negative_slope"])],
            "scale": [str(self.options["scale"])],
            "mask": [self.mask],
            **{
                f"mask {which}": ["one" if len(mask.shape) < -at or mask.shape[at] == 1 else "all"]
                for which, at in shapes.items()
                if mask is not None
            },
            "excluded": [self.excluded],
            "lengths": [self.lengths_dtype],
            "padding": [self.padding],
            "causal": ["yes" if self.options.get("is_causal") else "no"],
            "window": [", ".join(sides) or "none"],
            "dropout": [str(self.options.get("dropout_p", 0.0))],
            "returns": [", ".join(returns)],
            "through": [", ".join(self.through) or "nothing"],
            "leading": [str(len(self.lead))],
            "broadcast": _one(narrow),
            "layout": sorted({x.layout for x in self.operands.values()}),
            "gradient layout": [self.gradient_layout],
            "wants": ["all"] if len(wants) == len(self.operands) else _one(wants),
            "size": [str(self.size)],
            "nan": [self.nan],
            "zero": [name for name, is_empty in empty.items() if is_empty] or ["none"],
            "edge": edges or ["none"],
            "threads": [str(self.threads)],
            "callers": [str(self.callers)],
            "deterministic": ["yes" if self.deterministic else "no"],
        }
        return found

    def _is_broadcast(self, name: str) -> bool:
        return self.operands[name].shape[: -TRAILING[name]] != self.lead


def _one(names: list[str]) -> list[str]:
    return [names[0] if len(names) == 1 else "several" if names else "none"]
