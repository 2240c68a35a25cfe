"""Make Triton's interpreter round a fused multiply-add once, as the hardware does."""

from __future__ import annotations

from typing import Any

import numpy as np


def fuse_multiply_adds() -> None:
    """Replace the interpreter's product, whose rounding errors the kernels ask a multiply-add for.

    Products of float32 are exact in float64.
    """
    from triton.runtime import interpreter

    def create_fma(_: Any, x: Any, y: Any, z: Any) -> Any:
        exact = x.data.astype(np.float64) * y.data + z.data
        return interpreter.TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)

    interpreter.InterpreterBuilder.create_fma = create_fma
