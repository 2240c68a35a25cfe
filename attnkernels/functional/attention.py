"""Additive attention as functions: the public contract, whichever backend computes it.

    (E1)  s_ij = scale * sum_t w_t f(q_it + k_jt)
    (E2)  a_ij = softmax_j(s_ij + mask_ij),  lse_i = log sum_j exp(s_ij + mask_ij)
    (E3)  c_i  = sum_j a_ij u_j

(Bahdanau, Cho and Bengio, 1409.0473; f other than tanh: Brody, Alon and Yahav, 2105.14491.)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, overload

from torch import Tensor

from ..backends import select
from ..ops.codes import ActivationName, PrecisionName
from ..ops.seed import draw_seed
from ..ops.signature import Options, scoring_options
from . import arguments, checks, sharded
from .annotations import ranged
from .autocast import follows_autocast
from .checks import NO_WINDOW
from .results import Pair, Triple, results
from .results import Result as Result

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from . import results as types


@overload
def additive_attention(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, **options: Unpack[types.DenseAlone]
) -> Tensor: ...
@overload
def additive_attention(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, **options: Unpack[types.DenseWeights]
) -> Pair: ...
@overload
def additive_attention(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, **options: Unpack[types.DenseLse]
) -> Pair: ...
@overload
def additive_attention(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, **options: Unpack[types.DenseBoth]
) -> Triple: ...
@overload
def additive_attention(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, **options: Unpack[types.DenseEither]
) -> Tensor | Pair: ...
@overload
def additive_attention(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, **options: Unpack[types.DenseUnknown]
) -> Result: ...
@follows_autocast
def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    attn_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    is_causal: bool = False,
    window_size: tuple[int, int] = NO_WINDOW,
    dropout_p: float = 0.0,
    activation: ActivationName = "tanh",
    negative_slope: float = 0.2,
    scale: float = 1.0,
    precision: PrecisionName = "exact",
    return_weights: bool = False,
    return_lse: bool = False,
    backend: str | None = None,
) -> Result:
    """Additive attention of every query to every key: (E1)-(E3) of Bahdanau et al. (1409.0473).

    Leading dimensions ``...`` (batch, heads) broadcast as in
    `torch.nn.functional.scaled_dot_product_attention`, those of ``weight``, ``attn_mask`` and
    ``key_lengths`` included; call the shape they broadcast to L. Any size may be 1 or odd; n, m, dv
    and entries of L may be 0.

    Args:
        query: (..., n, d), float32, bfloat16, float16 or float64. Arithmetic is in float32, for
            float64 inputs in float64.
        key: (..., m, d), of query's dtype and device, as are value, weight and a floating
            attn_mask.
        value: (..., m, dv).
        weight: (d,) or (..., d): w of (E1).
        attn_mask: broadcastable to (*L, n, m). bool: True takes part. Floating: added to the
            score after ``scale``, with a gradient; -inf excludes.
        key_lengths: int32 or int64, broadcastable to L, in [0, m]. Keys at and beyond the length
            are never read, and their gradients are 0. The range is checked on a CPU only.
        is_causal: key j takes part for query i when j <= i. All masks combine by "and".
        window_size: (left, right), ints of at least -1: key j takes part for query i when
            i - left <= j <= i + right; -1 is no limit on its side, and (-1, -1) the default. Time
            and memory are those of the pairs in the window. Both count from the start of their
            sequence; flash-attn aligns the ends, which differs where n != m.
        dropout_p: in [0, 1], the probability that a weight is dropped; the others are multiplied
            by 1 / (1 - dropout_p). The mask follows torch's generator: the same seed gives the
            same mask on any backend, at any number of threads and under torch.compile, unless
            other random operations are compiled with the call, whose numbers inductor takes from
            another stream. Set it to 0 in evaluation.
        activation: f of (E1): "tanh" or another name in `attnkernels.ops.codes.ACTIVATIONS`, such
            as "leaky_relu" (GATv2).
        negative_slope: in [0, 1], the slope of "leaky_relu" below 0.
        scale: a finite factor of the scores.
        precision: "exact", or "fast" to allow an approximation of "tanh" and "sigmoid" that tensor
            cores compute: f within 1.7e-3 and f' within 2.4e-3 per hidden unit, in sums less than
            what rounding inputs of unit size to bfloat16 costs. What is not faster stays exact:
            other activations, kernels for CPUs, up to four queries, and hidden units with a sum
            q + k beyond 20 (40 for "sigmoid"). See docs/howto/precision.md.
        return_weights: also return the weights a, after dropout.
        return_lse: also return lse of (E2), before dropout.
        backend: "native" (CPU and NVIDIA GPUs), "triton" (GPUs) or "reference"; None takes the
            fastest that supports the call. A named backend never falls back to another.

    Returns:
        context (*L, n, dv) in query's dtype. With return_weights or return_lse, a tuple of context,
        weights (*L, n, m) in query's dtype, and lse (*L, n) in float32 (float64 for float64
        inputs), in that order. A row without any key has context 0, weights 0, lse -inf and zero
        gradients. NaN in an input that takes part gives NaN.

    DTensors may be sharded over leading dimensions, all inputs that have these alike, and over the
    rows of query and attn_mask; each rank then computes its shard, and the results are DTensors.
    Shards of leading dimensions have dropout masks of their own, not those of one process. All
    ranks must have the same state of torch's generator.

    All results have first and second derivatives for query, key, value, weight and a floating
    attn_mask, in reverse and in forward mode. First ones are fused, in forward mode where the
    backend has a kernel for tangents ("native", "triton") and outside `torch.compile`; all others
    take the time and memory of the naive formula, O(n m d), second ones in reverse mode about
    7 n m d numbers. Under autocast, inputs are cast as for
    `torch.matmul`.

    Raises:
        NotImplementedError: the tangents would be wrong: dropout under `torch.func.linearize`, or
            tangents of `torch.autograd.forward_ad` made outside of a function that torch.compile
            traces.
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device, number or name is wrong, or no backend supports the call.
    """
    left = right = None
    if is_causal is not False or window_size is not NO_WINDOW:
        left, right = checks.window(is_causal, window_size)
    options = tuple.__new__(Options, (  # in half the time of Options(...)
        attn_mask, key_lengths, None, None, None, None, None, dropout_p, left, right, activation,
        negative_slope, scale, return_weights, precision, return_lse,
    ))  # fmt: skip
    if type(query) is not Tensor and sharded.is_dtensor(query):
        checks.flags(return_weights=return_weights, return_lse=return_lse)
        local = partial(_of_shard, backend)
        context, weights, lse = sharded.attention(local, query, key, value, weight, options)
    else:
        problem, options = arguments.attention(query, key, value, weight, options)
        chosen = select(problem, backend, (query, key, value, weight))
        if dropout_p:
            options = options.seeded(draw_seed(query.device))
        attention = ranged("additive_attention", chosen.NAME, chosen.attention)
        context, weights, lse = attention(query, key, value, weight, options)
    if not (return_weights or return_lse):
        return context
    return results(context, weights, lse if return_lse else None)


def _of_shard(
    backend: str | None, query: Tensor, key: Tensor, value: Tensor, weight: Tensor, options: Options
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return context, weights or None, and lse or None of the shards of DTensors."""
    problem, options = arguments.attention(query, key, value, weight, options)
    chosen = select(problem, backend, (query, key, value, weight))
    attention = ranged("additive_attention", chosen.NAME, chosen.attention)
    return attention(query, key, value, weight, options)


@follows_autocast
def additive_scores(
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    *,
    activation: ActivationName = "tanh",
    negative_slope: float = 0.2,
    scale: float = 1.0,
    precision: PrecisionName = "exact",
    backend: str | None = None,
) -> Tensor:
    """Return the raw scores of (E1), as pointer networks use them (Vinyals et al., 1506.03134).

    Args:
        query: (..., n, d).
        key: (..., m, d).
        weight: (d,) or (..., d).
        activation, negative_slope, scale, precision, backend: as in `additive_attention`, and so
            are broadcasting, autocast and gradients.

    Returns:
        scores (*L, n, m) in query's dtype.

    Raises:
        TypeError, ValueError: as `additive_attention`.
    """
    options = scoring_options(activation, negative_slope, scale, precision=precision)
    problem, options = arguments.scores(query, key, weight, options)
    chosen = select(problem, backend, (query, key, weight))
    return ranged("additive_scores", chosen.NAME, chosen.scores)(query, key, weight, options)


@overload
def additive_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    **options: Unpack[types.VarlenAlone],
) -> Tensor: ...
@overload
def additive_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    **options: Unpack[types.VarlenLse],
) -> Pair: ...
@overload
def additive_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    **options: Unpack[types.VarlenUnknown],
) -> Tensor | Pair: ...
@follows_autocast
def additive_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    is_causal: bool = False,
    window_size: tuple[int, int] = NO_WINDOW,
    dropout_p: float = 0.0,
    activation: ActivationName = "tanh",
    negative_slope: float = 0.2,
    scale: float = 1.0,
    precision: PrecisionName = "exact",
    return_lse: bool = False,
    backend: str | None = None,
) -> Result:
    """Compute `additive_attention` of sequences packed one after another, without padding.

    Queries of sequence s attend to the keys of sequence s. Leading dimensions (heads) broadcast.

    Args:
        query: (..., total_q, d).
        key: (..., total_k, d).
        value: (..., total_k, dv).
        weight: (d,) or (..., d).
        cu_seqlens_q: int32 or int64, one entry more than the number of sequences, non-decreasing
            from 0 to total_q: sequence s has the rows cu_seqlens_q[s] to cu_seqlens_q[s + 1]
            (exclusive) of query. The values are checked on a CPU only.
        cu_seqlens_k: the same for key and value.
        is_causal: j <= i, both counted from the start of their sequence.
        window_size: i - left <= j <= i + right, counted likewise; see `additive_attention`.
        dropout_p, activation, negative_slope, scale, precision, return_lse, backend: as in
            `additive_attention`.

    Returns:
        context (*L, total_q, dv), or a tuple of context and lse (*L, total_q). A sequence without
        keys has context 0 and lse -inf.

    Raises:
        TypeError, ValueError: as `additive_attention`.
    """
    window = checks.window(is_causal, window_size)
    packed = (None, None, None, cu_seqlens_q, cu_seqlens_k, None, None, dropout_p, *window)
    options = Options(
        *packed, activation, negative_slope, scale, precision=precision, return_lse=return_lse
    )
    problem, options = arguments.varlen(query, key, value, weight, options)
    # Only the device knows the number of queries per sequence.
    chosen = select(problem, backend, (query, key, value, weight), step=False)
    if dropout_p:
        options = options.seeded(draw_seed(query.device))
    attention = ranged("additive_attention_varlen", chosen.NAME, chosen.attention)
    context, _, lse = attention(query, key, value, weight, options)
    return results(context, None, lse if return_lse else None)
