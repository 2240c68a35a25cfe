"""The checks of single arguments, with one form of message: NAME must be WANTED, got GIVEN.

Every module above raises its TypeError and ValueError through these functions, so that a message
always names the argument, what is wanted and what was given. `arguments` combines them into one
check per public function.
"""

from __future__ import annotations

from collections.abc import Collection
from math import inf
from numbers import Integral, Real
from typing import Any, get_args

import torch
from torch import Tensor

from ..ops.codes import ACTIVATIONS, PrecisionName

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int32, torch.int64)
PRECISIONS = get_args(PrecisionName)
_ACTIVATIONS = tuple(ACTIVATIONS)
_NUMBERS = (float, int, torch.SymFloat, torch.SymInt)


def number(name: str, value: Any, low: float = -inf, high: float = inf) -> Any:
    """Return `value`, NumPy's as Python's, if it is a finite number in [low, high].

    A bool is not a number.

    Raises:
        TypeError: it is not a number.
        ValueError: it is outside the range, or NaN or infinite.
    """
    if type(value) is not float:
        if isinstance(value, bool) or not (isinstance(value, _NUMBERS) or _of_numpy(value, "fiu")):
            raise TypeError(f"{name} must be a number, got {type_name(value)}")
        if type(value) is not int and not isinstance(value, (torch.SymFloat, torch.SymInt)):
            value = int(value) if isinstance(value, Integral) else float(value)
    if not (low <= value <= high and -inf < value < inf):
        raise ValueError(f"{name} must {_range(low, high)}, got {value}")
    return value


def _of_numpy(value: object, kinds: str) -> bool:
    """Return True for a scalar of NumPy whose dtype is of one of those kinds."""
    return isinstance(value, Real) and getattr(getattr(value, "dtype", None), "kind", "-") in kinds


def _range(low: float, high: float) -> str:
    if high < inf:
        return f"lie in [{low:g}, {high:g}]"
    return f"be finite and at least {low:g}" if low > -inf else "be finite"


def integer(name: str, value: Any) -> int:
    """Return `value` as an int; raise TypeError unless it is one, NumPy's included, and no bool."""
    if type(value) is not int:
        if isinstance(value, bool) or not (isinstance(value, int) or _of_numpy(value, "iu")):
            raise TypeError(f"{name} must be an int, got {type_name(value)}")
        value = int(value)
    return value


NO_WINDOW = (-1, -1)  # the window_size of a call without a window


def window(is_causal: object, window_size: Any) -> tuple[int | None, int | None]:
    """Return how many keys before and after a query take part, where None is no limit.

    Raises:
        TypeError: is_causal is no bool.
        ValueError: window_size is no pair of ints of at least -1.
    """
    if is_causal is not True and is_causal is not False:
        flags(is_causal=is_causal)
    if window_size is NO_WINDOW:  # the default, seen in a fifth of the time
        return None, 0 if is_causal else None
    try:
        left, right = (integer("window_size", limit) for limit in window_size)
    except (TypeError, ValueError):
        left = right = -2
    if left < -1 or right < -1 or max(left, right) >= 1 << 63:
        raise ValueError(
            "window_size must be a pair (left, right) of ints of at least -1, which is no limit, "
            f"got {window_size!r}"
        )
    return None if left < 0 else left, 0 if is_causal else None if right < 0 else right


def positive_int(name: str, value: Any) -> int:
    """Return `value` as an int; raise ValueError unless it is an `integer` of at least 1."""
    try:
        found = integer(name, value)
    except TypeError:
        found = 0
    if found < 1:
        raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
    return found


def multiple(name: str, value: int, of: str, divisor: int) -> None:
    """Raise ValueError unless `value` is a multiple of `divisor`, the argument `of`."""
    if value % divisor:
        raise ValueError(f"{name} must be a multiple of {of}, {divisor}, got {value}")


def type_name(value: object) -> str:
    """Return the type of an argument, as messages name it."""
    of = type(value)
    if of.__module__ == "numpy":
        return f"numpy.{of.__name__}"
    if of.__name__ == "Proxy" and of.__module__.startswith("torch.fx"):
        return (
            "a torch.fx.Proxy: use torch.export, or make the module a leaf of the tracer"
            " (torch.fx.Tracer.is_leaf_module), the function one of torch.fx.wrap"
        )
    return of.__name__


def flags(**values: object) -> None:
    """Raise TypeError unless every one of the named `values` is True or False."""
    for name, value in values.items():
        if value is not True and value is not False:
            raise TypeError(f"{name} must be a bool, got {type_name(value)}")


def choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        names = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {names}, got {value!r}")


def instance(name: str, value: object, kind: type, wanted: str | None = None) -> None:
    """Raise TypeError unless `value` is a `kind`, which the message calls `wanted`."""
    if not isinstance(value, kind):
        wanted = wanted or f"of type {kind.__name__}"
        raise TypeError(f"{name} must be {wanted}, got {type_name(value)}")


def tensor(
    name: str,
    x: object,
    symbols: str = "",
    shape: tuple[int | None, ...] | None = None,
    dtype: tuple[torch.dtype, ...] = (),
) -> None:
    """Raise unless `x` is a dense tensor of that shape and of one of those dtypes.

    Args:
        name: the name of the argument, for the message.
        x: the argument.
        symbols: the shape as the documentation writes it, such as "(B, m, key_dim)".
        shape: the sizes wanted; None stands for any size. Any shape by default.
        dtype: the dtypes accepted. Any dtype by default.

    Raises:
        TypeError: it is not a dense tensor, or has another dtype.
        ValueError: it has another shape.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor{symbols and ' ' + symbols}, got {type_name(x)}")
    if type(x).__name__ == "DTensor":
        raise TypeError(
            f"{name} must be a plain tensor, got a DTensor: call this on the local shards, with "
            "torch.distributed.tensor.experimental.local_map"
        )
    if x.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {x.layout}")
    if x.is_nested:  # its layout is strided too, but it has no shape
        raise TypeError(f"{name} must be a dense (strided) tensor, got a nested one")
    if dtype and x.dtype not in dtype:
        raise TypeError(f"{name} must be {_either(dtype)}, got {x.dtype}")
    if shape is not None and not _has(x, shape):
        sizes = ", ".join("*" if size is None else str(size) for size in shape)
        sizes = f"({sizes},)" if len(shape) == 1 else f"({sizes})"
        wanted = f"{symbols} = {sizes}" if symbols else sizes
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(x.shape)}")


def _has(x: Tensor, shape: tuple[int | None, ...]) -> bool:
    given = x.shape
    if len(given) != len(shape):
        return False
    for size, wanted in zip(given, shape, strict=True):  # in half the time of all()
        if wanted is not None and size != wanted:
            return False
    return True


def _either(dtypes: tuple[torch.dtype, ...]) -> str:
    *others, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    return f"{', '.join(others)} or {last}" if others else last


def integers(
    name: str, x: object, symbols: str = "", shape: tuple[int | None, ...] | None = None
) -> None:
    """Raise as `tensor` does unless `x` is an int32 or int64 tensor of that shape."""
    tensor(name, x, symbols, shape, INTEGERS)


def mask(name: str, x: Tensor, floating: torch.dtype | None = None) -> None:
    """Raise TypeError unless `x` is a bool tensor, or floating (of dtype `floating` if given)."""
    tensor(name, x)
    if x.dtype is torch.bool or x.dtype is floating:
        return
    if floating is not None:
        raise TypeError(
            f"{name} must be bool or have the dtype of query, {floating}, got {x.dtype}"
        )
    if not x.is_floating_point():
        raise TypeError(f"{name} must be bool or floating, got {x.dtype}")


def within(name: str, x: Tensor, low: int, high: int, why: str) -> None:
    """Raise ValueError unless the entries of `x` lie in [low, high]; check on a CPU only."""
    values = readable(x)
    if values and not (low <= min(values) and max(values) <= high):
        raise ValueError(
            f"{name} must lie in [{low}, {high}] ({why}), "
            f"got values from {min(values)} to {max(values)}"
        )


def position(name: str, x: Tensor | int, most: int, why: str, key: Tensor) -> Tensor:
    """Return a position among the rows of `key`, from 0 to `most`, as a tensor of integers.

    Raises:
        TypeError: `x` is neither an int nor a tensor of int32 or int64.
        ValueError: `x` is on another device, or out of range (of a tensor, checked on a CPU only).
    """
    if isinstance(x, Tensor):
        integers(name, x)
        same_device(name, x, key)
        within(name, x, 0, most, why)
        return x
    if not isinstance(x, torch.SymInt):  # whose value a trace leaves open
        x = integer(name, x)
        if not 0 <= x <= most:
            raise ValueError(f"{name} must lie in [0, {most}] ({why}), got {x}")
    return key.new_full((), x, dtype=torch.int64)


def same_device(name: str, x: Tensor, other: Tensor) -> None:
    """Raise ValueError unless `x` is on the device of `other`."""
    if x.is_cpu and other.is_cpu:  # a tenth of the time of asking for devices
        return
    if x.device != other.device:
        raise ValueError(
            f"{name} must be on the device of the other tensors, {other.device}, got {x.device}"
        )


def scoring(
    activation: object, negative_slope: Any, scale: Any, precision: object = "exact"
) -> tuple[Any, Any]:
    """Return the slope and the scale, NumPy's as Python's, if these are options of a score, (E1).

    Raises:
        TypeError: a number has the wrong type.
        ValueError: the activation or the precision is unknown, or a number is out of range.
    """
    if type(activation) is str and type(negative_slope) is float and type(scale) is float:
        known = activation in ACTIVATIONS and (precision == "exact" or precision == "fast")
        if known and 0 <= negative_slope <= 1 and -inf < scale < inf:
            return negative_slope, scale  # in a third of the time
    choice("activation", activation, _ACTIVATIONS)
    choice("precision", precision, PRECISIONS)
    return number("negative_slope", negative_slope, 0, 1), number("scale", scale)


def readable(x: Tensor) -> list[int] | None:
    """Return the values, or None if reading them would wait for a device or break a trace."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or not x.is_cpu:
        return None
    try:
        return x.tolist() if x.dim() == 1 else x.flatten().tolist()
    except RuntimeError:  # batched by vmap or recorded by make_fx
        return None
