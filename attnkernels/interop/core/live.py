"""Recognition of a live module of another library, and the class that it takes on."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import wraps
from inspect import isfunction
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing as is_fx_tracing
from torch.nn.utils.parametrize import is_parametrized

KEPT = "_attnkernels_kept"  # the attribute of a module that holds its prepared keys
Draw = Callable[..., Tensor]  # sizes -> a random tensor of the module's dtype and device
Results: TypeAlias = "Tensor | Sequence[Results]"

M, LENGTHS = 5, (5, 3)  # keys per sequence in a trial, and those of its two that are not padding


def trial_lengths(like: Tensor) -> Tensor:
    """Return `LENGTHS` on the device of a tensor."""
    return torch.tensor(LENGTHS, device=like.device)


def _nothing(module: nn.Module) -> str | None:
    return None


@dataclass(frozen=True)
class Live:
    """The rule by which a live module is recognised, and the class that computes for it.

    Attributes:
        convention: a key of the same file's ``CONVENTIONS``.
        names: the names its class has in the library and in copies of it.
        arguments: the names of the arguments that its method must begin with, in this order.
            Further arguments must have defaults.
        fused: a subclass of `Fused` with the methods that replace the module's own. It reads the
            module's parameters and calls the module's own method for what it does not compute.
        trial: a function of the module and a `Draw` that calls the module on small inputs and
            returns the results. The module's own class and the fused one are compared by it.
        why_not: a function of the module that returns a sentence if the operator does not compute
            the module's options, and otherwise None.
        method: the name of the method that is replaced.
    """

    convention: str
    names: tuple[str, ...]
    arguments: tuple[str, ...]
    fused: type[Fused]
    trial: Callable[[Any, Draw], Results]
    why_not: Callable[[Any], str | None] = field(default=_nothing)
    method: str = "forward"


if TYPE_CHECKING:
    _Base = nn.Module
else:  # the library's class, which comes after a fused class, is the module
    _Base = object


class Fused(_Base):
    """Base of the classes whose methods take precedence over those of a library's class.

    It has no state but the attribute `KEPT`, which copies and pickles leave out. Pickles name the
    library's class, so that they load without this one; copies are fused.

    The library's own methods compute while torch traces or exports the module, so that the graph
    is the library's, and while one of the layers that ``scoring`` returns `adds_something`.

    Attributes:
        scoring: a function of the module that returns the layers whose weights its methods read
            instead of calling them.
    """

    scoring: ClassVar[Any] = staticmethod(lambda module: ())

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, method in list(vars(cls).items()):
            if isfunction(method) and not name.startswith("__"):
                setattr(cls, name, _or_own(cls, name, method))

    if TYPE_CHECKING:  # the attributes are those of the library's class

        def __getattr__(self, name: str) -> Any: ...

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what `torch.jit.script` compiles: the library's own module."""
        return as_own(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        own = own_class(type(self))
        if _reduces_itself(own):
            return as_own(self).__reduce_ex__(protocol)
        # Not as the library's would reduce itself: pickle insists on the class of the object.
        return copyreg._reconstructor, (own, object, None), _state(self)  # type: ignore[attr-defined]

    def __copy__(self) -> Any:
        return self._copied(copy, lambda x: x, {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if is_parametrized(self):  # it has deep copies, and no state
            twin = memo[id(self)] = object.__new__(type(self))
            twin.__dict__.update(deepcopy(_without_kept(self), memo))
            return twin
        return self._copied(lambda x: deepcopy(x, memo), lambda x: deepcopy(x, memo), memo)

    def _copied(
        self, whole: Callable[[Any], Any], state: Callable[[Any], Any], memo: dict[int, Any]
    ) -> Any:
        fused, own = type(self), own_class(type(self))
        if _reduces_itself(own) or hasattr(own, "__copy__") or hasattr(own, "__deepcopy__"):
            twin = memo[id(self)] = whole(as_own(self))
            if type(twin) is own:
                object.__setattr__(twin, "__class__", fused)
            return twin
        twin = memo[id(self)] = object.__new__(fused)  # first: the state may contain the module
        twin.__setstate__(state(_state(self)))
        return twin


def _or_own(cls: type[Fused], name: str, fused: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method ``fused``, with the library's own where that has to compute."""

    @wraps(fused)
    def method(self: Any, *args: Any, **options: Any) -> Any:
        if _is_traced() or any(adds_something(layer) is not None for layer in cls.scoring(self)):
            return getattr(super(cls, self), name)(*args, **options)
        return fused(self, *args, **options)

    return method


def _is_traced() -> bool:
    """Return True under torch.jit.trace, torch.fx.symbolic_trace, torch.export and ONNX's exports.

    torch.compile takes the operator, and so does torch.export(strict=True), a part of it.
    """
    if torch.jit.is_tracing() or is_fx_tracing():
        return True
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def _reduces_itself(own: type) -> bool:
    """Return True for a class that saves its modules in a way of its own, as Keras's does."""
    return own.__reduce__ is not object.__reduce__ or own.__reduce_ex__ is not object.__reduce_ex__


def _state(module: Any) -> Any:
    reduced: Any = as_own(module).__reduce_ex__(2)
    return reduced[2]


def as_own(module: Any) -> nn.Module:
    """Return the library's own module, which shares all state with the fused one."""
    twin: nn.Module = object.__new__(own_class(type(module)))
    twin.__dict__.update(_without_kept(module))
    return twin


def _without_kept(module: Any) -> dict[str, Any]:
    return {name: x for name, x in module.__dict__.items() if name != KEPT}


def own_class(cls: type) -> type[nn.Module]:
    """Return the library's class of a fused one, also of one whose parameters are parametrised."""
    if len(cls.__bases__) == 2:
        return cls.__bases__[1]
    named = {name: x for name, x in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls.__name__, (own_class(cls.__bases__[0]),), named)


def adds_something(layer: nn.Module) -> str | None:
    """Return a phrase for what a call of ``layer`` may do besides multiplying by its weight.

    Return None for a `torch.nn.Linear`, parametrised or not.
    """
    of = type(layer)
    if of is not nn.Linear and not (of.__bases__ == (nn.Linear,) and is_parametrized(layer)):
        return f"is a {of.__name__}, not a torch.nn.Linear"
    inside = layer.__dict__
    if (
        inside["_forward_hooks"]
        or inside["_forward_pre_hooks"]
        or inside["_backward_hooks"]
        or inside["_backward_pre_hooks"]
    ):
        return "has hooks"
    if "forward" in inside:
        return "has a forward of its own"
    weight = inside["_parameters"].get("weight")
    if weight is not None and type(weight) is not nn.Parameter:
        return f"has a weight of type {type(weight).__name__}"
    return None


_CLASSES: dict[tuple[type, type], type[nn.Module]] = {}


def fused_class(fused: type[Fused], own: type[nn.Module]) -> type[nn.Module]:
    """Return the class ``own`` with the methods of ``fused``: one class for each such pair.

    It has the name of ``own``, so that saved files name the library's class.
    """
    if (fused, own) not in _CLASSES:
        named = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
        _CLASSES.setdefault((fused, own), type(own.__name__, (fused, own), named))
    return _CLASSES[fused, own]
