"""Checkpoints of other libraries, loaded without the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..nn import Projections
from .conventions import CONVENTIONS, TRANSPOSED, Convention, Entry


@dataclass(frozen=True)
class Loaded:
    """What `load_state_dict_from` did. All names of entries are without the prefix.

    Attributes:
        convention: the name that was given.
        loaded: each parameter that was set from the checkpoint, and the entries of which it is the
            sum.
        zeroed: parameters that the checkpoint has nothing for: biases, which are zeros now.
        cancelled: entries that make no difference, as the softmax cancels them.
        left: entries that are no part of attention, and what they are.
    """

    convention: str
    loaded: dict[str, tuple[str, ...]]
    zeroed: tuple[str, ...]
    cancelled: tuple[str, ...]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"loaded by the convention {self.convention!r}:"]
        lines += [f"  {target} = {' + '.join(names)}" for target, names in self.loaded.items()]
        lines += [f"  {target} = 0" for target in self.zeroed]
        lines += [f"  dropped {name}: the softmax cancels it" for name in self.cancelled]
        lines += [f"  left {name}: {what}" for name, what in self.left.items()]
        return "\n".join(lines)


def load_state_dict_from(
    module: Projections, state_dict: Mapping[str, Any], *, convention: str, prefix: str = ""
) -> Loaded:
    """Set the parameters of a module from a checkpoint of another library's attention.

    The library is not needed. The parameters keep their dtype and device. Where anything does not
    fit, nothing is changed.

    Args:
        module: of the class that the convention names, made with the sizes of the checkpoint, and
            with ``bias=True`` where the checkpoint has biases of the query, key or location.
        state_dict: names to tensors, or to arrays that `torch.as_tensor` takes.
        convention: a name of `attnkernels.interop.CONVENTIONS`.
        prefix: what the names of this attention begin with in the checkpoint, its dot included;
            names that begin otherwise are somebody else's.

    Returns:
        What was loaded, dropped and left.

    Raises:
        TypeError: the module is not of the class of the convention.
        ValueError: there is no such convention, a setting of the module is not what the library
            computes, or entries are missing, unexpected or have the wrong shape or dtype; the
            message names all of them.
    """
    if convention not in CONVENTIONS:
        raise ValueError(
            f"convention is {convention!r}; it must be one of {', '.join(map(repr, CONVENTIONS))}"
        )
    rules = CONVENTIONS[convention]
    if not isinstance(module, rules.module):
        raise TypeError(
            f"module is a {type(module).__name__}; convention {convention!r} needs an "
            f"attnkernels.nn.{rules.module.__name__}"
        )
    own = {name[len(prefix) :]: x for name, x in state_dict.items() if name.startswith(prefix)}
    problems = _unsuitable_settings(module, rules)
    parameters = dict(module.named_parameters())
    sums: dict[str, list[tuple[str, Tensor]]] = {}
    for entry in rules.entries:
        if entry.target in ("gain", "bias") and not module.normalize:
            continue
        name = next((each for each in entry.names if each in own), None)
        if name is None:
            problems.append(f"{_any_of(entry.names, prefix)} is missing")
        elif entry.target not in parameters:
            own.pop(name)
            problems.append(
                f"{prefix}{name} has no place: the module has no {entry.target}, make it with "
                "bias=True"
            )
        else:
            x, wrong = _fitted(own.pop(name), entry, tuple(parameters[entry.target].shape))
            problems += [f"{prefix}{name} {wrong}"] if wrong else []
            sums.setdefault(entry.target, []).append((name, x))
    cancelled = tuple(name for name in rules.cancels if name in own)
    left = {
        name: what
        for name in own
        for beginning, what in rules.left.items()
        if name.startswith(beginning)
    }
    for name in own:
        if name not in cancelled and name not in left:
            problems.append(f"{prefix}{name} is unexpected")
    if problems:
        raise ValueError(
            f"the checkpoint does not fit convention {convention!r} ({rules.source}) and this "
            f"module: {'; '.join(problems)}"
        )
    with torch.no_grad():
        for target, parameter in parameters.items():
            found = [x for _, x in sums.get(target, [])]
            parameter.copy_(_sum(found) if found else torch.zeros_like(parameter))
    return Loaded(
        convention,
        {target: tuple(name for name, _ in found) for target, found in sums.items()},
        tuple(target for target in parameters if target not in sums),
        cancelled,
        left,
    )


def _unsuitable_settings(module: Projections, rules: Convention) -> list[str]:
    """A sentence for each setting that is not what the library computes."""
    sentences = []
    for name, wanted in rules.settings.items():
        found = getattr(module, name, wanted)  # an attention with one activation does not name it
        if found != wanted or isinstance(found, bool) != isinstance(wanted, bool):
            sentences.append(f"the module's {name} is {found!r} and must be {wanted!r}")
    return sentences


def _fitted(x: Any, entry: Entry, wanted: tuple[int, ...]) -> tuple[Tensor, str]:
    """The entry in the shape of its parameter, and what is wrong with it, if anything is."""
    try:
        x = torch.as_tensor(x).detach()
    except (TypeError, ValueError, RuntimeError):
        return torch.empty(0), f"is a {type(x).__name__}; it must be a tensor"
    if not x.is_floating_point():
        return x, f"is {x.dtype}; it must be floating"
    shape = entry.shape(wanted)
    if tuple(x.shape) != shape:
        return x, f"has shape {tuple(x.shape)}; the module's {entry.target} needs {shape}"
    return x.mT if entry.layout == TRANSPOSED else x.reshape(wanted), ""


def _sum(terms: list[Tensor]) -> Tensor:
    """Their sum, in at least float32: the one rounding is that of the parameter."""
    if len(terms) == 1:
        return terms[0]
    return torch.stack([x.to(torch.promote_types(x.dtype, torch.float32)) for x in terms]).sum(0)


def _any_of(names: tuple[str, ...], prefix: str) -> str:
    return " or ".join(prefix + name for name in names)
