"""The device that kernels run on, and how they are started."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import configs
from .recorder import Launch, current

_get_fp32_precision = torch._C._get_fp32_precision_getter


class Target(NamedTuple):
    """A name, "cuda", "hip" or "" for the interpreter; lanes per warp; processors (SM, CU).

    capability: of CUDA, the major number.
    """

    name: str
    lanes: int
    processors: int
    capability: int = 0

    def room(self, warps: int) -> int:
        """Return how many programs of `warps` warps run at the same time."""
        return self.processors * configs.WARPS_A_PROCESSOR // warps


@cache
def target(device: torch.device) -> Target:
    """Return the target of `device`."""
    if device.type != "cuda":
        return Target("", 32, 2)
    properties = torch.cuda.get_device_properties(device)
    name = "hip" if torch.version.hip else "cuda"
    size = properties.warp_size, properties.multi_processor_count
    return Target(name, *size, properties.major)


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the device of `tensor` the current one, where Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def launch(kernel: Any, programs: int, arguments: dict[str, Any], warps: int, **more: Any) -> None:
    """Start `programs` programs of `kernel`, if any, with the arguments that it names."""
    if programs:
        named = arguments | more
        # Multiply-adds are one instruction, whatever a Triton does by default: 3.10 will not fuse.
        options: dict[str, Any] = {"enable_fp_fusion": True} if named["TARGET"] else {}
        if named["TARGET"] == "cuda":
            # by default ptxas stops at 168 registers for one or two warps, and spills the rest
            options["maxnreg"] = 255
        given = {name: named[name] for name in kernel.arg_names}
        compiled = kernel[(programs,)](**given, num_warps=warps, num_stages=1, **options)
        if (recorder := current()) is not None:
            recorder.steps.append(Launch(compiled, programs, list(given.values())))


def precision(where: Target, fast: bool = False) -> str:
    """Return how tl.dot treats float32: in three tf32 parts; in one if torch or `fast` allows."""
    if fp32_precision() == "tf32" or (fast and where.name == "cuda"):
        return "tf32"
    return "tf32x3" if where.name == "cuda" else "ieee"


def fp32_precision() -> str:
    """Return torch.backends.cuda.matmul.fp32_precision, in a fifth of the time."""
    return _get_fp32_precision("cuda", "matmul")


def power_of_two(size: int) -> int:
    """Return the least power of two that is at least `size`."""
    return triton.next_power_of_2(max(size, 1))
