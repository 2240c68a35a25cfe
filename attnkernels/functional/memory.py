"""A decoder's memory between steps: keys prepared once, values, lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from ..backends import select
from ..backends.base import Backend
from ..ops.codes import ActivationName, PrecisionName
from ..ops.seed import draw_seed
from ..ops.signature import Options, scoring_options
from . import arguments, checks
from .annotations import ranged
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
    precision: PrecisionName = "exact",
    backend: str | None = None,
) -> AdditiveMemory:
    """Prepare keys for `AdditiveMemory.attend`: compute what a decoder's steps share (E7).

    Args:
        key: (..., m, d), value (..., m, dv), weight (d,) or (..., d), key_lengths: as in
            `additive_attention`. They are kept, not copied: a memory whose tensors were changed in
            place since then, as by an optimizer, refuses to attend.
        activation, negative_slope, scale, precision, backend: as in `additive_attention`.

    Returns:
        An `AdditiveMemory`; under autocast, in autocast's dtype.

    Raises:
        TypeError, ValueError: as `additive_attention`.
    """
    options = scoring_options(activation, negative_slope, scale, key_lengths, precision=precision)
    problem, lead = arguments.prepared(key, value, weight, options)
    if not type(negative_slope) is type(scale) is float:  # kept, so not as NumPy's
        negative_slope, scale = checks.scoring(activation, negative_slope, scale)
    chosen = select(problem, backend, (key, value, weight), step=True)
    with torch.no_grad():  # gradients reach the key itself
        pack_keys = ranged("prepare_keys", chosen.NAME, chosen.pack_keys)
        packed_key = pack_keys(key, activation=activation)
    kept = activation, negative_slope, scale, key_lengths, packed_key, precision
    options = scoring_options(*kept)
    versions = _versions(key, value, weight, key_lengths)
    return AdditiveMemory(key, value, weight, options, backend, lead, chosen, versions)


@dataclass(frozen=True, eq=False, repr=False)
class AdditiveMemory:
    """Prepared keys and their values, made by `prepare_keys`; immutable.

    `torch.load` with ``weights_only=True`` needs
    ``torch.serialization.add_safe_globals([attnkernels.functional.memory.restore_memory])``.

    Attributes:
        key: (..., m, d); value (..., m, dv); weight (..., d): as they were given.
        key_lengths, activation, negative_slope, scale, precision: as they were given.
        packed_key: the keys in the backend's layout, (*lead of key, three more dimensions), or
            None. They are specific to this machine, so pickles and copies leave them out and
            rebuild them.
        options: the six attributes before this one.
        backend: as it was given.
        lead: the leading shape that these tensors broadcast to.
        chosen: the backend that computes.
        versions: those of key, value, weight and key_lengths when they were prepared, or None if
            one is an inference tensor or torch.compile traced it: then changes go unnoticed, as
            those through ``.data`` always do.
        changes: the sum of these, which only grow: a call compares it in half the time.
    """

    key: Tensor
    value: Tensor
    weight: Tensor
    options: Options
    backend: str | None
    lead: tuple[int, ...]
    chosen: Backend
    versions: tuple[int, ...] | None
    changes: int | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "changes", None if self.versions is None else sum(self.versions))

    @property
    def key_lengths(self) -> Tensor | None:
        return self.options.key_lengths

    @property
    def activation(self) -> ActivationName:
        return self.options.activation

    @property
    def negative_slope(self) -> float:
        return self.options.negative_slope

    @property
    def scale(self) -> float:
        return self.options.scale

    @property
    def precision(self) -> PrecisionName:
        return self.options.precision

    @property
    def packed_key(self) -> Tensor | None:
        return self.options.packed_key

    @overload
    def attend(self, query: Tensor, **options: Unpack[types.StepAlone]) -> Tensor: ...
    @overload
    def attend(self, query: Tensor, **options: Unpack[types.StepWeights]) -> Pair: ...
    @overload
    def attend(self, query: Tensor, **options: Unpack[types.StepLse]) -> Pair: ...
    @overload
    def attend(self, query: Tensor, **options: Unpack[types.StepBoth]) -> Triple: ...
    @overload
    def attend(self, query: Tensor, **options: Unpack[types.StepEither]) -> Tensor | Pair: ...
    @overload
    def attend(self, query: Tensor, **options: Unpack[types.StepUnknown]) -> Result: ...
    @follows_autocast
    def attend(
        self,
        query: Tensor,
        *,
        start: Tensor | int | None = None,
        stop: Tensor | int | None = None,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        return_weights: bool = False,
        return_lse: bool = False,
    ) -> Result:
        """Compute `additive_attention` of a query to these keys, with its results and gradients.

        Under an autocast to another dtype than the memory's, every call casts the memory and
        prepares it anew: call `prepare_keys` under the same autocast.

        Args:
            query: (..., n, d), of the memory's dtype and device, with a leading shape that
                broadcasts with `lead`.
            start, stop: an int or an int32 or int64 tensor broadcastable to L, with 0 <= start <=
                stop <= m; None is 0 and m. Only the keys from start on and before stop (and the
                length) take part. The others are neither copied nor read, whatever m is; their
                weights and gradients are 0. The values are checked on a CPU only, ints always.
            attn_mask, dropout_p, return_weights, return_lse: as in `additive_attention`.

        Returns:
            context (*L, n, dv), or a tuple of context, weights and lse as asked for.

        Raises:
            RuntimeError: key, value, weight or key_lengths were changed in place since they were
                prepared.
            TypeError, ValueError: as `additive_attention`.
        """
        kept = self.options
        key, value, weight = self.key, self.value, self.weight
        lengths, changes = kept.key_lengths, self.changes
        if changes is not None and not is_dynamo_compiling():  # a graph would be bound to numbers
            now = key._version + value._version + weight._version
            if (now if lengths is None else now + lengths._version) != changes:
                self.refuse_stale()
        options = tuple.__new__(Options, (  # in half the time of Options(...)
            attn_mask, lengths, None, None, None, kept.packed_key, None, dropout_p, None, None,
            kept.activation, kept.negative_slope, kept.scale, return_weights, kept.precision,
            return_lse,
        ))  # fmt: skip
        options = arguments.step(query, key, self.lead, options, start, stop)
        if dropout_p:
            options = options.seeded(draw_seed(query.device))
        attention = ranged("AdditiveMemory.attend", self.chosen.NAME, self.chosen.attention)
        context, weights, lse = attention(query, key, value, weight, options)
        return results(context, weights, lse if return_lse else None)

    def autocast(self, dtype: torch.dtype) -> AdditiveMemory:
        """Return this memory in `dtype`, prepared anew unless it has that dtype."""
        if self.key.dtype in (dtype, torch.float64):
            return self
        self.refuse_stale()
        prepare, tensors = self.__reduce__()
        return prepare(*(cast(tensor, dtype) for tensor in tensors))

    def index_select(self, dim: int, index: Tensor) -> AdditiveMemory:
        """Return a memory of the entries `index` of leading dimension `dim`, to reorder a beam.

        Args:
            dim: one of the dimensions of `lead`; negative ones count from the end of `lead`.
            index: 1-D, int32 or int64, in [0, lead[dim]) (checked on a CPU only). A tensor that
                broadcasts along `dim` stays as it is.

        Raises:
            RuntimeError: as `attend`, for tensors that were changed.
            TypeError, ValueError: dim is no leading dimension, or index has the wrong type, shape
                or range.
        """
        self.refuse_stale()
        from_end = arguments.selection(dim, index, self.lead, self.key)
        lengths, packed = self.key_lengths, self.packed_key
        key = _select(self.key, from_end - 2, index)
        value = _select(self.value, from_end - 2, index)
        weight = _select(self.weight, from_end - 1, index)
        lengths = None if lengths is None else _select(lengths, from_end, index)
        selected = replace(
            self,
            key=key,
            value=value,
            weight=weight,
            versions=_versions(key, value, weight, lengths),
            options=self.options._replace(
                key_lengths=lengths,
                packed_key=None if packed is None else _select(packed, from_end - 3, index),
            ),
        )
        if self.lead[from_end] == 1:
            return selected
        lead = list(self.lead)
        lead[from_end] = index.shape[0]
        return replace(selected, lead=tuple(lead))

    def refuse_stale(self) -> None:
        """Raise RuntimeError if a tensor of this memory was changed in place."""
        tensors = self.key, self.value, self.weight, self.key_lengths
        now = _versions(*tensors)
        if now is None or self.versions is None:
            return
        names = "key", "value", "weight", "key_lengths"
        for name, old, new in zip(names, self.versions, now, strict=True):
            if old != new:
                raise RuntimeError(
                    f"{name} must be as it was when its keys were prepared, got one that was"
                    f" changed in place (version {new}, prepared at {old}): prepare the keys anew"
                )

    def __reduce__(self) -> tuple[Callable[..., AdditiveMemory], tuple[Any, ...]]:
        kept = self.key_lengths, self.activation, self.negative_slope, self.scale, self.backend
        return restore_memory, (self.key, self.value, self.weight, *kept, self.precision)

    def __repr__(self) -> str:
        lengths = self.key_lengths
        given = {"key": self.key, "value": self.value, "weight": self.weight}
        given |= {} if lengths is None else {"key_lengths": lengths}
        fast = "" if self.precision == "exact" else f"precision={self.precision!r}, "
        return (
            f"AdditiveMemory({described(given)}, activation={self.activation!r}, "
            f"scale={self.scale}, {fast}backend={self.backend!r}, lead={tuple(self.lead)})"
        )


def restore_memory(
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    key_lengths: Tensor | None,
    activation: ActivationName,
    negative_slope: float,
    scale: float,
    backend: str | None,
    precision: PrecisionName = "exact",
) -> AdditiveMemory:
    """Prepare the keys of a saved memory; arguments as in `prepare_keys`.

    Memories saved before there was a precision have none.
    """
    return prepare_keys(
        key,
        value,
        weight,
        key_lengths=key_lengths,
        activation=activation,
        negative_slope=negative_slope,
        scale=scale,
        precision=precision,
        backend=backend,
    )


def described(tensors: Mapping[str, Tensor | None]) -> str:
    """Return tensors as the `repr` of a memory shows them: on one line, without their values."""
    return ", ".join(
        f"{name}={x if x is None else f'{x.dtype}{list(x.shape)}'.removeprefix('torch.')}"
        for name, x in tensors.items()
    )


def _versions(
    key: Tensor, value: Tensor, weight: Tensor, key_lengths: Tensor | None
) -> tuple[int, ...] | None:
    """Return the versions of the tensors, which count changes in place, or None if unknown."""
    if is_dynamo_compiling():  # a graph would be bound to the numbers
        return None
    try:
        lengths = 0 if key_lengths is None else key_lengths._version
        return key._version, value._version, weight._version, lengths
    except RuntimeError:  # of an inference tensor
        return None


def _select(tensor: Tensor, at: int, index: Tensor) -> Tensor:
    if tensor.ndim < -at or tensor.shape[at] == 1:
        return tensor
    return tensor.index_select(at, index)
