"""One piece of the queries against one piece of the keys, by the operators of a backend.

The backward of a block takes the context, lse and softmax of the whole rows: (E4) then gives the
share of the block in every gradient, because it needs nothing of the other keys but those.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..backends.base import Backend
from ..ops import formula
from ..ops.codes import ACTIVATIONS, KEY, MASK, QUERY, VALUE, WEIGHT
from ..ops.failures import explain
from ..ops.shapes import accumulate_dtype
from ..ops.signature import BACKWARD, FORWARD, Options
from .shards import Rows, Window


class Inputs(NamedTuple):
    """The inputs of a rank, or those of a block; the mask has its rows and all keys."""

    query: Tensor
    key: Tensor
    value: Tensor
    weight: Tensor
    attn_mask: Tensor | None = None


class Outer(NamedTuple):
    """The rows that the backward of a block needs: gradients of the results, and the results.

    softmax: (*L, 2 n), the maximum of the scores and the sum of exp(s - maximum), or the weights of
    the block if these have a gradient.
    """

    grad_context: Tensor | None
    grad_lse: Tensor | None
    grad_weights: Tensor | None
    context: Tensor
    lse: Tensor
    softmax: Tensor


class Block:
    """A call of the operators for some queries and keys of a longer sequence.

    Args:
        given: the rows of query, the rows of key and value, the weight, and the mask of the rank.
        options: those of the whole call, with the seed of dropout as a 0-d tensor and lengths of
            the whole sequence; its mask and its window are not read.
        window: the window of the whole call.
        queries, keys: the places of the rows.
    """

    def __init__(
        self, given: Inputs, options: Options, window: Window, queries: Rows, keys: Rows
    ) -> None:
        # Dropout draws four neighbouring keys at a time: a block begins with such a group, if
        # necessary with keys that a mask excludes.
        self.front = keys.start % 4 if options.seed is not None else 0
        self.keys = keys
        self.mask_shape: torch.Size | None = None
        start, count = keys.start - self.front, keys.length + self.front
        query, key, value, weight, mask = given
        key, value = (pad(x, (0, 0, self.front, 0)) if self.front else x for x in (key, value))
        left, right = window.between(queries.start, start)
        lengths, seed = options.key_lengths, options.seed
        if seed is not None:
            places = torch.tensor([queries.start, start], device=seed.device)
            seed = torch.cat([seed.view(1), places])
        self.given = Inputs(query, key, value, weight, self._masked(mask, queries, query.device))
        self.options = options._replace(
            attn_mask=self.given.attn_mask,
            key_lengths=None if lengths is None else (lengths - start).clamp(0, count),
            seed=seed,
            # a side beyond the block is no limit, which is faster
            window_left=None if left is not None and left >= queries.length - 1 else left,
            window_right=None if right is not None and right >= count - 1 else right,
        )

    def _masked(self, mask: Tensor | None, queries: Rows, device: torch.device) -> Tensor | None:
        """Return the mask of the block, which excludes the keys that were put in front."""
        if mask is not None:
            mask = part_of(mask, queries, self.keys)
            self.mask_shape = mask.shape
        if not self.front:
            return mask
        if mask is None:
            mask = torch.ones(1, self.keys.length, dtype=torch.bool, device=device)
        whole = mask.expand(*mask.shape[:-1], self.keys.length)
        return pad(whole, (self.front, 0), value=False if mask.dtype == torch.bool else -torch.inf)

    def forward(self, backend: Backend, return_weights: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return context, lse and softmax (*L, 2 n), or weights, in the dtype of arithmetic."""
        if backend.ops is None:
            context, weights, lse = _by_formula(self.given, self.options, return_weights)
            last = as_softmax(lse) if weights is None else weights
        else:
            call = self._call() | {"packed_key": None, "return_weights": return_weights}
            context, lse, last = _run(backend.ops.forward, [call[name] for name in FORWARD.names])
        return context, lse, last[..., self.front :] if return_weights else last

    def backward(self, backend: Backend, outer: Outer, wanted: int) -> list[Tensor | None]:
        """Return the gradients of `Inputs`, in the dtype of arithmetic; None if not wanted."""
        if self.front and outer.grad_weights is not None:
            front = (self.front, 0)
            outer = outer._replace(
                grad_weights=pad(outer.grad_weights, front), softmax=pad(outer.softmax, front)
            )
        if backend.ops is None:
            found = _gradients(self.given, self.options, outer, wanted)
        else:
            acc = accumulate_dtype(self.given.query.dtype)
            call = self._call() | outer._asdict() | {"wanted": wanted, "weights": outer.softmax}
            # in the dtype of arithmetic, so that a share of a gradient is not rounded
            call |= {name: call[name].to(acc) for name in ("query", "key", "value", "weight")}
            grads = _run(backend.ops.backward, [call[name] for name in BACKWARD.names])
            named = dict(zip(BACKWARD.results, grads, strict=True))
            bits = dict(zip(Inputs._fields, BITS, strict=True))
            found = [named[name] if wanted & bits[name] else None for name in Inputs._fields]
        return self._without_front(found)

    def _call(self) -> dict[str, Any]:
        options = self.options._asdict() | {"activation": ACTIVATIONS[self.options.activation].code}
        return options | self.given._asdict()

    def _without_front(self, grads: list[Tensor | None]) -> list[Tensor | None]:
        if not self.front:
            return grads
        query, key, value, weight, mask = grads
        key, value = (None if x is None else x[..., self.front :, :] for x in (key, value))
        if mask is not None and self.mask_shape is not None:
            mask = mask[..., self.front :].sum_to_size(self.mask_shape)
        return [query, key, value, weight, mask]


BITS = (QUERY, KEY, VALUE, WEIGHT, MASK)  # of `wanted`, for the gradients of `Inputs`


def part_of(mask: Tensor, queries: Rows, keys: Rows) -> Tensor:
    """Return the part of a mask (..., n, m) for some of its rows and columns, a view."""
    if mask.ndim > 1 and mask.shape[-2] > 1:
        mask = mask[..., queries.here, :]
    return mask[..., keys.whole] if mask.ndim and mask.shape[-1] > 1 else mask


def as_softmax(lse: Tensor) -> Tensor:
    """Return a maximum and a sum (*L, 2 n) that lse may stand for: itself and 1."""
    return torch.stack([lse, torch.where(lse == -torch.inf, 0.0, 1.0).to(lse)], -1).flatten(-2)


def _run(operator: Any, arguments: list[Any]) -> tuple[Tensor, ...]:
    try:
        return operator(*arguments)
    except RuntimeError as error:
        explain(error)


def _by_formula(
    given: Inputs, options: Options, return_weights: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    acc = accumulate_dtype(given.query.dtype)
    query, key, value, weight = (x.to(acc) for x in given[:4])
    options = options._replace(attn_mask=given.attn_mask, return_weights=return_weights)
    return formula.attention(query, key, value, weight, options)


def _gradients(given: Inputs, options: Options, outer: Outer, wanted: int) -> list[Tensor | None]:
    """Return the gradients of a block by differentiating the formula.

    The rows are sums over blocks b: context = sum_b x_b context_b and weights = x_b weights_b with
    x_b = exp(lse_b - lse).
    """
    acc = accumulate_dtype(given.query.dtype)
    wants = [bool(wanted & bit) for bit in BITS]
    leaves = Inputs(
        *(
            None if x is None else x.detach().to(acc if want else x.dtype).requires_grad_(want)
            for x, want in zip(given, wants, strict=True)
        )  # type: ignore[arg-type]
    )
    with torch.enable_grad():
        context, weights, lse = _by_formula(leaves, options, outer.grad_weights is not None)
    share = torch.where(lse == -torch.inf, 0.0, torch.exp(lse - outer.lse)).detach()
    of_lse = torch.zeros_like(share) if outer.grad_lse is None else outer.grad_lse
    outputs, grads = [lse], []
    if outer.grad_context is not None:
        of_lse = of_lse + (outer.grad_context * (context.detach() - outer.context)).sum(-1)
        outputs.append(context)
        grads.append(share.unsqueeze(-1) * outer.grad_context)
    in_block = torch.zeros_like(share)
    if outer.grad_weights is not None and weights is not None:
        in_block = (outer.grad_weights * outer.softmax).sum(-1)
        outputs.append(weights)
        grads.append(share.unsqueeze(-1) * outer.grad_weights)
    grads = [share * (of_lse - in_block) + in_block, *grads]
    needed = [x for x, want in zip(leaves, wants, strict=True) if want and x is not None]
    pairs = [pair for pair in zip(outputs, grads, strict=True) if pair[0].requires_grad]
    if not pairs:
        return [
            torch.zeros_like(x) if w and x is not None else None
            for x, w in zip(leaves, wants, strict=True)
        ]
    outputs, grads = (list(each) for each in zip(*pairs, strict=True))
    found = iter(torch.autograd.grad(outputs, needed, grads, materialize_grads=True))
    return [next(found) if want else None for want in wants]
