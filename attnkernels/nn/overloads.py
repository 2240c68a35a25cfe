"""The options of overloaded calls, for type checkers alone: nothing imports this at run time."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Required, TypedDict
from typing_extensions import Unpack as Unpack


class NoWeights(TypedDict, total=False):
    """Options of a call that does not return the weights."""

    return_weights: Literal[False]


class WithWeights(TypedDict, total=False):
    """Options of a call that returns the weights as well."""

    return_weights: Required[Literal[True]]


class EitherWay(TypedDict, total=False):
    """Options of a call whose `return_weights` is known at run time only."""

    return_weights: Required[bool]


class Lengths(TypedDict, total=False):
    """Options that say how many keys take part."""

    key_lengths: Tensor | None


class LengthsNoWeights(Lengths, NoWeights): ...


class LengthsWithWeights(Lengths, WithWeights): ...


class LengthsEitherWay(Lengths, EitherWay): ...


class Masks(Lengths, total=False):
    """Options that say which keys take part."""

    attn_mask: Tensor | None


class MasksNoWeights(Masks, NoWeights): ...


class MasksWithWeights(Masks, WithWeights): ...


class MasksEitherWay(Masks, EitherWay): ...


class Window(Masks, total=False):
    """Options that say which keys take part, by their position too."""

    window_size: tuple[int, int]


class WindowNoWeights(Window, NoWeights): ...


class WindowWithWeights(Window, WithWeights): ...


class WindowEitherWay(Window, EitherWay): ...


class Noise(Masks, total=False):
    """Options of a call that draws noise."""

    generator: torch.Generator | None


class NoisyNoWeights(Noise, NoWeights): ...


class NoisyWithWeights(Noise, WithWeights): ...


class NoisyEitherWay(Noise, EitherWay): ...
