"""What live modules have in common whose attention is computed by the fused operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn

from ...functional.attention import additive_attention
from ...functional.deferred import RepeatedMemory
from ...functional.memory import prepare_keys

KEPT = "_attnkernels_kept"  # the attribute of a module that holds its prepared keys
Draw = Callable[..., Tensor]  # sizes -> a random tensor of the module's dtype and device


def _nothing(module: nn.Module) -> str | None:
    return None


@dataclass(frozen=True)
class Live:
    """How a live module of another library is recognised, and what computes for it.

    Attributes:
        convention: a name of `CONVENTIONS`.
        names: what its class is called, in that library and in copies of it.
        arguments: the names of the arguments of its forward that must be there, in this order;
            those of later versions may follow and have defaults.
        fused: a class with the methods that replace its own. It reads the module's own parameters,
            and calls the module's own method where it does not know better.
        trial: (module, draw) -> results of its own small calls, by which the two are compared.
        why_not: a sentence where this module has options that the operator does not compute.
        method: the method that is called: "forward".
    """

    convention: str
    names: tuple[str, ...]
    arguments: tuple[str, ...]
    fused: type
    trial: Callable[[Any, Draw], Any]
    why_not: Callable[[Any], str | None] = field(default=_nothing)
    method: str = "forward"


class Fused:
    """Put before a module's own class. It has no state but `KEPT`, which copies leave out."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        cls = type(self)
        if not isinstance(self, nn.Module) or cls.__reduce__ is not object.__reduce__:
            return super().__reduce_ex__(protocol)  # Keras writes and reads layers in its own way
        state = {name: x for name, x in self.__dict__.items() if name != KEPT}
        return _blank, cls.__bases__, state


@cache
def fused_class(fused: Any, own: Any) -> Any:
    """The class `own` with the methods of `fused`. Its name is the same: so are saved files."""
    named = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    return type(own.__name__, (fused, own), named)


def _blank(fused: type, own: type) -> Any:
    return object.__new__(fused_class(fused, own))


def attend(
    query: Tensor,
    keys: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    taking_part: Tensor | None = None,
    scale: float = 1.0,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """Context (B, dv) and weights (B, m) of one projected query (B, d) a sequence.

    keys (B, m, d) are projected; taking_part is bool (B, m) or None.
    """
    context, weights = additive_attention(
        query.unsqueeze(1),
        keys,
        value,
        weight,
        attn_mask=None if taking_part is None else taking_part.unsqueeze(1),
        scale=scale,
        activation=activation,
        return_weights=True,
    )
    return context.squeeze(1), weights.squeeze(1)


def attend_again(
    module: nn.Module,
    query: Tensor,
    keys: Tensor,
    value: Tensor,
    weight: nn.Linear,
    *,
    mask: Tensor,
    lengths: Callable[[], Tensor],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`attend` where the same keys come step after step: prepared, and their gradients made last.

    They are prepared anew when a tensor is another one, as after `reset` or the reordering of a
    beam, was changed in place (tensors of inference mode do not tell), or when gradients begin or
    cease to be wanted.

    Args:
        mask: the module's own, from which ``lengths`` would make the same lengths (B,).
    """
    given = (keys, value, weight.weight, mask)
    versions = [0 if x.is_inference() else x._version for x in given]
    also = (scale, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), versions)
    kept = module.__dict__.get(KEPT)
    if kept is None or kept[1] != also or any(map(is_not, kept[0], given)):
        memory = prepare_keys(keys, value, weight.weight[0], key_lengths=lengths(), scale=scale)
        kept = given, also, RepeatedMemory(memory)
        module.__dict__[KEPT] = kept
    context, weights = kept[2].attend(query.unsqueeze(1))
    return context.squeeze(1), weights.squeeze(1)


def beyond(lengths: Tensor, m: int) -> Tensor:
    """bool (B, m): the positions at and beyond the lengths (B,)."""
    return torch.arange(m, device=lengths.device) >= lengths.unsqueeze(1)
