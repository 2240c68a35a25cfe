"""Check the arguments of each public function, with the checks of single arguments.

A check returns what the caller needs to know about the arguments. The path of valid arguments
counts microseconds, so it makes no strings.
"""

from __future__ import annotations

from math import inf
from typing import TypeVar

import torch
from torch import Tensor

from ..backends.base import Problem
from ..ops.codes import PrecisionName
from ..ops.shapes import leading_shape
from ..ops.signature import EdgeOptions, Options
from . import checks
from .edges import Edges
from .kinds import plain, plain_step, same_kind

Given = TypeVar("Given", Options, EdgeOptions)
Leads = dict[str, tuple[int, ...]]  # leading shapes by the name of the argument


def attention(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, options: Options
) -> tuple[Problem, Options]:
    """Check the arguments of `additive_attention`; return the options with Python's numbers."""
    (attn_mask, key_lengths, _, _, _, _, _, dropout_p, _, _, activation, slope, scale,
     return_weights, precision, return_lse) = options  # fmt: skip
    problem = plain(query, key, value, weight)
    if problem is None:
        problem = same_kind({"query": query, "key": key, "value": value, "weight": weight})
        leads = _pairs(query, key, weight)
        leads["value"] = _values(value, key.shape)
        _leading(_masks(leads, attn_mask, key_lengths, query, key))
    elif attn_mask is not None or key_lengths is not None:
        _leading(_masks({"query": query.shape[:-2]}, attn_mask, key_lengths, query, key))
    for flag in (return_weights, return_lse):
        if flag is not True and flag is not False:
            checks.flags(return_weights=return_weights, return_lse=return_lse)
    if type(dropout_p) is not float or not 0 <= dropout_p <= 1:
        options = options._replace(dropout_p=checks.number("dropout_p", dropout_p, 0, 1))
    usual = activation == "tanh" and slope == 0.2 and precision == "exact"
    if not (usual and type(scale) is float and -inf < scale < inf):
        options = _scored(options, precision)  # of any but the defaults
    return problem, options


def scores(query: Tensor, key: Tensor, weight: Tensor, options: Options) -> tuple[Problem, Options]:
    """Check the arguments of `additive_scores`; return the options as `attention` does."""
    problem = plain(query, key, key, weight)  # the key stands in for a value
    if problem is None:
        problem = same_kind({"query": query, "key": key, "weight": weight})
        _leading(_pairs(query, key, weight))
    return problem, _scored(options, options.precision)


def varlen(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, options: Options
) -> tuple[Problem, Options]:
    """Check the arguments of `additive_attention_varlen`; return the options as `attention`."""
    problem = plain(query, key, value, weight)
    if problem is None:
        problem = same_kind({"query": query, "key": key, "value": value, "weight": weight})
        leads = _pairs(query, key, weight)
        leads["value"] = _values(value, key.shape)
        _leading(leads)
    sequences_q = _boundaries("cu_seqlens_q", options.cu_seqlens_q, "query", query)
    sequences_k = _boundaries("cu_seqlens_k", options.cu_seqlens_k, "key", key)
    if sequences_q != sequences_k:
        raise ValueError(
            "cu_seqlens_q and cu_seqlens_k must describe the same number of sequences, got "
            f"{sequences_q} and {sequences_k}"
        )
    checks.flags(return_lse=options.return_lse)
    return problem, _dropping(_scored(options, options.precision))


def sparse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    edges: Edges,
    options: EdgeOptions,
    return_lse: bool,
) -> tuple[Problem, tuple[int, ...], EdgeOptions]:
    """Check the arguments of `additive_attention_sparse`.

    Return the leading shape, and the options with Python's numbers.
    """
    given = {"query": query, "key": key, "value": value, "weight": weight}
    of_edges = {"edge_key": options.edge_key, "edge_bias": options.edge_bias}
    given |= {name: x for name, x in of_edges.items() if x is not None}
    problem = same_kind(given)
    leads = _pairs(query, key, weight)
    leads["value"] = _values(value, key.shape)
    checks.same_device("edges", edges.source, query)
    _rows_of_edges(edges, query.shape[-2], key.shape[-2])
    for name, trailing in ("edge_key", (query.shape[-1],)), ("edge_bias", ()):
        x, wanted = of_edges[name], (edges.num_edges, *trailing)
        if x is None:
            continue
        rank = x.dim() - len(wanted)
        if rank < 0 or x.shape[rank:] != wanted:
            symbols = "(..., E, d)" if trailing else "(..., E)"
            sizes = ", ".join(map(str, wanted))
            raise ValueError(f"{name} must be {symbols} = (..., {sizes}), got {tuple(x.shape)}")
        leads[name] = x.shape[:rank]
    lead = _leading(leads)
    checks.flags(return_weights=options.return_weights, return_lse=return_lse)
    return problem, lead, _dropping(_scored(options))


def _rows_of_edges(edges: Edges, n: int, m: int) -> None:
    for name, of, rows, nodes in ("query", "n", n, edges.n), ("key", "m", m, edges.m):
        if rows != nodes:
            raise ValueError(
                f"{name} must have a row per node of edges, {of} = {nodes}, got {rows} rows"
            )


def prepared(
    key: Tensor, value: Tensor, weight: Tensor, options: Options
) -> tuple[Problem, tuple[int, ...]]:
    """Check the arguments of `prepare_keys`; return their leading shape as well."""
    checks.scoring(options.activation, options.negative_slope, options.scale, options.precision)
    key_lengths = options.key_lengths
    if key_lengths is None:
        problem = plain(key, key, value, weight)  # the key stands in for a query
        if problem is not None:
            return problem, tuple(key.shape[:-2])
    problem = same_kind({"key": key, "value": value, "weight": weight})
    k = key.shape
    leads = {"key": _rows("key", k), "value": _values(value, k), "weight": _width(weight, k)}
    if key_lengths is not None:
        leads["key_lengths"] = _lengths(key_lengths, key)
    return problem, _leading(leads)


def step(
    query: Tensor,
    key: Tensor,
    lead: tuple[int, ...],
    options: Options,
    start: Tensor | int | None,
    stop: Tensor | int | None,
) -> Options:
    """Check what is new in a step: the query, against prepared keys, and the options.

    Return the options as `attention` does, with start and stop as their starts and lengths.
    """
    attn_mask, return_weights = options.attn_mask, options.return_weights
    return_lse = options.return_lse
    part = start is not None or stop is not None
    if attn_mask is not None or part or not plain_step(query, key, lead):
        same_kind({"the prepared key": key, "query": query})
        q, (m, d) = query.shape, key.shape[-2:]
        leads = {"query": _rows("query", q), "the prepared keys": lead}
        if q[-1] != d:
            raise ValueError(
                f"query must be (..., n, d) with the d = {d} of the prepared keys, got {tuple(q)}"
            )
        if attn_mask is not None:
            leads["attn_mask"] = _mask(attn_mask, query, m)
        _leading(leads)
        if part:
            options = _part(options, start, stop, key, leads)
    for flag in (return_weights, return_lse):
        if flag is not True and flag is not False:
            checks.flags(return_weights=return_weights, return_lse=return_lse)
    return _dropping(options)


def _scored(options: Given, precision: PrecisionName = "exact") -> Given:
    """Return the options with the numbers of a score as Python's, or raise."""
    numbers = options.negative_slope, options.scale
    slope, scale = checks.scoring(options.activation, *numbers, precision)
    if slope is options.negative_slope and scale is options.scale:
        return options
    return options._replace(negative_slope=slope, scale=scale)


def _dropping(options: Given) -> Given:
    """Return the options with the probability of dropout as Python's number, or raise."""
    dropout_p = checks.number("dropout_p", options.dropout_p, 0, 1)
    return options if dropout_p is options.dropout_p else options._replace(dropout_p=dropout_p)


def selection(dim: int, index: Tensor, lead: tuple[int, ...], key: Tensor) -> int:
    """Check the arguments of `AdditiveMemory.index_select`.

    Return the dimension of `lead` counted from its end, as a negative number.
    """
    dim = checks.integer("dim", dim)
    if not -len(lead) <= dim < len(lead):
        raise ValueError(
            f"dim must be one of the {len(lead)} leading dimensions {lead} of the memory, got {dim}"
        )
    dim = dim - len(lead) if dim >= 0 else dim
    checks.integers("index", index)
    checks.same_device("index", index, key)
    if index.ndim != 1:
        raise ValueError(f"index must be 1-D, got shape {tuple(index.shape)}")
    if lead[dim] != 1:  # size 1 broadcasts, so every entry exists
        checks.within("index", index, 0, lead[dim] - 1, f"the size {lead[dim]} of dim {dim}")
    return dim


def _rows(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the leading shape of (..., rows, columns)."""
    if len(shape) < 2:
        raise ValueError(f"{name} must have 2 or more dimensions, got shape {tuple(shape)}")
    return shape[:-2]


def _pairs(query: Tensor, key: Tensor, weight: Tensor) -> Leads:
    q, k = query.shape, key.shape
    leads = {"query": _rows("query", q), "key": _rows("key", k)}
    if q[-1] != k[-1]:
        raise ValueError(
            f"key must be (..., m, d) with the d = {q[-1]} of query {tuple(q)}, got {tuple(k)}"
        )
    leads["weight"] = _width(weight, k)
    return leads


def _width(weight: Tensor, key: tuple[int, ...]) -> tuple[int, ...]:
    d, shape = key[-1], weight.shape
    if d == 0:
        raise ValueError(f"key must have d of 1 or more to be scored, got shape {tuple(key)}")
    if not shape or shape[-1] != d:
        raise ValueError(
            f"weight must be (..., d) with the d = {d} of key {tuple(key)}, got {tuple(shape)}"
        )
    return shape[:-1]


def _values(value: Tensor, key: tuple[int, ...]) -> tuple[int, ...]:
    shape = value.shape
    lead = _rows("value", shape)
    if shape[-2] != key[-2]:
        raise ValueError(
            f"value must be (..., m, dv) with the m = {key[-2]} of key {tuple(key)}, "
            f"got {tuple(shape)}"
        )
    return lead


def _mask(attn_mask: Tensor, query: Tensor, m: int) -> tuple[int, ...]:
    checks.mask("attn_mask", attn_mask, query.dtype)
    checks.same_device("attn_mask", attn_mask, query)
    shape, n = attn_mask.shape, query.shape[-2]
    if (shape and shape[-1] not in (1, m)) or (len(shape) > 1 and shape[-2] not in (1, n)):
        raise ValueError(
            f"attn_mask must broadcast to (..., n, m) = (..., {n}, {m}), got {tuple(shape)}"
        )
    return shape[:-2]


def _lengths(key_lengths: Tensor, key: Tensor) -> tuple[int, ...]:
    checks.integers("key_lengths", key_lengths)
    checks.same_device("key_lengths", key_lengths, key)
    checks.within("key_lengths", key_lengths, 0, key.shape[-2], "the number of keys")
    return key_lengths.shape


def _part(
    options: Options,
    start: Tensor | int | None,
    stop: Tensor | int | None,
    key: Tensor,
    leads: Leads,
) -> Options:
    """Return the options of the keys from start to stop, and add their shapes to `leads`."""
    m, end, first, last = key.shape[-2], options.key_lengths, None, None
    most: tuple[int, str] = m, "the number of keys"
    if stop is not None:
        last = checks.position("stop", stop, *most, key)
        leads["stop"] = last.shape
        if not isinstance(stop, Tensor):
            most = stop, "stop"
    if start is not None:
        first = checks.position("start", start, *most, key)
        leads["start"] = first.shape
    _leading(leads)
    if first is not None and last is not None:
        late = checks.readable(first > last)
        if late and True in late:
            at = late.index(True)
            pair = (int(x.flatten()[at]) for x in torch.broadcast_tensors(first, last))
            raise ValueError("start must be at most stop, got {} and {}".format(*pair))
    if last is not None:
        end = last if end is None else torch.minimum(end, last)
    return options._replace(key_lengths=end, key_starts=first)


def _masks(
    leads: Leads, attn_mask: Tensor | None, key_lengths: Tensor | None, query: Tensor, key: Tensor
) -> Leads:
    """Add the leading shapes of the masks there are to `leads`."""
    if attn_mask is not None:
        leads["attn_mask"] = _mask(attn_mask, query, key.shape[-2])
    if key_lengths is not None:
        leads["key_lengths"] = _lengths(key_lengths, key)
    return leads


def _boundaries(name: str, cu_seqlens: Tensor | None, of: str, packed: Tensor) -> int:
    """Return the number of sequences."""
    checks.integers(name, cu_seqlens)
    assert cu_seqlens is not None
    checks.same_device(name, cu_seqlens, packed)
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(
            f"{name} must be 1-D with 1 or more entries, got shape {tuple(cu_seqlens.shape)}"
        )
    sequences = cu_seqlens.shape[0] - 1
    ends, total = checks.readable(cu_seqlens), packed.shape[-2]
    if ends is None:
        return sequences
    if ends[0] != 0:
        raise ValueError(f"{name} must start at 0, got {ends[0]}")
    if ends[-1] != total:
        raise ValueError(f"{name} must end at the number of rows of {of}, {total}, got {ends[-1]}")
    for s in range(1, len(ends)):
        if ends[s] < ends[s - 1]:
            raise ValueError(f"{name} must not decrease, got {ends[s - 1]} and then {ends[s]}")
    return sequences


def _leading(leads: Leads) -> tuple[int, ...]:
    try:
        return leading_shape(*leads.values())
    except ValueError:
        shapes = ", ".join(f"{tuple(lead)} of {name}" for name, lead in leads.items())
        raise ValueError(f"leading dimensions must broadcast, got {shapes}") from None
