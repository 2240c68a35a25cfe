"""One step of attention whose keys see the weights of earlier steps, and its gradients.

    k_j = key_j + sum over c and e of filter[c, e] seen[c, j + e - half],    half = taps // 2

The step is the attention of a single query to these keys. The compiled kernels for CPUs hold the
keys of a tile only; elsewhere they are a tensor for the time of the call.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends import native
from ..ops.codes import PrecisionName
from .attention import additive_attention
from .results import Pair

Gradients = list[Tensor | None]
Wanted = tuple[bool, ...]
Arriving = tuple[Tensor | None, Tensor | None]


class Inputs(NamedTuple):
    """The tensors that a step may have gradients of.

    Attributes:
        query: (B, 1, d).
        seen: (B, c, m), the weights of earlier steps.
        key: (B, m, d); value (B, m, dv); weight (d,); filter (c, taps, d), taps odd.
    """

    query: Tensor
    seen: Tensor
    key: Tensor
    value: Tensor
    weight: Tensor
    filter: Tensor


class Scoring(NamedTuple):
    """The arguments of `additive_attention` that a step has besides."""

    key_lengths: Tensor | None
    attn_mask: Tensor | None
    scale: float
    precision: PrecisionName
    backend: str | None


def attended(inputs: Inputs, scoring: Scoring) -> Pair:
    """Return context (B, 1, dv) and weights (B, 1, m), with derivatives of every order."""
    query, seen, key, value, weight, filter = inputs
    added = F.conv1d(seen, filter.permute(2, 0, 1), padding=filter.shape[1] // 2)
    return additive_attention(
        query,
        key + added.mT,
        value,
        weight,
        attn_mask=scoring.attn_mask,
        key_lengths=scoring.key_lengths,
        scale=scoring.scale,
        precision=scoring.precision,
        backend=scoring.backend,
        return_weights=True,
    )


def step(inputs: Inputs, scoring: Scoring) -> Pair:
    """Return the same without derivatives."""
    if not has_kernel(inputs, scoring):
        return attended(inputs, scoring)
    query, seen, key, value, weight, filter = inputs
    scores = native.aligned_scores(
        query.squeeze(1), key, weight, _padded(seen, filter), filter, scoring.scale
    )
    if scoring.key_lengths is None:
        weights = scores.softmax(-1)
    else:
        present = torch.arange(key.shape[1]) < scoring.key_lengths.unsqueeze(-1)
        weights = torch.where(present, scores, float("-inf")).softmax(-1)
        weights = torch.where(present, weights, 0.0)  # of a sequence without keys too
    weights = weights.unsqueeze(1)
    return weights @ value, weights


def differentiate(
    inputs: Inputs, scoring: Scoring, wanted: Wanted, grads: Arriving, create_graph: bool
) -> Gradients:
    """Return the gradients of the inputs, as functions of them if `create_graph`.

    Args:
        inputs, scoring: of the step.
        wanted: True for each of the inputs that wants a gradient.
        grads: the gradients of context and weights; None is zero.
        create_graph: as in `torch.autograd.grad`.
    """
    with torch.enable_grad():
        # Views, because an input may itself depend on another.
        at = Inputs(*(x.view_as(x) if create_graph else x.detach() for x in inputs))
        leaves = [x for x, want in zip(at, wanted, strict=True) if want]
        for x in () if create_graph else leaves:
            x.requires_grad_()
        found = zip(attended(at, scoring), grads, strict=True)
        outputs, arriving = zip(*((x, grad) for x, grad in found if grad is not None), strict=True)
    gradients = iter(
        torch.autograd.grad(
            outputs, leaves, arriving, create_graph=create_graph, materialize_grads=True
        )
        if leaves
        else ()
    )
    return [next(gradients) if want else None for want in wanted]


def add_gradients(
    inputs: Inputs,
    weights: Tensor,
    scoring: Scoring,
    wanted: Wanted,
    grads: Arriving,
    sums: Gradients,
) -> Gradients:
    """Return the gradients of query and seen, and `sums` with those of key, weight and filter.

    Args:
        inputs, scoring, wanted, grads: as in `differentiate`; that of the value is left out.
        weights: those that the step returned.
        sums: the gradients of key, weight and filter so far, which are changed; None is zero.
    """
    of_query, of_seen, of_key, _, of_weight, of_filter = wanted
    if not has_kernel(inputs, scoring):
        but_value = of_query, of_seen, of_key, False, of_weight, of_filter
        dquery, dseen, dkey, _, *others = differentiate(inputs, scoring, but_value, grads, False)
        each = zip(sums, (dkey, *others), strict=True)
        return [dquery, dseen, *(_sum(total, found) for total, found in each)]
    query, seen, key, value, weight, filter = (x.detach() for x in inputs)
    dcontext, arriving = grads
    if dcontext is not None:
        by_value = dcontext @ value.mT
        arriving = by_value if arriving is None else by_value + arriving
    assert arriving is not None
    rows = weights * arriving
    dscores = rows - weights * rows.sum(-1, keepdim=True)  # (E4)
    sums = [
        (torch.zeros_like(x) if total is None else total.contiguous()) if want else None
        for x, total, want in zip(
            (key, weight, filter), sums, (of_key, of_weight, of_filter), strict=True
        )
    ]
    dquery, dseen = native.aligned_scores_backward(
        dscores.squeeze(1), query.squeeze(1), key, weight, _padded(seen, filter), filter,
        scoring.scale, *sums,
    )  # fmt: skip
    half, m = filter.shape[1] // 2, key.shape[1]
    dseen = dseen[..., half : half + m]
    return [dquery.unsqueeze(1) if of_query else None, dseen if of_seen else None, *sums]


def has_kernel(inputs: Inputs, scoring: Scoring) -> bool:
    """Return True if the kernels compute this step: on a CPU, without a mask."""
    if scoring.attn_mask is not None or scoring.backend not in (None, native.NAME):
        return False
    return native.aligns(inputs.key) and all(x.dtype is inputs.key.dtype for x in inputs)


def _padded(seen: Tensor, filter: Tensor) -> Tensor:
    """Return seen with the zeros that windows beyond its ends see."""
    half = filter.shape[1] // 2
    return F.pad(seen, (half, half)).contiguous()


def _sum(total: Tensor | None, found: Tensor | None) -> Tensor | None:
    """Return the sum of both in the memory of the first, in float32 at least."""
    if total is None or found is None:
        return total if found is None else found.to(torch.promote_types(found.dtype, torch.float32))
    return total.add_(found)
