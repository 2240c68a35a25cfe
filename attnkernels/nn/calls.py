"""Calls between modules, made so that hooks and FSDP2 see them as those of `forward`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

_PACKAGE = __name__.partition(".")[0] + "."


class Reading:
    """The key in a call of an attention by a decoder: what `forward` computes of the query.

    The memory behind it is prepared, and the query is checked.
    """

    __slots__ = ("attend",)

    def __init__(self, attend: Callable[[Tensor], Any]) -> None:
        self.attend = attend


def as_forward(module: Any, method: str) -> Any:
    """Return a method of `module` that FSDP2 gathers the parameters for, as for `forward`.

    `torch.distributed.fsdp.fully_shard` knows no other methods of the modules that it shards.
    """
    if not is_sharded(module):
        return getattr(module, method)
    name = f"_{method}_as_forward"  # the method itself stays: others of the module may call it
    if name not in module.__dict__:
        module.__dict__[name] = getattr(module, method)
        sys.modules["torch.distributed.fsdp"].register_fsdp_forward_method(module, name)
    return module.__dict__[name]


def is_sharded(module: Any) -> bool:
    """Return True if FSDP2 shards `module` by itself, rather than as a part of another."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # loaded by whoever has sharded a module
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def is_plain(layer: Any, kind: type) -> bool:
    """Return True if a call of `layer` does what `kind` does with its weight, and nothing else.

    Quantised and parametrised layers are of other classes, and a hook wants to see every call.
    """
    return type(layer) is kind and not has_hooks(layer)


def has_hooks(module: Any) -> bool:
    """Return True if `module` has hooks of its own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def watched(module: Any) -> bool:
    """Return True if a call of `module` may do more than its `forward`, which is this package's.

    Hooks, compilers, wrappers and subclasses with a forward of their own see every call.
    """
    kind = type(module)
    return bool(
        has_hooks(module)
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
        or kind.__call__ is not nn.Module.__call__
        or not kind.forward.__module__.startswith(_PACKAGE)
        or _has_any_global_hook()
        or torch.compiler.is_compiling()
    )
