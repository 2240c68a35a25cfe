"""What a decoder keeps between steps: keys prepared once, values, lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from ..backends import select
from ..backends.base import Backend
from ..ops.codes import ActivationName
from ..ops.signature import Options
from . import arguments
from .annotations import ranged
from .attention import draw_seed
from .autocast import cast, follows_autocast
from .results import Pair, Result, Triple, results

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from . import results as types


@follows_autocast
def prepare_keys(
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    key_lengths: Tensor | None = None,
    activation: ActivationName = "tanh",
    negative_slope: float = 0.2,
    scale: float = 1.0,
    backend: str | None = None,
) -> AdditiveMemory:
    """Do once what every step of a decoder would do again with the same keys (E7).

    Args:
        key: (..., m, d), value (..., m, dv), weight (d,) or (..., d), key_lengths: as in
            `additive_attention`. They are kept, not copied: change none of them in place.
        activation, negative_slope, scale, backend: as there.

    Returns:
        An `AdditiveMemory`. Under autocast it holds, and was prepared in, autocast's dtype.

    Raises:
        TypeError, ValueError: as there.
    """
    options = Options(None, 0.0, False, activation, negative_slope, scale)
    problem, lead = arguments.prepared(key, value, weight, key_lengths, options)
    chosen = select(problem, backend, (key, value, weight), step=True)
    with torch.no_grad():  # gradients reach the key itself
        pack_keys = ranged("prepare_keys", chosen.NAME, chosen.pack_keys)
        packed_key = pack_keys(key, activation=activation)
    return AdditiveMemory(
        key, value, weight, key_lengths, options, backend, packed_key, lead, chosen
    )


@dataclass(frozen=True, eq=False)
class AdditiveMemory:
    """Prepared keys and their values; made by `prepare_keys`. It never changes.

    Attributes:
        key: (..., m, d); value (..., m, dv); weight (..., d); key_lengths: as they were given.
        options: activation, negative_slope and scale, as they were given.
        backend: as it was given.
        packed_key: the keys in the layout of the backend, (*lead of key, three more dimensions), or
            None. It belongs to this machine: pickling and copying leave it out and make it anew.
        lead: the leading shape that these broadcast to.
    """

    key: Tensor
    value: Tensor
    weight: Tensor
    key_lengths: Tensor | None
    options: Options
    backend: str | None
    packed_key: Tensor | None = field(repr=False)
    lead: tuple[int, ...]
    chosen: Backend = field(repr=False)

    @overload
    def attend(self, query: Tensor, **options: Unpack[types.StepAlone]) -> Tensor: ...
    @overload
    def attend(self, query: Tensor, **options: Unpack[types.StepWeights]) -> Pair: ...
    @overload
    def attend(self, query: Tensor, **options: Unpack[types.StepLse]) -> Pair: ...
    @overload
    def attend(self, query: Tensor, **options: Unpack[types.StepBoth]) -> Triple: ...
    @overload
    def attend(self, query: Tensor, **options: Unpack[types.StepUnknown]) -> Result: ...
    @follows_autocast
    def attend(
        self,
        query: Tensor,
        *,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        return_weights: bool = False,
        return_lse: bool = False,
    ) -> Result:
        """`additive_attention` of query (..., n, d) to these keys: the same results and gradients.

        query has the dtype and device of the memory, and a leading shape that broadcasts with
        `lead`. Under an autocast to another dtype than that of the memory, the memory is cast and
        prepared anew in every call: prepare it there as well.

        Raises:
            TypeError, ValueError: as `additive_attention`.
        """
        arguments.step(query, self.key, self.lead, attn_mask, dropout_p, return_weights, return_lse)
        options = self.options
        if dropout_p:
            options = options._replace(seed=draw_seed(query.device), dropout_p=dropout_p)
        attention = ranged("AdditiveMemory.attend", self.chosen.NAME, self.chosen.attention)
        context, weights, lse = attention(
            query,
            self.key,
            self.value,
            self.weight,
            options,
            attn_mask=attn_mask,
            key_lengths=self.key_lengths,
            return_weights=return_weights,
            packed_key=self.packed_key,
        )
        return results(context, weights, lse if return_lse else None)

    def autocast(self, dtype: torch.dtype) -> AdditiveMemory:
        """This memory as autocast to `dtype` has it: prepared anew, unless it has that dtype."""
        if self.key.dtype in (dtype, torch.float64):
            return self
        prepare, tensors = self.__reduce__()
        return prepare(*(cast(tensor, dtype) for tensor in tensors))

    def index_select(self, dim: int, index: Tensor) -> AdditiveMemory:
        """A memory of the entries `index` of leading dimension `dim`: how a beam is reordered.

        Args:
            dim: one of the dimensions of `lead`; negative ones count from the end of `lead`.
            index: 1-D, int32 or int64, in [0, lead[dim]) (checked on a CPU only). A tensor that
                broadcasts along `dim` stays as it is.

        Raises:
            TypeError, ValueError: dim is no leading dimension, or index has the wrong type, shape
                or range.
        """
        from_end = arguments.selection(dim, index, self.lead, self.key.device)
        lengths, packed = self.key_lengths, self.packed_key
        selected = replace(
            self,
            key=_select(self.key, from_end - 2, index),
            value=_select(self.value, from_end - 2, index),
            weight=_select(self.weight, from_end - 1, index),
            key_lengths=None if lengths is None else _select(lengths, from_end, index),
            packed_key=None if packed is None else _select(packed, from_end - 3, index),
        )
        if self.lead[from_end] == 1:
            return selected
        lead = list(self.lead)
        lead[from_end] = index.shape[0]
        return replace(selected, lead=tuple(lead))

    def __reduce__(self) -> tuple[Callable[..., AdditiveMemory], tuple[Tensor, ...]]:
        prepare = partial(
            prepare_keys,
            key_lengths=self.key_lengths,
            activation=self.options.activation,
            negative_slope=self.options.negative_slope,
            scale=self.options.scale,
            backend=self.backend,
        )
        return prepare, (self.key, self.value, self.weight)


def _select(tensor: Tensor, at: int, index: Tensor) -> Tensor:
    if tensor.ndim < -at or tensor.shape[at] == 1:
        return tensor
    return tensor.index_select(at, index)
