"""The arguments of modules: each is checked and normalised here, once.

The functions below check what the caller passed, and name it as the caller does: they raise
TypeError for a wrong type or dtype, ValueError for a wrong shape, device or value. What a module
passes on unchanged, such as a flag, is checked by the operator.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..backends import BACKENDS
from ..functional import checks
from ..ops.codes import PrecisionName

_STRIDED = torch.strided


class HasKeys(Protocol):
    """A module that projects keys."""

    key_dim: int
    num_heads: int
    key_proj: nn.Linear


class HasQueries(Protocol):
    """A module that projects queries."""

    query_dim: int
    query_proj: nn.Linear


def sizes(**values: Any) -> Any:
    """Return the named `values` as ints; raise ValueError unless all are ints of at least 1."""
    return tuple(checks.positive_int(name, value) for name, value in values.items())


def backend_name(name: str | None) -> None:
    """Raise ValueError unless `name` is None or the name of a backend."""
    if name is not None:
        checks.choice("backend", name, (None, *(backend.NAME for backend in BACKENDS)))


def precision_name(name: object) -> None:
    """Raise ValueError unless `name` is a precision of `additive_attention`."""
    checks.choice("precision", name, checks.PRECISIONS)


def shown_precision(name: PrecisionName) -> str:
    """Return what the `repr` of a module ends with: nothing for the default."""
    return "" if name == "exact" else f", precision={name!r}"


def features(name: str, x: Tensor, symbols: str, size: int) -> None:
    """Check that `x` has two dimensions or more and `size` features, the last of `symbols`."""
    checks.tensor(name, x)
    if x.ndim < 2 or x.shape[-1] != size:
        last = symbols.strip("()").split(", ")[-1]
        raise ValueError(
            f"{name} must have shape {symbols} with {last} = {size}, got {tuple(x.shape)}"
        )


def rows(module: nn.Module, name: str, x: Tensor, symbols: str, size: int, layer: str) -> None:
    """Check that `x` is a matrix of `size` features, of the dtype of one of the module's layers."""
    checks.tensor(name, x, symbols, (None, size))
    _parameters_dtype(name, x, module, layer)


def memory(
    module: HasKeys,
    name: str,
    key: Tensor,
    value: Tensor | None,
    lengths: Tensor | None,
    *,
    range_later: bool = False,
) -> tuple[Tensor, Tensor]:
    """Check the memory that a module attends to, and return the keys and values.

    Args:
        module: the module, which sets the sizes and the dtype.
        name: the name of the argument `key`.
        key: (B, m, key_dim).
        value: (B, m, value_dim), value_dim a multiple of the module's heads; None stands for key.
        lengths: (B,), or None.
        range_later: leave checking the range of the lengths to the operator.

    Returns:
        key, with zeros beyond the lengths, and value, or key again if value is None.
    """
    shape = _shape(key)
    if len(shape) != 3 or shape[2] != module.key_dim:
        checks.tensor(name, key, "(B, m, key_dim)", (None, None, module.key_dim))
    _parameters_dtype(name, key, module, "key_proj")
    batch, m, _ = shape
    if value is not None:
        checks.tensor("value", value, "(B, m, value_dim)", (batch, m, None))
        checks.same_device("value", value, key)
        if value.dtype is not key.dtype and _under_autocast(value) is not _under_autocast(key):
            raise TypeError(f"value must have the dtype of {name}, {key.dtype}, got {value.dtype}")
    if module.num_heads > 1:
        name, width = (name, module.key_dim) if value is None else ("value", value.shape[-1])
        checks.multiple(f"the last dimension of {name}", width, "num_heads", module.num_heads)
    if lengths is not None:
        checks.integers("key_lengths", lengths, "(B,)", (batch,))
        checks.same_device("key_lengths", lengths, key)
        if not range_later:
            checks.within("key_lengths", lengths, 0, m, "the number of keys")
        key = zero_padding(key, lengths)
    return key, key if value is None else value


def query(
    module: HasQueries, x: Tensor, batch: int, n: Literal["n", ""] = "n", name: str = "query"
) -> None:
    """Check a query (B, n, query_dim) of a memory of `batch`; without n, (B, query_dim)."""
    _query(module, x, _shape(x), batch, n, name)


def _query(
    module: HasQueries, x: Tensor, shape: tuple[int, ...], batch: int, n: str, name: str
) -> None:
    width = module.query_dim
    if len(shape) != (3 if n else 2) or shape[0] != batch or shape[-1] != width:
        if n:
            checks.tensor(name, x, "(B, n, query_dim)", (batch, None, width))
        else:
            checks.tensor(name, x, "(B, query_dim)", (batch, width))
    _parameters_dtype(name, x, module, "query_proj")


def query_or_queries(module: HasQueries, x: Tensor, batch: int) -> dict[str, int]:
    """Check a query (B, n, query_dim) or (B, query_dim); return {"n": n}, or {} without n."""
    shape = _shape(x)
    one = len(shape) == 2
    _query(module, x, shape, batch, "" if one else "n", "query")
    return {} if one else {"n": shape[1]}


def mask(attn_mask: Tensor | None, x: Tensor, **weights: int) -> Tensor | None:
    """Check the mask of any module by the operator's rule, and return it as autocast casts it.

    Args:
        attn_mask: bool (True takes part) or of the dtype of the query (added to the score; -inf
            excludes). Under autocast both are cast first. Any other dtype is a TypeError.
        x: the query.
        weights: the shape of the weights, which the mask broadcasts to: B=3, n=4, m=37. A mask
            has all of these dimensions, or that of the keys alone; leading ones of size 1 may be
            missing. Anything between could be of sequences, heads or queries, if their numbers
            happen to be equal.
    """
    if attn_mask is None:
        return None
    checks.tensor("attn_mask", attn_mask)
    if attn_mask.dtype is not torch.bool:
        wanted = _under_autocast(x)
        if _under_autocast(attn_mask) is not wanted:
            checks.mask("attn_mask", attn_mask, x.dtype)
        attn_mask = attn_mask.to(wanted)
    checks.same_device("attn_mask", attn_mask, x)
    given, shape = attn_mask.shape, tuple(weights.values())
    missing = len(shape) - len(given)  # lengths first: see `ops.shapes.leading_shape`
    if (not missing or len(given) == 1) and given == shape[missing:]:
        return attn_mask  # most masks, in a fraction of the time
    rest = zip(reversed(given[1:]), reversed(shape), strict=False)
    if missing >= 0 and all(size in (1, wanted) for size, wanted in rest):
        first = given[0] if given else 1
        between = missing and len(given) > 1
        if first == 1 or (first == shape[missing] and not between):
            return attn_mask
        if between and first in shape[: missing + 1]:
            raise ValueError(_of_sequences_or_not(given, weights))
    raise ValueError(
        f"attn_mask must broadcast to the weights, ({', '.join(weights)}) = {shape}, "
        f"got shape {tuple(given)}"
    )


def _of_sequences_or_not(given: tuple[int, ...], weights: dict[str, int]) -> str:
    """Return the sentence about a mask whose first dimension could be of several kinds."""
    names, missing = list(weights), len(weights) - len(given)
    of = {"H": "head", "n": "query"}[names[missing]]
    sequences, others = (".".join([f"unsqueeze({at})"] * missing) for at in (1, 0))
    return (
        f"attn_mask must have all dimensions of the weights, ({', '.join(names)}) = "
        f"{tuple(weights.values())}, got shape {tuple(given)}: {sequences} a mask of each "
        f"sequence, or give key_lengths, and {others} one of each {of}"
    )


def present(lengths: Tensor, m: int) -> Tensor:
    """Return bool (B, m): True for positions within the length."""
    return torch.arange(m, device=lengths.device) < lengths.unsqueeze(-1)


def zero_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Return x (B, m, features) with zeros beyond the lengths (B,), if there are any.

    The content of a padded row must not enter a projection: zero times NaN is NaN in the gradient
    of its matrix.
    """
    if lengths is None:
        return x
    return torch.where(present(lengths, x.shape[1]).unsqueeze(-1), x, 0.0)


def _shape(x: object) -> tuple[int, ...]:
    """Return the shape of a dense tensor, and () for anything else: a check in a third the time."""
    if isinstance(x, Tensor) and x.layout is _STRIDED and not x.is_nested:
        return x.shape
    return ()


def _parameters_dtype(name: str, x: Tensor, module: Any, layer: str) -> None:
    # Not by attributes of modules, which take a third of a microsecond each. And not layer.weight:
    # a parametrisation would compute it, and spectral_norm would iterate once more. A quantised
    # layer has no floating weight and accepts dtypes of its own.
    weight = module._modules[layer]._parameters.get("weight")
    if weight is None or weight.dtype is x.dtype or not weight.is_floating_point():
        return
    if _under_autocast(weight) is not _under_autocast(x):
        raise TypeError(
            f"{name} must have the dtype of the module's parameters, {weight.dtype}, got {x.dtype}"
        )


def _under_autocast(x: Tensor) -> torch.dtype:
    """Return the dtype that x has in a matrix product: autocast leaves float64 and ints alone."""
    kind = x.device.type
    if x.is_floating_point() and x.dtype is not torch.float64 and kind != "meta":
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
    return x.dtype
