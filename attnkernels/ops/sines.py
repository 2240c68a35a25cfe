"""Scores as matrix products: tanh as a line and a few sines, which separate (docs/math.md, 13).

    (E14)  tanh(y) = l y + sum_p c_p sin(p h y),  p = 1 ... N, |y| <= reach
    (E15)  sin(p h (a + b)) = sin(p h a) cos(p h b) + cos(p h a) sin(p h b)

A sum over hidden units of products is a matrix product of depth 2 N d, and its derivatives are
products of the same depth. This is what precision="fast" computes in plain PyTorch; the table of
`series` and its errors are what the kernels have as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .codes import ACTIVATIONS, FACTORED
from .series import SERIES, Series


def chosen(reach: float) -> Series | None:
    """Return the shortest series for |y| <= reach, or None if there is none."""
    return next((each for each in SERIES if reach <= each.reach), None)


def scores(q: Tensor, k: Tensor, w: Tensor, activation: str) -> Tensor | None:
    """Return the scores of (E1) without their scale, or None where only the exact formula will do.

    It will do where a sum q + k is beyond the longest series, or not a number, where w is not
    finite, and where a trace or a transform hides the values, by which the series is chosen.
    Reading them waits for a device other than the CPU.

    Args:
        q: (..., n, d); k (..., m, d); w (d,) or (..., d): in the dtype of the arithmetic.
        activation: the name of f.
    """
    f = ACTIVATIONS[activation]
    if f.family != "logistic" or not (q.numel() and k.numel()):
        return None
    # f(x) = 1 - span / 2 + span / 2 * tanh(gain / 2 * x)
    a, b, w = q * (f.gain / 2), k * (f.gain / 2), w.unsqueeze(-2)
    reach = _reach(a, b, w)
    series = None if reach is None else chosen(reach)
    if series is None:
        return None
    u = w * (f.span / 2)
    order = torch.arange(1, len(series.sines) + 1, dtype=q.dtype, device=q.device)
    frequency, c = order * series.step, q.new_tensor(series.sines)
    at_q, at_k = a.unsqueeze(-1) * frequency, b.unsqueeze(-1) * frequency  # (..., n, d, N)
    weighted = u.unsqueeze(-1) * c
    left = torch.cat((at_q.sin() * weighted, at_q.cos() * weighted), -1).flatten(-2)
    right = torch.cat((at_k.cos(), at_k.sin()), -1).flatten(-2)
    of_query = (a * u).sum(-1, keepdim=True) * series.linear + w.sum(-1, keepdim=True) * (
        1 - f.span / 2
    )
    of_key = (b * u).sum(-1, keepdim=True) * series.linear
    return left @ right.mT + of_query + of_key.mT


def _reach(a: Tensor, b: Tensor, w: Tensor) -> float | None:
    """Return the largest |a + b| of any two rows, infinite for NaN and for w that is not finite.

    Return None where it cannot be read.
    """
    if torch.compiler.is_compiling():
        return None
    with torch.no_grad():
        highest = a.amax(-2) + b.amax(-2)
        lowest = a.amin(-2) + b.amin(-2)
        reach = torch.maximum(highest, -lowest).amax()
        size = torch.maximum(a.abs().amax(), b.abs().amax())
        usable = w.isfinite().all() & (size <= FACTORED / 2)  # further, sines lose their places
        try:
            largest = torch.where(usable, reach, torch.inf).item()
        except RuntimeError:  # batched by vmap, recorded by make_fx, or without data
            return None
    return largest
