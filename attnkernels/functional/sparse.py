"""Additive attention over the edges of a graph, as GATv2 has it.

    s_e = scale * sum_t w_t f(q_it + k_jt + g_et) + b_e,    for the edge e from j to i
    a_e = softmax of s over the edges of i,    c_i = sum_e a_e u_j

(Brody, Alon and Yahav, 2105.14491, equations 2, 3 and 7.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from torch import Tensor

from ..backends import select
from ..ops.codes import OVER_EDGES, ActivationName
from ..ops.seed import draw_seed
from ..ops.signature import EdgeOptions
from . import arguments
from .annotations import ranged
from .autocast import follows_autocast
from .checks import type_name
from .edges import Edges
from .results import Pair, Result, Triple, results

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from . import results as types


@overload
def additive_attention_sparse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    edges: Edges,
    **options: Unpack[types.SparseAlone],
) -> Tensor: ...
@overload
def additive_attention_sparse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    edges: Edges,
    **options: Unpack[types.SparseWeights],
) -> Pair: ...
@overload
def additive_attention_sparse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    edges: Edges,
    **options: Unpack[types.SparseLse],
) -> Pair: ...
@overload
def additive_attention_sparse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    edges: Edges,
    **options: Unpack[types.SparseBoth],
) -> Triple: ...
@overload
def additive_attention_sparse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    edges: Edges,
    **options: Unpack[types.SparseUnknown],
) -> Result: ...
@follows_autocast
def additive_attention_sparse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    edges: Edges,
    *,
    edge_key: Tensor | None = None,
    edge_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    activation: ActivationName = OVER_EDGES,
    negative_slope: float = 0.2,
    scale: float = 1.0,
    return_weights: bool = False,
    return_lse: bool = False,
    backend: str | None = None,
) -> Result:
    """Additive attention of every target to the sources of its edges, as in GATv2 (2105.14491).

    Time grows with the number of edges E, and nothing of the size E x d is made. Leading
    dimensions ``...`` (heads, batch) broadcast; call the shape they broadcast to L. All share the
    edges. Operands are read where they are: those of PyTorch Geometric, (nodes, heads, channels),
    are taken as ``x.transpose(0, 1)`` without a copy, and results lie in memory as they do.

    Args:
        query: (..., n, d), a row per target; float32, bfloat16, float16 or float64. Arithmetic is
            in float32, for float64 inputs in float64.
        key: (..., m, d), a row per source, of query's dtype and device, as are value, weight,
            edge_key and edge_bias.
        value: (..., m, dv). Where it is `key` itself, as in GATv2, it is read once.
        weight: (d,) or (..., d).
        edges: the edges, made by `prepare_edges`.
        edge_key: (..., E, d), added to query and key inside of the activation. Its rows, those of
            edge_bias and the weights returned are in the order in which the edges were given.
        edge_bias: (..., E), added to the score after ``scale``; -inf excludes the edge.
        dropout_p, activation, negative_slope, scale, return_weights, return_lse, backend: as in
            `additive_attention`.

    Returns:
        context (*L, n, dv) in query's dtype. With return_weights or return_lse, a tuple of context,
        weights (*L, E) in query's dtype, and lse (*L, n) in float32 (float64 for float64 inputs),
        in that order. A target without edges has context 0, lse -inf and zero gradients. NaN in an
        input that takes part gives NaN.

    All results have first and second derivatives for all floating inputs, in reverse and in forward
    mode. First ones in reverse mode are fused; all others take the time and memory of the plain
    formula, O(E d).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device, number or name is wrong, or no backend supports the call.
    """
    if not isinstance(edges, Edges):
        raise TypeError(f"edges must be made by prepare_edges, got {type_name(edges)}")
    target_begin, source_begin, source, order, target, place = edges
    of_edges = target_begin, source, order, source_begin, target, place
    numbers = dropout_p, activation, negative_slope, scale, return_weights
    options = EdgeOptions(edge_key, edge_bias, *of_edges, None, *numbers)
    problem, lead, options = arguments.sparse(query, key, value, weight, edges, options, return_lse)
    chosen = select(problem, backend, (query, key, value, weight), step=False)
    if dropout_p:
        options = options._replace(seed=draw_seed(query.device))
    key_is_value = value is key
    query, key, weight = _whole(query, lead, 2), _whole(key, lead, 2), _whole(weight, lead, 1)
    options = options._replace(
        edge_key=_whole(edge_key, lead, 2), edge_bias=_whole(edge_bias, lead, 1)
    )
    attention = ranged("additive_attention_sparse", chosen.NAME, chosen.attention_over_edges)
    context, weights, lse = attention(
        query, key, None if key_is_value else _whole(value, lead, 2), weight, options
    )
    return results(context, weights, lse if return_lse else None)


@overload
def _whole(x: Tensor, lead: tuple[int, ...], trailing: int) -> Tensor: ...
@overload
def _whole(x: Tensor | None, lead: tuple[int, ...], trailing: int) -> Tensor | None: ...
def _whole(x: Tensor | None, lead: tuple[int, ...], trailing: int) -> Tensor | None:
    """Return `x` expanded to all leading dimensions, so that autograd sums its gradient."""
    if x is None:
        return None
    shape = *lead, *x.shape[x.dim() - trailing :]
    return x if len(shape) == x.dim() and tuple(x.shape) == shape else x.expand(shape)
