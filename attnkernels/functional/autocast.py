"""Autocast: the public functions use the dtype that it chooses for `torch.matmul`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import chain
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C import _is_any_autocast_enabled

P = ParamSpec("P")
R = TypeVar("R")


def follows_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` with its tensors cast under autocast as for `torch.matmul`.

    It runs with autocast off. An argument with a method `autocast` is cast by that method.
    """

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        if not _is_any_autocast_enabled():  # asking for one device takes 0.5 us more
            return function(*args, **options)
        tensors = (each for each in chain(args, options.values()) if isinstance(each, Tensor))
        device_type = next((each.device.type for each in tensors), "meta")
        if device_type == "meta" or not torch.is_autocast_enabled(device_type):
            return function(*args, **options)
        dtype = torch.get_autocast_dtype(device_type)
        cast_args = [cast(each, dtype) for each in args]
        cast_options = {name: cast(each, dtype) for name, each in options.items()}
        with torch.autocast(device_type, enabled=False):
            return function(*cast_args, **cast_options)

    return call


def cast(argument: Any, dtype: torch.dtype) -> Any:
    """Return a floating tensor in `dtype`; return float64 and everything else unchanged."""
    if isinstance(argument, Tensor):
        eligible = argument.is_floating_point() and argument.dtype != torch.float64
        return argument.to(dtype) if eligible else argument
    return argument.autocast(dtype) if hasattr(argument, "autocast") else argument
