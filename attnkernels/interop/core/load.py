"""Checkpoints of other libraries, loaded without the library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from ...nn import Projections
from .convention import CONVENTIONS, HEADS, TRANSPOSED, Convention, Entry


@dataclass(frozen=True)
class Loaded:
    """What `load_state_dict_from` did. All names of entries are without the prefix.

    Attributes:
        convention: the name that was given.
        loaded: each parameter that was set from the checkpoint, and the entries of which it is the
            sum.
        zeroed: parameters that the checkpoint has nothing for: biases, which are zeros now.
        identities: matrices that the library does not have, which are the identity now.
        cancelled: entries that make no difference, as the softmax cancels them.
        left: entries that are no part of attention, and what they are.
    """

    convention: str
    loaded: dict[str, tuple[str, ...]]
    zeroed: tuple[str, ...]
    identities: tuple[str, ...]
    cancelled: tuple[str, ...]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"loaded by the convention {self.convention!r}:"]
        lines += [f"  {target} = {' + '.join(names)}" for target, names in self.loaded.items()]
        lines += [f"  {target} = 0" for target in self.zeroed]
        lines += [f"  {target} = the identity" for target in self.identities]
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
    sums: dict[str, list[tuple[str, list[Tensor]]]] = {}
    for entry in rules.entries:
        if entry.target in ("gain", "bias") and not module.normalize:
            continue
        heads = _heads(entry, module.num_heads)
        names = next((each for each in heads if set(each) & set(own)), [])
        found = {name: own.pop(name) for name in names if name in own}
        missing = [[name for name in names if name not in found]] if found else heads
        if any(missing) and (found or not entry.optional):
            problems.append(f"{_any_of(missing, prefix)} is missing")
        if found and entry.target not in parameters:
            problems.append(
                f"{prefix}{names[0]} has no place: the module has no {entry.target}, make it with "
                "bias=True"
            )
        elif found:
            parts = []
            for name, given in found.items():
                x, wrong = _fitted(given, entry, _wanted(entry, module, rules), module.num_heads)
                problems += [f"{prefix}{name} {wrong}"] if wrong else []
                parts.append(x)
            sums.setdefault(entry.target, []).append((", ".join(names), parts))
    for target in rules.identities:
        rows, columns = parameters[target].shape
        if rows != columns:
            problems.append(
                f"the module's {target} is ({rows}, {columns}); it must be square, as the library "
                "projects nothing"
            )
    cancelled = tuple(
        name
        for name in own
        if any(fnmatchcase(name, each.replace("{}", "*")) for each in rules.cancels)
    )
    left = {
        name: what
        for name in own
        for beginning, what in rules.left.items()
        if name == beginning or (beginning.endswith(".") and name.startswith(beginning))
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
            if target in rules.identities:
                torch.nn.init.eye_(parameter)
                continue
            terms = [torch.cat(parts).reshape(parameter.shape) for _, parts in sums.get(target, [])]
            parameter.copy_(_sum(terms) if terms else torch.zeros_like(parameter))
    return Loaded(
        convention,
        {target: tuple(name for name, _ in found) for target, found in sums.items()},
        tuple(target for target in parameters if target not in (*sums, *rules.identities)),
        rules.identities,
        cancelled,
        left,
    )


def _unsuitable_settings(module: Projections, rules: Convention) -> list[str]:
    """A sentence for each setting that is not what the library computes."""
    sentences = []
    for name, setting in rules.settings.items():
        wanted = setting(module) if callable(setting) else setting
        found = getattr(module, name, wanted)  # an attention with one activation does not name it
        same = found == wanted and isinstance(found, bool) == isinstance(wanted, bool)
        if isinstance(wanted, float):  # 1 / sqrt(d) may be d ** -0.5 but for its last bit
            same = math.isclose(found, wanted)
        if not same:
            sentences.append(f"the module's {name} is {found!r} and must be {wanted!r}")
    return sentences


def _heads(entry: Entry, num_heads: int) -> list[list[str]]:
    """For each way to call the entry the names of its parts, of which there may be one a head."""
    heads = range(num_heads) if entry.layout == HEADS else range(1)
    return [[name.format(head) for head in heads] for name in entry.names]


def _wanted(entry: Entry, module: Projections, rules: Convention) -> tuple[int, ...]:
    """The parameter's shape; where the library has heads, with a dimension for a single one."""
    shape = tuple(module.get_parameter(entry.target).shape)
    one = entry.target == "weight" and len(shape) == 1
    return (1, *shape) if rules.heads and one else shape


def _fitted(x: Any, entry: Entry, wanted: tuple[int, ...], num_heads: int) -> tuple[Tensor, str]:
    """The entry as rows of its parameter, and what is wrong with it, if anything is."""
    try:
        x = torch.as_tensor(x).detach()
    except (TypeError, ValueError, RuntimeError):
        return torch.empty(0), f"is a {type(x).__name__}; it must be a tensor"
    if not x.is_floating_point():
        return x, f"is {x.dtype}; it must be floating"
    shape = entry.shape(wanted, num_heads)
    if tuple(x.shape) != shape:
        return x, f"has shape {tuple(x.shape)}; the module's {entry.target} needs {shape}"
    return x.mT if entry.layout == TRANSPOSED else x.reshape(-1, *wanted[1:]), ""


def _sum(terms: list[Tensor]) -> Tensor:
    """Their sum, in at least float32: the one rounding is that of the parameter."""
    if len(terms) == 1:
        return terms[0]
    return torch.stack([x.to(torch.promote_types(x.dtype, torch.float32)) for x in terms]).sum(0)


def _any_of(ways: list[list[str]], prefix: str) -> str:
    return " or ".join(", ".join(prefix + name for name in names) for names in ways)
