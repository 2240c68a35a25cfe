"""The results of a call, for type checkers: one tensor, or a tuple of those requested.

The overloads of a function differ in the flags that add results: one dictionary of keyword
arguments for each number of results, below those that all overloads share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

from torch import Tensor

from ..ops.codes import ActivationName, PrecisionName

if TYPE_CHECKING:
    from typing_extensions import Required

Pair: TypeAlias = tuple[Tensor, Tensor]
Triple: TypeAlias = tuple[Tensor, Tensor, Tensor]
Result: TypeAlias = Tensor | Pair | Triple


def results(context: Tensor, weights: Tensor | None, lse: Tensor | None) -> Result:
    """Return context alone, or a tuple if there are more results."""
    if weights is None:
        return context if lse is None else (context, lse)
    return (context, weights) if lse is None else (context, weights, lse)


class Alone(TypedDict, total=False):
    """Flags of a call that returns context."""

    return_weights: Literal[False]
    return_lse: Literal[False]


class Weights(TypedDict, total=False):
    """Flags of a call that returns context and weights."""

    return_weights: Required[Literal[True]]
    return_lse: Literal[False]


class Lse(TypedDict, total=False):
    """Flags of a call that returns context and lse."""

    return_weights: Literal[False]
    return_lse: Required[Literal[True]]


class Both(TypedDict):
    """Flags of a call that returns context, weights and lse."""

    return_weights: Literal[True]
    return_lse: Literal[True]


class Either(TypedDict, total=False):
    """Flags of a call that returns context, with or without weights."""

    return_weights: bool
    return_lse: Literal[False]


class Unknown(TypedDict, total=False):
    """Flags whose values a type checker does not know."""

    return_weights: bool
    return_lse: bool


class VarlenOptions(TypedDict, total=False):
    """Options that all overloads of `additive_attention_varlen` share."""

    is_causal: bool
    window_size: tuple[int, int]
    dropout_p: float
    activation: ActivationName
    negative_slope: float
    scale: float
    precision: PrecisionName
    backend: str | None


class VarlenAlone(VarlenOptions, total=False):
    return_lse: Literal[False]


class VarlenLse(VarlenOptions):
    return_lse: Literal[True]


class VarlenUnknown(VarlenOptions, total=False):
    return_lse: bool


class DenseOptions(VarlenOptions, total=False):
    """Options that all overloads of `additive_attention` share."""

    attn_mask: Tensor | None
    key_lengths: Tensor | None


class DenseAlone(DenseOptions, Alone): ...


class DenseWeights(DenseOptions, Weights): ...


class DenseLse(DenseOptions, Lse): ...


class DenseBoth(DenseOptions, Both): ...


class DenseEither(DenseOptions, Either): ...


class DenseUnknown(DenseOptions, Unknown): ...


class SparseOptions(TypedDict, total=False):
    """Options that all overloads of `additive_attention_sparse` share."""

    edge_key: Tensor | None
    edge_bias: Tensor | None
    dropout_p: float
    activation: ActivationName
    negative_slope: float
    scale: float
    backend: str | None


class SparseAlone(SparseOptions, Alone): ...


class SparseWeights(SparseOptions, Weights): ...


class SparseLse(SparseOptions, Lse): ...


class SparseBoth(SparseOptions, Both): ...


class SparseUnknown(SparseOptions, Unknown): ...


class StepOptions(TypedDict, total=False):
    """Options that all overloads of `AdditiveMemory.attend` share."""

    start: Tensor | int | None
    stop: Tensor | int | None
    attn_mask: Tensor | None
    dropout_p: float


class StepAlone(StepOptions, Alone): ...


class StepWeights(StepOptions, Weights): ...


class StepLse(StepOptions, Lse): ...


class StepBoth(StepOptions, Both): ...


class StepEither(StepOptions, Either): ...


class StepUnknown(StepOptions, Unknown): ...
