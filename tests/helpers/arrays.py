"""NumPy arrays as the extensions of the emulator take them."""

from __future__ import annotations

import numpy as np


def f32(x: object) -> np.ndarray:
    return np.array(x, np.float32)


def bytes_of(x: np.ndarray) -> np.ndarray:
    """Return the memory of x."""
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)
