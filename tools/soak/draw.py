"""Draw a case: corners and tile boundaries often, everything else sometimes."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from math import prod
from typing import Any, TypeVar

from attnkernels.ops.codes import ACTIVATIONS

from .case import LIMITS, Case, Operand, Shape

T = TypeVar("T")

_ROWS = (1, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
_KEYS = (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 257)
_WIDTHS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130)
_CALLS = ("attention",) * 5 + ("attend", "attend", "varlen", "varlen", "scores", "vmap")
_SIZES: tuple[float | str, ...] = (
    *(1.0,) * 9,
    *(0.0, 0.001, 4.0, 12.0, 40.0, 100.0, 10000.0, "opposite"),
)
_HALF_SIZES = (1.0, 1.0, 1.0, 0.0, 0.001, 4.0, 12.0, 40.0)  # products of larger ones overflow
_ROWS_EXPANDED = "rows expanded"
_EQUAL_VALUES = 8  # more of them round alike: errors of a sum, the reference's too, grow with m
_EQUAL_TERMS = 4  # likewise, where the reference is the oracle and its errors count as one band
_LAYOUTS = ("transposed", "sliced", "batch last", _ROWS_EXPANDED, "columns expanded")
_OUTPUTS = ("context", "weights", "lse")


@cache
def _not_above(most: float, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in sizes if size <= max(1, most))


def draw(seed: int, number: int, backend: str = "native") -> Case:
    """Return case `number` of `seed` within the limits of `backend`, one of `LIMITS`."""
    return _Draw(seed, number, backend).case()


class _Draw:
    def __init__(self, seed: int, number: int, backend: str) -> None:
        self._seed, self._number, self._backend = seed, number, backend
        self._random = random.Random(f"{seed}/{number}")

    def case(self) -> Case:
        limits = LIMITS[self._backend]
        call, dtype = self._one_of(_CALLS), self._one_of(limits.dtypes)
        lead = self._lead(call)
        units = self._one_of((limits.units[0],) * 90 + (limits.units[1],) * 9 + (limits.units[2],))
        sizes, sequences = self._sizes(call, prod(lead) or 1, units)
        n, m, d, dv = sizes
        size = self._one_of(_HALF_SIZES if dtype == "float16" else _SIZES)
        operands = self._operands(lead, sizes, size, with_value=call != "scores")
        equal = {"value": (m > _EQUAL_VALUES, _ROWS_EXPANDED)}
        if dtype == "float64":
            equal["query"] = n > _EQUAL_TERMS, _ROWS_EXPANDED
            equal["key"] = m > _EQUAL_TERMS, _ROWS_EXPANDED
            equal["weight"] = d > _EQUAL_TERMS, "columns expanded"
        for name, (too_many, layout) in equal.items():
            if too_many and name in operands and operands[name].layout == layout:
                operands[name] = replace(operands[name], layout="plain")
        options = self._options(call, d)
        mask, excluded, padding, lengths = "none", "none", "numbers", None
        if call not in ("varlen", "scores"):
            mask = self._one_of(("none", "none", "bool", "float"))
            if mask != "none":
                excluded = self._one_of(("none", "some", "some", "rows", "most"))
                operands["attn_mask"] = self._mask(lead, n, m)
            if self._chance(0.3):
                lengths = Operand(self._narrow(lead), self._layout(len(lead)))
                padding = self._one_of(("numbers", "nan"))
                if padding == "nan":  # only some rows have it: they cannot share their memory
                    for name in ("key", "value"):
                        if "expanded" in operands[name].layout:
                            operands[name] = replace(operands[name], layout="sliced")
        lengths_dtype = self._one_of(("int32", "int64"))
        operands = self._wanting(operands, mask)
        through = self._through(call, options)
        parallel = "dropout_p" not in options and self._chance(0.03)
        return Case(
            seed=self._seed,
            number=self._number,
            backend=self._backend,
            tensor_seed=self._random.getrandbits(63),
            call=call,
            dtype=dtype,
            lead=lead,
            sizes=sizes,
            sequences=sequences,
            operands=operands,
            options=options,
            size=size,
            mask=mask,
            excluded=excluded,
            lengths=lengths,
            lengths_dtype=lengths_dtype if lengths or call == "varlen" else "none",
            padding=padding,
            through=through,
            gradient_layout=self._one_of(
                ("plain", "plain", "transposed", "sliced", "batch last", "expanded")
            ),
            nan=self._nan(
                operands, mask, bool(lengths) or not all(map(all, (sizes[:2], *sequences)))
            ),
            threads=2 if self._chance(0.1 if units == limits.units[0] else 0.7) else 1,
            callers=limits.callers if parallel else 1,
            deterministic=parallel or self._chance(0.5),
        )

    def _one_of(self, values: tuple[T, ...]) -> T:
        return values[int(self._random.random() * len(values))]

    def _up_to(self, most: float, sizes: tuple[int, ...]) -> int:
        return self._one_of(_not_above(most, sizes))

    def _chance(self, p: float) -> bool:
        return self._random.random() < p

    def _lead(self, call: str) -> Shape:
        sizes = (1, 2, 2, 3)
        lead = tuple(self._one_of(sizes) for _ in range(self._one_of((0, 0, 1, 1, 1, 2, 2, 3))))
        if call == "vmap":  # it maps over the first, which must have entries
            return lead or (self._one_of(sizes),)
        return (0, *lead[1:]) if lead and self._chance(0.02) else lead

    def _sizes(
        self, call: str, entries: int, units: int
    ) -> tuple[tuple[int, int, int, int], tuple[tuple[int, int], ...]]:
        """Return n, m, d, dv and the sequences of a packed call, within `units`."""
        # Choose these once: a size that is drawn again until all fit would be 0 too often.
        count = self._one_of((0, 1, 2, 2, 3, 3, 4, 5)) if call == "varlen" else 1
        empty = [(self._chance(p), self._chance(p)) for p in [0.1 if count > 1 else 0.02] * count]
        dv_is_0 = self._chance(0.02)
        most = 300.0
        while True:
            most *= 0.97  # so that it ends, with sizes of 1
            d, dv = self._up_to(most, _WIDTHS), 0 if dv_is_0 else self._up_to(most, _WIDTHS)
            sequences = tuple(
                (0 if no_n else self._up_to(most, _ROWS), 0 if no_m else self._up_to(most, _KEYS))
                for no_n, no_m in empty
            )
            n, m = sum(n for n, _ in sequences), sum(m for _, m in sequences)
            if entries * n * m * (d + dv) <= units:
                return (n, m, d, dv), sequences if call == "varlen" else ()

    def _operands(
        self, lead: Shape, sizes: tuple[int, int, int, int], size: float | str, with_value: bool
    ) -> dict[str, Operand]:
        n, m, d, dv = sizes
        of_pairs = 1.0 if size == "opposite" else float(size)
        shift = 60.0 if size == "opposite" else 0.0  # exp(2 q) alone overflows
        of_weight = self._one_of((1.0, 1.0, 1.0, 0.0, 10.0)) * d**-0.5
        shapes = {
            "query": Operand((n, d), size=of_pairs, shift=shift),
            "key": Operand((m, d), size=of_pairs, shift=-shift),
            "value": Operand((m, dv), size=self._one_of((1.0, 1.0, 1.0, 0.0, 100.0))),
            "weight": Operand((d,), size=of_weight),
        }
        if not with_value:
            del shapes["value"]
        return {
            name: replace(
                x, shape=(*self._narrow(lead), *x.shape), layout=self._layout(len(x.shape))
            )
            for name, x in shapes.items()
        }

    def _narrow(self, lead: Shape) -> Shape:
        """Return a shape that broadcasts to `lead`: itself, with sizes of 1, or shorter."""
        if self._chance(0.5):
            return lead
        kept = tuple(size if self._chance(0.6) else 1 for size in lead)
        return kept[self._random.randint(0, len(lead)) :]

    def _mask(self, lead: Shape, n: int, m: int) -> Operand:
        shape = (*self._narrow(lead), *(size if self._chance(0.8) else 1 for size in (n, m)))
        if self._chance(0.1):
            shape = shape[-1:]
        return Operand(shape, self._layout(len(shape)), self._one_of((1.0, 1.0, 10.0)))

    def _layout(self, rank: int) -> str:
        if self._chance(0.4) or rank == 0:
            return "plain"
        return self._one_of(_LAYOUTS if rank > 1 else ("sliced", "sliced", "columns expanded"))

    def _options(self, call: str, d: int) -> dict[str, Any]:
        options: dict[str, Any] = {
            "activation": self._one_of(tuple(ACTIVATIONS)),
            "negative_slope": self._one_of((0.2, 0.2, 0.01, 0.0, 1.0)),
            "scale": self._one_of((1.0, 1.0, 1.0, 0.125, 3.5, -1.0, 0.0)),
        }
        if call == "scores":
            return options
        if call != "attend" and self._chance(0.3):
            options["is_causal"] = True
        if call != "attend" and self._chance(0.3):
            sides = (-1, -1, 0, 1, 7, 40, 200)
            options["window_size"] = self._one_of(sides), self._one_of(sides)
        if call != "vmap" and self._chance(0.2):  # which has no dropout
            options["dropout_p"] = self._one_of((0.1, 0.1, 0.5, 0.5, 0.9, 1.0))
        if call != "varlen" and self._chance(0.4):
            options["return_weights"] = True
        if self._chance(0.4):
            options["return_lse"] = True
        return options

    def _wanting(self, operands: dict[str, Operand], mask: str) -> dict[str, Operand]:
        """Return the operands, of which all, none or some want a gradient."""
        p = self._one_of((1.0, 1.0, 0.5, 0.25, 0.0) if self._chance(0.7) else (0.2, 0.5))
        return {
            name: replace(
                x, wants_gradient=self._chance(p) and (name != "attn_mask" or mask == "float")
            )
            for name, x in operands.items()
        }

    def _nan(self, operands: dict[str, Operand], mask: str, may_be_empty: bool) -> str:
        """Return the operand that gets a NaN."""
        if not self._chance(0.05):
            return "none"
        name = self._one_of(tuple(operands))
        # a NaN of the weight times a sum over nothing, as for a padded key, may be NaN
        allowed = mask != "bool" if name == "attn_mask" else not (name == "weight" and may_be_empty)
        return name if allowed else "none"

    def _through(self, call: str, options: dict[str, Any]) -> tuple[str, ...]:
        """Return the outputs through which gradients enter."""
        if call == "scores":
            return ("scores",)
        made = [x for x in _OUTPUTS if x == "context" or options.get(f"return_{x}")]
        if self._chance(0.5):
            return tuple(made)
        return tuple(x for x in made if self._chance(0.6))
