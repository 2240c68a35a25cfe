"""Additive attention with its projections, for whole sequences and for the steps of a decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, overload

import torch
from torch import Tensor

from ..functional import checks
from ..functional.attention import additive_attention
from ..functional.checks import NO_WINDOW
from ..functional.memory import AdditiveMemory, prepare_keys
from ..functional.results import Pair, Triple
from ..ops.codes import ActivationName, PrecisionName
from . import inputs
from .calls import Reading, is_sharded, watched
from .projections import Projections, merge_heads, split_heads
from .reading import Alignment, Bounds, beams_of, read_as_forward, split, within

if TYPE_CHECKING:
    from .overloads import Unpack, WindowEitherWay, WindowNoWeights, WindowWithWeights

# A result of the operator, or of its deferred form: contexts, and weights if requested.
Attended = Tensor | tuple[Tensor, Tensor | None] | Triple


@dataclass(frozen=True, eq=False)
class PreparedMemory:
    """The keys and values that a decoder keeps between steps; immutable.

    Made by `AdditiveAttention.prepare`. `torch.load` with ``weights_only=True`` needs
    ``torch.serialization.add_safe_globals([PreparedMemory, restore_memory])``, where
    ``restore_memory`` is that of `attnkernels.functional.memory`.

    Attributes:
        memory: the projected keys, the values and the score vector; its `lead` is (B,), with heads
            (B, H).
        num_heads: H.
    """

    memory: AdditiveMemory
    num_heads: int

    @property
    def batch(self) -> int:
        """B, the number of sequences to attend to."""
        return self.memory.lead[0]

    @property
    def device(self) -> torch.device:
        """The device of the keys."""
        return self.memory.key.device

    @property
    def value(self) -> Tensor:
        """The values (B, m, value_dim), with heads (B, H, m, value_dim / H)."""
        return self.memory.value

    @property
    def value_dim(self) -> int:
        """Features of a context."""
        return self.memory.value.shape[-1] * self.num_heads

    def index_select(self, index: Tensor) -> PreparedMemory:
        """Return the sequences `index` (1-D, int32 or int64) of the batch: reorder beams.

        Raises:
            TypeError, ValueError: as `AdditiveMemory.index_select`.
        """
        return replace(self, memory=self.memory.index_select(0, index))


class AdditiveAttention(Projections):
    """Additive attention of queries to keys, both projected first (Bahdanau et al., 1409.0473).

        s_ij = scale * w . f(W s_i + V h_j + b)    a_i = softmax_j(s_ij)    c_i = sum_j a_ij u_j

    With heads the hidden features and the values are split as in multi-head attention, and the
    contexts of the heads are concatenated.

    Args:
        query_dim, key_dim, hidden_dim, num_heads, bias, normalize, device, dtype: as in
            `Projections`.
        activation: f, by its name as in `additive_attention`, such as "leaky_relu" (GATv2).
        negative_slope: in [0, 1], of "leaky_relu".
        dropout: in [0, 1], the probability that a weight is dropped; in training only.
        scale: finite, multiplies the scores.
        precision, backend: as in `additive_attention`.

    Raises:
        TypeError: a number or flag has the wrong type.
        ValueError: a size, ``dropout``, ``negative_slope`` or ``scale`` is out of range, or a name
            is unknown.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int,
        *,
        num_heads: int = 1,
        bias: bool = True,
        normalize: bool = False,
        activation: ActivationName = "tanh",
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        scale: float = 1.0,
        precision: PrecisionName = "exact",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            query_dim,
            key_dim,
            hidden_dim,
            num_heads=num_heads,
            bias=bias,
            normalize=normalize,
            device=device,
            dtype=dtype,
        )
        self.dropout = checks.number("dropout", dropout, 0, 1)
        numbers = negative_slope, scale
        self.negative_slope, self.scale = checks.scoring(activation, *numbers, precision)
        inputs.backend_name(backend)
        self.activation, self.precision, self.backend = activation, precision, backend

    @overload
    def forward(
        self, query: Tensor, key: Tensor, value: Tensor | None = ..., **o: Unpack[WindowNoWeights]
    ) -> Tensor: ...
    @overload
    def forward(
        self, query: Tensor, key: Tensor, value: Tensor | None = ..., **o: Unpack[WindowWithWeights]
    ) -> Pair: ...
    @overload
    def forward(
        self, query: Tensor, key: Tensor, value: Tensor | None = ..., **o: Unpack[WindowEitherWay]
    ) -> Tensor | Pair: ...
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        *,
        key_lengths: Tensor | None = None,
        attn_mask: Tensor | None = None,
        window_size: tuple[int, int] = NO_WINDOW,
        return_weights: bool = False,
    ) -> Tensor | Pair:
        """Return the contexts of the queries.

        Args:
            query: (B, n, query_dim), or (B, query_dim) for one query per sequence; of the dtype of
                the parameters.
            key: (B, m, key_dim), of the same dtype.
            value: (B, m, value_dim), value_dim a multiple of num_heads; by default the keys as
                given, before their projection.
            key_lengths: (B,), int32 or int64, in [0, m]: how many keys of each sequence take part.
                The range is checked on a CPU only.
            attn_mask: of the dimensions of the weights, any of which may be 1, or (m,); bool (True
                takes part) or of query's dtype (added to the score; -inf excludes). A mask of the
                keys of each sequence is (B, 1, m), with heads (B, 1, 1, m), and one of pairs
                (1, n, m). Without all dimensions it could be either, and is refused.
            window_size: (left, right): query i attends to the keys from i - left to i + right
                alone, as in `additive_attention`; -1 is no limit.
            return_weights: also return the weights, after dropout.

        Returns:
            The contexts (B, n, value_dim); with ``return_weights`` a tuple of them and the weights
            (B, n, m), with heads (B, H, n, m). Both lack n for one query per sequence.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        if type(key) is Reading:
            return key.attend(query)
        key, value = inputs.memory(self, "key", key, value, key_lengths, range_later=True)
        batch, m, _ = key.shape
        steps = inputs.query_or_queries(self, query, batch)
        if attn_mask is not None:
            heads = {"H": self.num_heads} if self.num_heads > 1 else {}
            attn_mask = inputs.mask(attn_mask, query, B=batch, **heads, **steps, m=m)
            if attn_mask is not None and attn_mask.ndim and not steps:
                attn_mask = attn_mask.unsqueeze(-2)
        result = additive_attention(
            self._rows(query),
            self._keys(key),
            split_heads(value, self.num_heads),
            self.score_weight(),
            attn_mask=attn_mask,
            key_lengths=self._per_head(key_lengths),
            window_size=window_size,
            dropout_p=self.dropout_now,
            return_weights=return_weights,
            **self._scoring(),
        )
        return _results(*self._merged(result, not steps))

    def prepare(
        self, memory: Tensor, key_lengths: Tensor | None = None, value: Tensor | None = None
    ) -> PreparedMemory:
        """Project and prepare keys once for every `step` of a decoder.

        Args:
            memory: (B, m, key_dim), the key of `forward`.
            key_lengths, value: as in `forward`.

        Raises:
            TypeError, ValueError: as `forward`.
        """
        key, value = inputs.memory(self, "memory", memory, value, key_lengths, range_later=True)
        weight = self.score_weight()
        if is_sharded(self):  # FSDP2 frees its parameters until the next call
            weight = weight.clone()
        prepared = prepare_keys(
            self._keys(key),
            split_heads(value, self.num_heads),
            weight,
            key_lengths=self._per_head(key_lengths),
            **self._scoring(),
        )
        return PreparedMemory(prepared, self.num_heads)

    @overload
    def step(
        self, query: Tensor, prepared: PreparedMemory, return_weights: Literal[False] = ...
    ) -> Tensor: ...
    @overload
    def step(
        self, query: Tensor, prepared: PreparedMemory, return_weights: Literal[True]
    ) -> Pair: ...
    @overload
    def step(
        self, query: Tensor, prepared: PreparedMemory, return_weights: bool
    ) -> Tensor | Pair: ...
    def step(
        self, query: Tensor, prepared: PreparedMemory, return_weights: bool = False
    ) -> Tensor | Pair:
        """Attend to prepared keys: `forward` with its keys, values and lengths.

        Args:
            query: (B, query_dim), or (B, n, query_dim), for example for n beams per sequence.
            prepared: from `prepare`.
            return_weights: also return the weights.

        Returns:
            As `forward`.

        Raises:
            TypeError, ValueError: as `forward`.
        """
        if not isinstance(prepared, PreparedMemory):
            checks.instance("prepared", prepared, PreparedMemory, "what prepare() returned")
        inputs.query_or_queries(self, query, prepared.batch)
        result = prepared.memory.attend(
            self._rows(query), dropout_p=self.dropout_now, return_weights=return_weights
        )
        return _results(*self._merged(result, query.ndim == 2))

    @property
    def dropout_now(self) -> float:
        """`dropout` in training, otherwise 0."""
        return self.dropout if self.training else 0.0

    def read(
        self,
        query: Tensor,
        prepared: PreparedMemory,
        alignment: Alignment | None = None,
        bounds: Bounds | None = None,
        *,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Attend with one query per beam, for a decoder: see `DecoderAttention.read`.

        Beams of a sequence share its keys, which are not copied. There is no alignment to remember.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        checks.instance("prepared", prepared, PreparedMemory, "what attention.prepare() returned")
        batch = prepared.batch
        beams = beams_of(self, query, batch)
        part: dict[str, Any] = {}
        if bounds is not None and beams == 1:
            part = dict(zip(("start", "stop"), map(self._per_head, bounds), strict=True))
        elif bounds is not None:  # each beam sees other keys of those that they share
            mask = split(within(bounds, prepared.value.shape[-2]), batch)
            part = {"attn_mask": mask if self.num_heads == 1 else mask.unsqueeze(1)}

        def attend(query: Tensor) -> tuple[Tensor, Tensor | None, None]:
            rows = self._queries(split(query, batch))
            found = prepared.memory.attend(
                rows, **part, dropout_p=self.dropout_now, return_weights=return_weights
            )
            context, weights = self._merged(found, False)
            if weights is not None:
                weights = weights.movedim(-2, 1).flatten(0, 1)
            return context.flatten(0, 1), weights, None

        return read_as_forward(self, query, attend)

    def read_by(
        self, attend: Callable[[Tensor], Attended]
    ) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
        """Return a function from checked queries (B, query_dim) to contexts and weights or None.

        `attend` takes the projected queries (B, [H,] 1, d). The module is called, so that hooks
        and wrappers see every step.
        """

        def attended(query: Tensor) -> tuple[Tensor, Tensor | None]:
            return self._merged(attend(self._queries(query, True)), True)

        def seen(query: Tensor) -> tuple[Tensor, Tensor | None]:
            return read_as_forward(self, query, lambda query: (*attended(query), None))[:2]

        return seen if watched(self) else attended

    def _rows(self, query: Tensor) -> Tensor:
        """Return the projected query (B, [H,] n, d), with n = 1 if it has none."""
        return self._queries(query, query.ndim == 2)

    def _merged(self, result: Attended, one: bool) -> tuple[Tensor, Tensor | None]:
        """Return the operator's result with its heads merged, without n for one query."""
        context, weights = contexts_and_weights(result)
        context = merge_heads(context, self.num_heads)
        if one:
            context = context.squeeze(-2)
            weights = None if weights is None else weights.squeeze(-2)
        return context, weights

    def _per_head(self, key_lengths: Tensor | None) -> Tensor | None:
        """Return lengths (B,) in a shape that broadcasts to the operator's leading shape."""
        if key_lengths is None or self.num_heads == 1:
            return key_lengths
        return key_lengths.unsqueeze(-1)

    def _scoring(self) -> dict[str, Any]:
        return {
            "activation": self.activation,
            "negative_slope": self.negative_slope,
            "scale": self.scale,
            "precision": self.precision,
            "backend": self.backend,
        }

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, activation={self.activation!r}, dropout={self.dropout}, "
            f"scale={self.scale}"
        )

    if TYPE_CHECKING:
        __call__ = forward


def reads_plainly(attention: Any) -> TypeGuard[AdditiveAttention]:
    """Return True if `attention` reads as an `AdditiveAttention` does, without an alignment."""
    return isinstance(attention, AdditiveAttention) and type(attention).read is _READ


_READ = AdditiveAttention.read


def contexts_and_weights(result: Attended) -> tuple[Tensor, Tensor | None]:
    """Return contexts and weights, or None for weights that were not requested."""
    return (result, None) if isinstance(result, Tensor) else (result[0], result[1])


def _results(context: Tensor, weights: Tensor | None) -> Tensor | Pair:
    return context if weights is None else (context, weights)
