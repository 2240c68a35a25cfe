"""The operators behind the backends with kernels: one schema, one fake and one vmap rule each.

`define("native", "forward", ...)` makes attnkernels::native_forward and so on. A library, or a
module that calls `implement`, supplies implementations for its devices. Outputs are in the dtype of
the arithmetic: float32, or float64 for float64 inputs. Gradients have the shapes of their inputs:
those of a broadcast input are summed inside. Those of query, key and value are rounded to the dtype
of their input too; those of weight and attn_mask are left to callers to round.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import profiler
from torch.compiler import is_dynamo_compiling
from torch.library import Library
from torch.nn import Parameter

from . import vmap
from .codes import find_activation
from .fakes import fake
from .signature import SIGNATURES, Operator

# Kept by importlib.reload, as torch keeps what was registered: an operator is defined only once.
_library: Library = globals().get("_library") or Library("attnkernels", "DEF")
_PLAIN = {Tensor, Parameter}
_ready: dict[str, Any] = globals().get("_ready") or {}  # the operators, by name


def define(prefix: str, *names: str) -> SimpleNamespace:
    """Define one backend's operators, those of `names`; return their overloads by name.

    A module that is loaded again gets the operators of the first time.
    """
    ops = SimpleNamespace()
    for name in names:
        full = f"{prefix}_{name}"
        if full in _ready:
            setattr(ops, name, _ready[full])
            continue
        if not hasattr(torch.ops.attnkernels, full):  # the compiled library defines its own
            schema = SIGNATURES[name].schema()
            _library.define(full + schema, tags=(torch.Tag.pt2_compliant_tag,))
        op = getattr(torch.ops.attnkernels, full).default
        torch.library.register_fake(f"attnkernels::{full}", fake(name), lib=_library)
        torch.library.register_vmap(f"attnkernels::{full}", vmap.rule(name, op), lib=_library)
        setattr(ops, name, op)
        _ready[full] = op
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


def implement_by_others(op: Any, function: Operator) -> None:
    """Give an overload that the library defines, for some devices, `function` for all others."""
    name = op._schema.name.split("::")[1] + "." + op._schema.overload_name
    if name not in _ready:
        _library.impl(name, function, "CompositeImplicitAutograd")
        _ready[name] = op


def undispatched(op: Any, function: Operator, tensors: int) -> Operator:
    """Return `op`, whose implementation `function` is called where nothing else would happen.

    Its first `tensors` arguments are tensors or None. Where they are plain, and nothing traces,
    transforms or watches the call, the dispatcher only takes the arguments apart and puts them
    together again, which for so many takes longer than the launches of a kernel.
    """

    def call(*args: Any) -> Any:
        if (
            is_dynamo_compiling()
            or _are_functorch_transforms_active()
            or _len_torch_dispatch_stack()
            or _len_torch_function_stack()
            or _get_tracing_state() is not None
            or profiler._is_profiler_enabled
        ):
            return op(*args)
        for x in args[:tensors]:
            if x is None:
                continue
            if type(x) not in _PLAIN or x.is_meta or is_functorch_wrapped_tensor(x):
                return op(*args)
            if x.is_neg() or x._is_zerotensor():  # the dispatcher computes what these stand for
                return op(*args)
        return function(*args)

    return call


def composite(op: Any, function: Operator) -> Operator:
    """Return an operator that is `function` of the arguments of `op`, itself made of operators.

    torch.compile puts it into its graph as it is. AOTAutograd then runs `function`, and traces what
    torch.func and autograd do with it, which Dynamo's own trace of them does not always get right.
    """
    name = f"{op._schema.name.split('::')[1]}_traced"
    if name in _ready:
        return _ready[name]
    schema = str(op._schema)
    _library.define(name + schema[schema.index("(") :], tags=(torch.Tag.pt2_compliant_tag,))

    def call(*args: Any) -> Any:
        outputs = function(*args)
        if isinstance(outputs, Tensor):
            return outputs
        return tuple(args[0].new_empty(0) if x is None else x for x in outputs)

    _library.impl(name, call, "CompositeImplicitAutograd")
    # Before functorch gives the call to its levels: `function` uses rules of its own.
    _library.impl(name, call, "FuncTorchDynamicLayerFrontMode")
    _ready[name] = getattr(torch.ops.attnkernels, name).default
    return _ready[name]
