"""Checkpoints of other libraries, loaded without the library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...functional import checks
from ...nn import Projections
from .convention import HEADS, REPEATED, TRANSPOSED, Attends, Convention, Entry
from .libraries import CONVENTIONS


@dataclass(frozen=True)
class Loaded:
    """The report of `load_state_dict_from`. Names of entries are without the prefix.

    Attributes:
        convention: the name of the convention.
        loaded: each parameter that was set from the checkpoint, with the entries it is the sum of.
        zeroed: parameters for which the checkpoint has nothing: biases, set to zero.
        identities: matrices that the library does not have, set to the identity.
        cancelled: entries that the softmax cancels.
        left: entries that are not part of attention, with a phrase that says what each is.
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
    module: Attends, state_dict: Mapping[str, Any], *, convention: str, prefix: str = ""
) -> Loaded:
    """Set the parameters of a module from a checkpoint of another library's attention.

    The library need not be installed. Parameters keep their dtype and device. If anything does not
    fit, the module stays unchanged.

    Args:
        module: an instance of the class that the convention names, with the sizes of the
            checkpoint, and with ``bias=True`` if the checkpoint has biases of the query, key or
            location projections.
        state_dict: names to tensors, or to arrays that `torch.as_tensor` accepts.
        convention: a key of `attnkernels.interop.CONVENTIONS`.
        prefix: the beginning of this attention's names in the checkpoint, with its dot. Other
            names are ignored.

    Returns:
        The entries that were loaded, dropped and left.

    Raises:
        TypeError: the module is not an instance of the convention's class, or another argument has
            the wrong type.
        ValueError: the convention does not exist, a setting of the module is not what the library
            computes, or entries are missing, unexpected or of the wrong shape or dtype. The
            message names every one of them.
    """
    for name, given, kind, wanted in (
        ("state_dict", state_dict, Mapping, "a mapping of names to tensors"),
        ("convention", convention, str, "a string"),
        ("prefix", prefix, str, "a string"),
    ):
        checks.instance(name, given, kind, wanted)
    rules = _rules(module, convention)
    own = {name[len(prefix) :]: x for name, x in state_dict.items() if str(name).startswith(prefix)}
    problems = _unsuitable_settings(module, rules)
    terms: dict[str, list[_Term]] = {}
    for entry in rules.entries:
        normalised = not isinstance(module, Projections) or module.normalize
        if entry.target in ("gain", "bias") and not normalised:
            continue
        term, wrong = _take(own, entry, rules, module, prefix)
        problems += wrong
        if term is not None:
            terms.setdefault(entry.target, []).append(term)
    problems += _unsuitable_identities(module, rules) + _unfilled(module, rules, terms)
    cancelled = tuple(name for name in own if _is_cancelled(name, rules))
    left = {name: what for name in own if (what := _owner(name, rules)) is not None}
    problems += [f"{prefix}{name} is unexpected" for name in own if name not in (*cancelled, *left)]
    if problems:
        raise ValueError(
            f"state_dict and module must fit convention {convention!r} ({rules.source}), got: "
            f"{'; '.join(problems)}"
        )
    _fill(module, terms, rules)
    return Loaded(
        convention,
        {target: tuple(", ".join(term.names) for term in found) for target, found in terms.items()},
        tuple(x for x, _ in module.named_parameters() if x not in (*terms, *rules.identities)),
        rules.identities,
        cancelled,
        left,
    )


class _Term(NamedTuple):
    """An entry of the checkpoint: one tensor, or one per head, as rows of the parameter."""

    names: tuple[str, ...]
    parts: tuple[Tensor, ...]


def _rules(module: Attends, convention: str) -> Convention:
    if convention not in CONVENTIONS:
        known = ", ".join(map(repr, CONVENTIONS))
        raise ValueError(f"convention must be one of {known}, got {convention!r}")
    rules = CONVENTIONS[convention]
    if not isinstance(module, rules.module):
        raise TypeError(
            f"module must be an attnkernels.nn.{rules.module.__name__} for convention "
            f"{convention!r}, got {type(module).__name__}"
        )
    return rules


def _unsuitable_settings(module: Attends, rules: Convention) -> list[str]:
    """Return a sentence for each setting that is not what the library computes."""
    sentences = []
    for name, setting in rules.settings.items():
        wanted = setting(module) if callable(setting) else setting
        found = getattr(module, name, wanted)  # an attention with one activation does not name it
        same = found == wanted and isinstance(found, bool) == isinstance(wanted, bool)
        if isinstance(wanted, float):  # 1 / sqrt(d) and d ** -0.5 may differ in their last bit
            same = math.isclose(found, wanted)
        if not same:
            sentences.append(f"module.{name} must be {wanted!r}, got {found!r}")
    return sentences


def _unsuitable_identities(module: Attends, rules: Convention) -> list[str]:
    """Return a sentence for each matrix that cannot be the identity."""
    shapes = {target: tuple(module.get_parameter(target).shape) for target in rules.identities}
    return [
        f"module.{target} must be square, as the library projects nothing, got {shape}"
        for target, shape in shapes.items()
        if shape[0] != shape[1]
    ]


def _unfilled(module: Attends, rules: Convention, terms: Mapping[str, list[_Term]]) -> list[str]:
    """Return a sentence for each optional matrix that is missing, or shared by unequal entries."""
    sentences = []
    optional = {entry.target: entry.names[0] for entry in rules.entries if entry.optional}
    first: dict[int, str] = {}
    for target, parameter in module.named_parameters(remove_duplicate=False):
        if target in optional and target not in terms and parameter.ndim == 2:
            sentences.append(f"{optional[target]} is missing")
        other = first.setdefault(id(parameter), target)
        if other != target and other in terms and target in terms:
            (one,), (two,) = terms[other], terms[target]
            if not all(torch.equal(a, b) for a, b in zip(one.parts, two.parts, strict=True)):
                sentences.append(
                    f"{one.names[0]} and {two.names[0]} must be equal, as the module shares them"
                )
    return sentences


def _take(
    own: dict[str, Any], entry: Entry, rules: Convention, module: Attends, prefix: str
) -> tuple[_Term | None, list[str]]:
    """Remove an entry from ``own``. Return it, if usable, and one sentence per fault."""
    ways = _spellings(entry, module.num_heads)
    names = next((way for way in ways if own.keys() & set(way)), ())
    found = {name: own.pop(name) for name in names if name in own}
    if not found:
        every = " or ".join(_listed(way, prefix) for way in ways)
        return None, [] if entry.optional else [f"{every} is missing"]
    absent = [name for name in names if name not in found]
    problems = [f"{_listed(absent, prefix)} is missing"] if absent else []
    parameters = dict(module.named_parameters(remove_duplicate=False))
    if entry.target not in parameters:
        how = ", construct it with bias=True" if entry.target.endswith("bias") else ""
        problems.append(f"{prefix}{names[0]} has no place: module has no {entry.target}{how}")
        return None, problems
    shape = _row_shape(parameters[entry.target], entry, rules)
    parts = []
    for name, given in found.items():
        part, wrong = _fitted(given, entry, shape, module.num_heads)
        parts.append(part)
        problems += [f"{prefix}{name} {wrong}"] if wrong else []
    return _Term(names, tuple(parts)), problems


def _spellings(entry: Entry, num_heads: int) -> list[tuple[str, ...]]:
    """Return, for each name of the entry, the names of its parts: one, or one per head."""
    heads = range(num_heads) if entry.layout == HEADS else range(1)
    return [tuple(name.format(head) for head in heads) for name in entry.names]


def _listed(names: tuple[str, ...] | list[str], prefix: str) -> str:
    return ", ".join(prefix + name for name in names)


def _row_shape(parameter: Tensor, entry: Entry, rules: Convention) -> tuple[int, ...]:
    """Return the parameter's shape, with the dimension of heads that the library may have."""
    shape = tuple(parameter.shape)
    one = entry.target == "weight" and len(shape) == 1
    return (1, *shape) if rules.heads and one else shape


def _fitted(given: Any, entry: Entry, wanted: tuple[int, ...], heads: int) -> tuple[Tensor, str]:
    """Return an entry as rows of its parameter, and its fault or ""."""
    try:
        x = torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError):
        return torch.empty(0), f"must be a tensor, got {type(given).__name__}"
    if not x.is_floating_point():
        return x, f"must be floating-point, got {x.dtype}"
    shape = entry.shape(wanted, heads)
    if tuple(x.shape) != shape:
        return x, f"must have shape {shape} for module.{entry.target}, got {tuple(x.shape)}"
    if entry.layout == REPEATED:
        return x.expand(wanted), ""
    return x.mT if entry.layout == TRANSPOSED else x.reshape(-1, *wanted[1:]), ""


def _is_cancelled(name: str, rules: Convention) -> bool:
    return any(fnmatchcase(name, each.replace("{}", "*")) for each in rules.cancels)


def _owner(name: str, rules: Convention) -> str | None:
    """Return the phrase that says what an entry outside attention is, or None."""
    for beginning, what in rules.left.items():
        if name == beginning or (beginning.endswith(".") and name.startswith(beginning)):
            return what
    return None


@torch.no_grad()
def _fill(module: Attends, terms: dict[str, list[_Term]], rules: Convention) -> None:
    """Set every parameter to the sum of its terms, to zero or to the identity."""
    for target, parameter in module.named_parameters():
        if target in rules.identities:
            torch.nn.init.eye_(parameter)
            continue
        given = [torch.cat(term.parts).reshape(parameter.shape) for term in terms.get(target, [])]
        parameter.copy_(_sum(given) if given else torch.zeros_like(parameter))


def _sum(terms: list[Tensor]) -> Tensor:
    """Add in at least float32, so that the parameter's dtype causes the only rounding."""
    if len(terms) == 1:
        return terms[0]
    return torch.stack([x.to(torch.promote_types(x.dtype, torch.float32)) for x in terms]).sum(0)
