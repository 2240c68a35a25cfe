"""Where kernels run and how they are started."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import configs


class Target(NamedTuple):
    """name: "cuda", "hip", or "" for the interpreter; lanes of a warp; processors (SM, CU)."""

    name: str
    lanes: int
    processors: int

    def room(self, warps: int) -> int:
        """Programs of `warps` warps that run at the same time."""
        return self.processors * configs.WARPS_A_PROCESSOR // warps


@cache
def target(device: torch.device) -> Target:
    """What `device` is."""
    if device.type != "cuda":
        return Target("", 32, 2)
    properties = torch.cuda.get_device_properties(device)
    name = "hip" if torch.version.hip else "cuda"
    return Target(name, properties.warp_size, properties.multi_processor_count)


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device: make it that of `tensor`."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def launch(kernel: Any, programs: int, arguments: dict[str, Any], warps: int, **more: Any) -> None:
    """Start `programs` programs of `kernel`, if any, with those of the arguments that it names."""
    if programs:
        named = arguments | more
        # left alone, ptxas stops at 168 for one or two warps, and spills what it could keep
        limit = {"maxnreg": 255} if named["TARGET"] == "cuda" else {}
        kernel[(programs,)](
            **{name: named[name] for name in kernel.arg_names},
            num_warps=warps,
            num_stages=1,
            **limit,
        )


def precision(where: Target) -> str:
    """How matrix products treat float32: in three parts on tensor cores, unless one is allowed."""
    if torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "tf32x3" if where.name == "cuda" else "ieee"


def power_of_two(size: int) -> int:
    return triton.next_power_of_2(max(size, 1))
