"""The operators behind the backends with kernels: one schema, one fake and one vmap rule each.

`define("native", "forward", ...)` makes attnkernels::native_forward and so on. A library, or a
module that calls `implement`, supplies implementations for its devices. Outputs are in the dtype of
the arithmetic: float32, or float64 for float64 inputs. Gradients have the leading shape L that the
inputs broadcast to. Their dtype is that of their input, or that of the arithmetic if they are still
to be summed over L: callers sum and round.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch.library import Library

from . import vmap
from .codes import find_activation
from .fakes import fake
from .signature import SIGNATURES, Operator

# Kept by importlib.reload, as torch keeps what was registered: an operator is defined only once.
_library: Library = globals().get("_library") or Library("attnkernels", "DEF")


def define(prefix: str, *names: str) -> SimpleNamespace:
    """Define one backend's operators, those of `names`; return their overloads by name.

    A module that is loaded again gets the operators of the first time.
    """
    ops = SimpleNamespace()
    for name in names:
        full = f"{prefix}_{name}"
        if hasattr(torch.ops.attnkernels, full):
            setattr(ops, name, getattr(torch.ops.attnkernels, full).default)
            continue
        schema = SIGNATURES[name].schema()
        _library.define(full + schema, tags=(torch.Tag.pt2_compliant_tag,))
        op = getattr(torch.ops.attnkernels, full).default
        torch.library.register_fake(f"attnkernels::{full}", fake(name), lib=_library)
        torch.library.register_vmap(f"attnkernels::{full}", vmap.rule(name, op), lib=_library)
        setattr(ops, name, op)
    return ops


def implement(full: str, function: Operator, dispatch_key: str) -> None:
    """Give operator `full` ("triton_forward") a Python implementation for one kind of device.

    An unknown activation is refused before `function` is called. A module that is loaded again
    keeps the implementation of the first time.
    """
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"attnkernels::{full}", dispatch_key):
        return
    activation = SIGNATURES[full.split("_", 1)[1]].place("activation")

    def checked(*args: Any) -> Any:
        find_activation(args[activation])
        return function(*args)

    _library.impl(full, checked, dispatch_key)
