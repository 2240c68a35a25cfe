"""Attention modules of a live model, swapped for the fused operator in place."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from .libraries import CONVENTIONS, LIVE
from .live import KEPT, Fused, Live, adds_something, fused_class, own_class
from .trial import difference


@dataclass(frozen=True)
class Replaced:
    """The report of `replace_attention`.

    Attributes:
        swapped: the name of each module that was swapped, with its library and class.
        left: the name of each other module that looks like attention, with the reason it was left.
    """

    swapped: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"swapped {name or 'the model itself'}: {of}" for name, of in self.swapped.items()]
        lines += [f"left {name or 'the model itself'}: {why}" for name, why in self.left.items()]
        return "\n".join(lines) or "nothing in the model looks like attention"


def replace_attention(model: nn.Module, *, only: Collection[str] | None = None) -> Replaced:
    """Swap the additive attention of a model for the fused operator, in place.

    A module is recognised by the names of its class and of its method's arguments; the libraries
    are those of `attnkernels.interop.CONVENTIONS`. It remains the same object, with its parameters,
    their names in `state_dict`, its hooks and its attributes (cached keys, masks, earlier weights,
    ``reset``). Its class becomes a subclass of the same name, whose method takes the same arguments
    and returns the same results. Before the swap, both classes compute a small random case, and the
    module is left unchanged if their results differ.

    Three things change. A row whose keys are all masked gives zeros, instead of NaN or an average
    of padding. Dropout drops different weights, at the same rate. A module that caches keys
    (SpeechBrain's ContentBasedAttention, ESPnet's AttAdd) has no second derivatives.

    The library's own method computes in two cases. One is a scoring layer, whose weight the
    operator reads, parametrised or not, that is anything but a `torch.nn.Linear`, such as an
    adapter or a quantised layer, or has hooks or a ``forward`` of its own; before the swap, such a
    module is left. The other is `torch.jit.trace`, `torch.jit.script`, `torch.fx.symbolic_trace`,
    `torch.export.export` (unless strict) or `torch.onnx.export`: the graph is the library's.

    Pickles of a swapped module, and what `torch.save` writes of it, are of the library's own class
    and load without this package: swap again after loading. Copies are swapped.
    `torch.jit.script` leaves the library's own module in the model that it compiles.
    `restore_attention` undoes the swap.

    Args:
        model: any module, or a Keras layer or model on the torch backend.
        only: the names of the modules to swap, as in `model.named_modules()`, or in Keras the
            paths of layers (followed by ":2" for the second layer of the same path). Patterns are
            those of `fnmatch`, such as "decoder.*". None: all that are recognised.

    Returns:
        The modules that were swapped, and those that were left with the reason. A second call
        changes nothing.

    Raises:
        TypeError: model is not a module, or ``only`` is a string.
        ValueError: a name in ``only`` matches no module.
    """
    modules = _checked(model, only)
    swapped: dict[str, str] = {}
    left: dict[str, str] = {}
    for name, module in modules.items():
        live = _recognise(module)
        if live is None:
            continue
        if only is not None and not any(fnmatchcase(name, pattern) for pattern in only):
            left[name] = "not in only"
        elif isinstance(live, str):
            left[name] = live
        elif (why := difference(module, live)) is not None:
            left[name] = why
        else:
            object.__setattr__(module, "__class__", fused_class(live.fused, type(module)))
            swapped[name] = CONVENTIONS[live.convention].source
    around = [name for name in left if any(each.startswith(_inside(name)) for each in swapped)]
    return Replaced(swapped, {name: why for name, why in left.items() if name not in around})


def restore_attention(model: nn.Module) -> tuple[str, ...]:
    """Undo `replace_attention`, in place.

    Args:
        model: any module, as for `replace_attention`.

    Returns:
        The names of the modules that are of the library's own class again.

    Raises:
        TypeError: model is not a module.
    """
    restored = []
    for name, module in _checked(model, None).items():
        if isinstance(module, Fused):
            object.__setattr__(module, "__class__", own_class(type(module)))
            module.__dict__.pop(KEPT, None)
            restored.append(name)
    return tuple(restored)


def _checked(model: nn.Module, only: Collection[str] | None) -> dict[str, nn.Module]:
    """Return the modules by name, after a check of both arguments."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(only, str):
        raise TypeError(f"only must be a collection of names, got the string {only!r}")
    modules = dict(_modules(model))
    for pattern in only or ():
        if not any(fnmatchcase(name, pattern) for name in modules):
            raise ValueError(f"only must name modules of the model, got {pattern!r}")
    return modules


def _inside(name: str) -> tuple[str, ...]:
    """Return the prefixes of the names of modules inside a module; Keras has paths."""
    return (f"{name}.", f"{name}/") if name else ("",)


def _modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield names and modules, with the layers of a Keras model that torch does not see."""
    layers = getattr(model, "_flatten_layers", tuple)
    paths = {layer: layer.path or layer.name for layer in layers() if layer is not model}
    for name, module in model.named_modules():
        if module not in paths:
            yield name, module
    seen: Counter[str] = Counter()
    for layer, path in paths.items():
        seen[path] += 1
        yield (path if seen[path] == 1 else f"{path}:{seen[path]}"), layer


def _recognise(module: nn.Module) -> Live | str | None:
    """Return the entry of a module, or the reason it is left, or None if it is not attention."""
    own = type(module)
    if isinstance(module, Fused):
        return "it is swapped already"
    if own.__module__.startswith("attnkernels."):
        return None
    named = [live for live in LIVE if own.__name__ in live.names]
    for live in named:
        if _takes(own, live):
            try:
                return live.why_not(module) or _unread(module, live) or live
            except (AttributeError, KeyError) as error:
                return f"it is not the class that {live.convention!r} knows: {error}"
    if named:
        return f"its arguments are not those of {_sources(named)}"
    if "att" in own.__name__.lower():
        return f"no convention knows the class {own.__name__}"
    return None


def _unread(module: nn.Module, live: Live) -> str | None:
    """Return a sentence if a scoring layer does more than its weight says."""
    for layer in live.fused.scoring(module):
        if (what := adds_something(layer)) is not None:
            name = next((name for name, x in module.named_modules() if x is layer), "a layer")
            return f"its scoring layer {name} {what}: the operator would leave that out"
    return None


def _takes(own: type[nn.Module], live: Live) -> bool:
    """Return True if the method has the arguments, and defaults for all that follow.

    ``**options`` may follow if the fused method takes them, too.
    """
    method = getattr(own, live.method, None)
    if method is None:
        return False
    found, ours = (
        list(inspect.signature(each).parameters.values())[1:]
        for each in (method, getattr(live.fused, live.method, method))
    )
    names, more = tuple(x.name for x in found), found[len(live.arguments) :]
    any_name = inspect.Parameter.VAR_KEYWORD
    if more and more[-1].kind is any_name and ours[-1].kind is any_name:
        more = more[:-1]
    return names[: len(live.arguments)] == live.arguments and all(
        x.default is not inspect.Parameter.empty for x in more
    )


def _sources(named: list[Live]) -> str:
    return " or ".join(CONVENTIONS[live.convention].source for live in named)
