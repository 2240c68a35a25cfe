"""Additive attention with its projections, for whole sequences and for the steps of a decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..functional.attention import Result, additive_attention
from ..functional.memory import AdditiveMemory, prepare_keys
from .projections import Projections, check_features, merge_heads, split_heads, zero_padding


@dataclass(frozen=True, eq=False)
class PreparedMemory:
    """What a decoder keeps between steps; made by `AdditiveAttention.prepare`. It never changes.

    Attributes:
        memory: the projected keys, values and score vector: `lead` is (B,), with heads (B, H).
        num_heads: H.
    """

    memory: AdditiveMemory
    num_heads: int

    @property
    def batch(self) -> int:
        """B: how many sequences there are to attend to."""
        return self.memory.lead[0]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.memory.key.device

    @property
    def value_dim(self) -> int:
        """Features of a context."""
        return self.memory.value.shape[-1] * self.num_heads

    def index_select(self, index: Tensor) -> PreparedMemory:
        """The sequences `index` (1-D, int32 or int64) of the batch: how beams are reordered.

        Raises:
            TypeError, ValueError: as `AdditiveMemory.index_select`.
        """
        return replace(self, memory=self.memory.index_select(0, index))


class AdditiveAttention(Projections):
    """Additive attention of queries to keys, both projected first (Bahdanau et al., 1409.0473).

        s_ij = scale * w . f(W s_i + V h_j + b)    a_i = softmax_j(s_ij)    c_i = sum_j a_ij u_j

    With heads the hidden features and the values are split as in multi-head attention, and the
    contexts of the heads are put one after another.

    Args:
        query_dim, key_dim, hidden_dim, num_heads, bias, normalize, device, dtype: of `Projections`.
        activation: f: "tanh", "sigmoid", "relu" or "leaky_relu" (GATv2).
        negative_slope: in [0, 1], of "leaky_relu".
        dropout: in [0, 1], the probability that a weight is dropped; in training only.
        scale: finite, multiplies the scores.
        backend: as in `additive_attention`.

    Raises:
        ValueError: a size, `dropout` or `activation` is not one of these; the message says which.
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
        activation: str = "tanh",
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        scale: float = 1.0,
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
        check_dropout(dropout)
        check_scoring(activation, negative_slope, scale)
        self.activation, self.negative_slope = activation, negative_slope
        self.dropout, self.scale, self.backend = dropout, scale, backend

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        *,
        key_lengths: Tensor | None = None,
        attn_mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> Result:
        """Contexts of the queries.

        Args:
            query: (B, n, query_dim), or (B, query_dim) for one query a sequence.
            key: (B, m, key_dim).
            value: (B, m, value_dim), value_dim a multiple of num_heads; the keys as given, before
                their projection, where it is None.
            key_lengths: (B,), int32 or int64: how many keys of each sequence take part.
            attn_mask: bool (True takes part) or floating (added to the scores), broadcastable to
                the shape of the weights.
            return_weights: also return the weights, after dropout.

        Returns:
            contexts (B, n, value_dim); with ``return_weights`` a tuple of them and the weights
            (B, n, m), with heads (B, H, n, m). For one query a sequence, all of them without n.

        Raises:
            TypeError, ValueError: an argument does not fit; the message says which and how.
        """
        check_features("key", key, self.key_dim, "key_dim")
        check_memory("key", key, key if value is None else value, self.num_heads)
        lengths = per_head(key_lengths, key.shape[0], self.num_heads)
        key = zero_padding(key, key_lengths)
        value = key if value is None else value
        q = project_rows(self, query, key.shape[0])
        one = query.ndim == 2
        result = additive_attention(
            q,
            self.project_key(key),
            split_heads(value, self.num_heads),
            self.score_weight(),
            attn_mask=attn_mask.unsqueeze(-2) if one and attn_mask is not None else attn_mask,
            key_lengths=lengths,
            dropout_p=self.dropout_now,
            return_weights=return_weights,
            **self._scoring(),
        )
        return self._rows(result, one)

    def prepare(
        self, memory: Tensor, key_lengths: Tensor | None = None, value: Tensor | None = None
    ) -> PreparedMemory:
        """Project and prepare keys once for the `step`s of a decoder; as in `forward`.

        Args:
            memory: (B, m, key_dim), key_lengths (B,), value (B, m, value_dim) or None: as there.

        Raises:
            TypeError, ValueError: as there.
        """
        check_features("memory", memory, self.key_dim, "key_dim")
        check_memory("memory", memory, memory if value is None else value, self.num_heads)
        lengths = per_head(key_lengths, memory.shape[0], self.num_heads)
        memory = zero_padding(memory, key_lengths)
        value = memory if value is None else value
        prepared = prepare_keys(
            self.project_key(memory),
            split_heads(value, self.num_heads),
            self.score_weight(),
            key_lengths=lengths,
            **self._scoring(),
        )
        return PreparedMemory(prepared, self.num_heads)

    def step(self, query: Tensor, prepared: PreparedMemory, return_weights: bool = False) -> Result:
        """`forward` to keys that are prepared.

        Args:
            query: (B, query_dim), or (B, n, query_dim): n beams of one sequence, say.
            prepared: of `prepare`.
            return_weights: also return the weights.

        Returns:
            As `forward`.

        Raises:
            TypeError, ValueError: as `forward`.
        """
        if not isinstance(prepared, PreparedMemory):
            raise TypeError(
                f"prepared is a {type(prepared).__name__}; it must be what prepare() returned"
            )

        def attend(q: Tensor) -> Result:
            return prepared.memory.attend(
                q, dropout_p=self.dropout_now, return_weights=return_weights
            )

        return self.step_by(query, prepared.batch, attend)

    def step_by(self, query: Tensor, batch: int, attend: Callable[[Tensor], Result]) -> Result:
        """`step` where ``attend`` takes projected queries (B, [H,] n, d) to the memory."""
        return self._rows(attend(project_rows(self, query, batch)), query.ndim == 2)

    @property
    def dropout_now(self) -> float:
        """`dropout` in training, otherwise 0."""
        return self.dropout if self.training else 0.0

    def _rows(self, result: Result, one: bool) -> Result:
        """The operator's result in the shapes of this module: `one` query a sequence, or n."""
        context, weights = result if isinstance(result, tuple) else (result, None)
        context = merge_heads(context, self.num_heads)
        context = context.squeeze(-2) if one else context
        if weights is None:
            return context
        return context, weights.squeeze(-2) if one else weights

    def _scoring(self) -> dict[str, Any]:
        return {
            "activation": self.activation,
            "negative_slope": self.negative_slope,
            "scale": self.scale,
            "backend": self.backend,
        }

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, activation={self.activation!r}, dropout={self.dropout}, "
            f"scale={self.scale}"
        )


def project_rows(projections: Projections, query: Tensor, batch: int) -> Tensor:
    """The projected query (B, [H,] n, d) of one that is (B, n, query_dim) or (B, query_dim)."""
    check_features("query", query, projections.query_dim, "query_dim")
    if query.ndim > 3 or query.shape[0] != batch:
        raise ValueError(
            f"query has shape {tuple(query.shape)}; it must be (B, n, query_dim) or "
            f"(B, query_dim) with the batch of the keys, {batch}"
        )
    return projections.project_query(query.unsqueeze(-2) if query.ndim == 2 else query)


def check_memory(name: str, memory: Tensor, value: Tensor, num_heads: int) -> None:
    """Complain of keys and values that are not (B, m, ...), or do not split into heads."""
    for what, x in ((name, memory), ("value", value)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{what} is a {type(x).__name__}; it must be a tensor")
        if x.ndim != 3 or x.shape[:2] != memory.shape[:2]:
            raise ValueError(
                f"{what} has shape {tuple(x.shape)}; it must be (B, m, features), with the B and "
                f"m of {name}, {tuple(memory.shape[:2])}"
            )
    if value.shape[-1] % num_heads:
        raise ValueError(
            f"value has {value.shape[-1]} features; they must be a multiple of num_heads, "
            f"{num_heads}"
        )


def per_head(key_lengths: Tensor | None, batch: int, num_heads: int) -> Tensor | None:
    """key_lengths (B,) as they broadcast to the leading shape, (B, H) where there are heads."""
    if key_lengths is None:
        return None
    if not isinstance(key_lengths, Tensor):
        raise TypeError(f"key_lengths is a {type(key_lengths).__name__}; it must be a tensor")
    if key_lengths.shape != (batch,):
        raise ValueError(
            f"key_lengths has shape {tuple(key_lengths.shape)}; it must be (B,), ({batch},)"
        )
    return key_lengths if num_heads == 1 else key_lengths.unsqueeze(-1)


def check_dropout(dropout: float) -> None:
    """Complain of a probability that is none."""
    if not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
        raise ValueError(f"dropout is {dropout!r}; it must be in [0, 1]")


def check_scoring(activation: str, negative_slope: float, scale: float) -> None:
    """Complain when a module is made rather than when it is first called: of the same things."""
    x = torch.zeros(1, 1)
    additive_attention(
        x, x, x, x[0], activation=activation, negative_slope=negative_slope, scale=scale,
        backend="reference",
    )  # fmt: skip
