"""The attention of a live model, computed by the fused operator in place."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Iterator
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from .. import graph, keras, speech, text
from .convention import CONVENTIONS
from .live import Draw, Fused, Live, fused_class

LIVE: tuple[Live, ...] = (*speech.LIVE, *text.LIVE, *keras.LIVE, *graph.LIVE)


@dataclass(frozen=True)
class Replaced:
    """What `replace_attention` did.

    Attributes:
        swapped: the name of each module that was swapped, and the library and class it is of.
        left: the name of each other module that looks like attention, and why it stays as it is.
    """

    swapped: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"swapped {name or 'the model itself'}: {of}" for name, of in self.swapped.items()]
        lines += [f"left {name or 'the model itself'}: {why}" for name, why in self.left.items()]
        return "\n".join(lines) or "nothing in the model looks like attention"


def replace_attention(model: nn.Module, *, only: Collection[str] | None = None) -> Replaced:
    """Let the fused operator compute the additive attention of a model, in place.

    A module that is recognised (by the names of its class and of its arguments; the table is
    `attnkernels.interop.CONVENTIONS`) stays the object that it is, with its parameters, their names
    in `state_dict`, its hooks and its attributes: cached keys, masks, earlier weights, ``reset``.
    Its class becomes a subclass with the same name, whose forward takes the same arguments and
    returns the same things. Before that, both compute a small case of random numbers, and a module
    that computes something else than the library's is left.

    What changes: a row of which everything is masked gives zeros, not NaN or an average of padding;
    weights that dropout drops are others, as often; a fused step has no second derivatives where
    it caches keys (SpeechBrain's ContentBasedAttention, ESPnet's AttAdd).

    Copies and pickles are swapped as well, but for Keras, which makes them from its own class.

    Args:
        model: any module; of Keras any layer or model, with torch as its backend.
        only: names of modules as `model.named_modules()` gives them, for Keras the paths of layers
            (":2" after that of a second layer of the same path); patterns as of `fnmatch`
            ("decoder.*"). None: all that are recognised.

    Returns:
        What was swapped, and what was left and why. Swapping again changes nothing.

    Raises:
        TypeError: model is no module, or only is a string.
        ValueError: a name in ``only`` matches no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    if isinstance(only, str):
        raise TypeError(f"only is the string {only!r}; it must be a collection of names")
    modules = dict(_modules(model))
    for pattern in only or ():
        if not any(fnmatchcase(name, pattern) for name in modules):
            raise ValueError(f"only has {pattern!r}, which matches no module of the model")
    swapped, left = {}, {}
    for name, module in modules.items():
        live, why = _recognise(module)
        if live is None and why is None:
            continue
        if only is not None and not any(fnmatchcase(name, pattern) for pattern in only):
            left[name] = "not in only"
        elif why is None and live is not None and (why := _differs(module, live)) is None:
            own: Any = type(module)
            object.__setattr__(module, "__class__", fused_class(live.fused, own))
            swapped[name] = CONVENTIONS[live.convention].source
        else:
            left[name] = str(why)
    around = [name for name in left if any(each.startswith(_inside(name)) for each in swapped)]
    return Replaced(swapped, {name: why for name, why in left.items() if name not in around})


def _inside(name: str) -> tuple[str, ...]:
    """What the names of modules inside a module begin with; those of Keras are paths."""
    return (f"{name}.", f"{name}/") if name else ("",)


def _modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules. A Keras model tells torch of some layers only, or of none."""
    layers = getattr(model, "_flatten_layers", tuple)
    paths = {layer: layer.path or layer.name for layer in layers() if layer is not model}
    for name, module in model.named_modules():
        if module not in paths:
            yield name, module
    seen: Counter[str] = Counter()
    for layer, path in paths.items():
        seen[path] += 1
        yield (path if seen[path] == 1 else f"{path}:{seen[path]}"), layer


def _recognise(module: nn.Module) -> tuple[Live | None, str | None]:
    """What it is; or why it is nothing that we know; or neither, where it is no attention."""
    own = type(module)
    if isinstance(module, Fused):
        return None, "it is swapped already"
    if own.__module__.startswith("attnkernels."):
        return None, None
    named = [live for live in LIVE if own.__name__ in live.names]
    for live in named:
        if _takes(own, live):
            try:
                return live, live.why_not(module)
            except (AttributeError, KeyError) as error:
                return None, f"it is not what {live.convention!r} has under this name: {error}"
    if named:
        return None, f"its arguments are none of those of {_sources(named)}"
    if "att" in own.__name__.lower():
        return None, f"no convention knows the class {own.__name__}"
    return None, None


def _takes(own: type, live: Live) -> bool:
    """Whether the method takes the arguments, and others only if it need not be given them."""
    method = getattr(own, live.method, None)
    if method is None:
        return False
    found = list(inspect.signature(method).parameters.values())[1:]
    names, more = tuple(x.name for x in found), found[len(live.arguments) :]
    return names[: len(live.arguments)] == live.arguments and all(
        x.default is not inspect.Parameter.empty for x in more
    )


def _sources(named: list[Live]) -> str:
    return " or ".join(CONVENTIONS[live.convention].source for live in named)


def _differs(module: nn.Module, live: Live) -> str | None:
    """None where both compute the same; otherwise a sentence."""
    own: Any = type(module)
    devices = [x.device for x in module.parameters() if x.is_cuda][:1]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):  # a stranger may have dropout
            wanted, found = (
                _tensors(
                    [live.trial(_twin(module, cls, mode), _draw(module)) for mode in (True, False)]
                )
                for cls in (own, fused_class(live.fused, own))
            )
    except Exception as error:  # whatever a stranger's module may raise
        return f"a trial of it failed with {type(error).__name__}: {error}"
    if [x.shape for x in wanted] != [x.shape for x in found]:
        return f"it returns other shapes than {CONVENTIONS[live.convention].source}"
    half = wanted[0].dtype in (torch.float16, torch.bfloat16)
    close = 3e-2 if half else 1e-4
    for x, y in zip(wanted, found, strict=True):
        if not torch.allclose(x.double(), y.double(), rtol=close, atol=close):
            far = (x.double() - y.double()).abs().max().item()
            return (
                f"it does not compute what {CONVENTIONS[live.convention].source} does: "
                f"{far:.1g} apart on random numbers"
            )
    return None


def _twin(module: nn.Module, cls: type, training: bool) -> Any:
    """A module of the class, in training or not, that shares parameters and nothing it may set."""
    twin: Any = object.__new__(cls)
    parameters: dict[int, Any] = {id(x): x for x in module.parameters()}
    inner = {name: deepcopy(x, parameters) for name, x in module._modules.items()}
    twin.__dict__.update(
        module.__dict__, _modules=inner, _buffers=dict(module._buffers), training=training
    )
    for each in twin.children():
        each.train(training)
    return twin


def _draw(module: nn.Module) -> Draw:
    """Random numbers, the same at every call of this, of the module's dtype and device."""
    like = next(iter(module.parameters()), torch.empty(0))
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        x = torch.randn(sizes, generator=generator, device=generator.device)
        return x.to(like.device, like.dtype)

    return draw


def _tensors(results: Any) -> list[Tensor]:
    """All tensors in tuples and lists, in order; those of indices are left out."""
    if isinstance(results, Tensor):
        return [results] if results.is_floating_point() else []
    return [x for each in results for x in _tensors(each)]
