"""Scores as matrix products: tanh as a line and a few sines, which separate (docs/math.md, 13).

    (E14)  tanh(y) = l y + sum_p c_p sin(p h y),  p = 1 ... N, |y| <= reach
    (E15)  sin(p h (a + b)) = sin(p h a) cos(p h b) + cos(p h a) sin(p h b)

A sum over hidden units of products is a matrix product of depth 2 N d, and its derivatives are
products of the same depth. This is what precision="fast" computes in plain PyTorch; the table of
`series` and its errors are what the kernels have as well.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .codes import ACTIVATIONS, FACTORED, Activation
from .series import SERIES, Series


def chosen(reach: float) -> Series | None:
    """Return the shortest series for |y| <= reach, or None if there is none."""
    return next((each for each in SERIES if reach <= each.reach), None)


def scores(
    q: Tensor,
    k: Tensor,
    w: Tensor,
    activation: str,
    exact: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor | None:
    """Return the scores of (E1) without their scale, or None where only the exact formula will do.

    It will do where a trace or a transform hides the values, by which the series is chosen. Reading
    them waits for a device other than the CPU. Hidden units with a sum q + k beyond the longest
    series, or with anything that is not finite, are left to `exact`.

    Args:
        q: (..., n, d); k (..., m, d); w (d,) or (..., d): in the dtype of the arithmetic.
        activation: the name of f.
        exact: the formula, of some of the hidden units.
    """
    f = ACTIVATIONS[activation]
    if f.family != "logistic" or not (q.numel() and k.numel() and w.numel()):
        return None
    reaches = _reaches(q, k, w, f.gain / 2)
    if reaches is None:
        return None
    inside = [t for t, reach in enumerate(reaches) if chosen(reach)]
    if not inside:
        return None
    if len(inside) == len(reaches):
        return _by_sines(q, k, w, f, max(reaches))
    others = [t for t, reach in enumerate(reaches) if not chosen(reach)]
    reach = max(reaches[t] for t in inside)
    return _by_sines(*_of_units(inside, q, k, w), f, reach) + exact(*_of_units(others, q, k, w))


def _of_units(units: list[int], q: Tensor, k: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    index = torch.tensor(units, device=q.device)
    return q.index_select(-1, index), k.index_select(-1, index), w.index_select(-1, index)


def _by_sines(q: Tensor, k: Tensor, w: Tensor, f: Activation, reach: float) -> Tensor:
    """Return (E1) without its scale by (E14)."""
    # f(x) = 1 - span / 2 + span / 2 * tanh(gain / 2 * x)
    series = chosen(reach)
    assert series is not None
    a, b, w = q * (f.gain / 2), k * (f.gain / 2), w.unsqueeze(-2)
    u = w * (f.span / 2)
    order = torch.arange(1, len(series.sines) + 1, dtype=q.dtype, device=q.device)
    frequency, c = order * series.step, q.new_tensor(series.sines)
    at_q, at_k = a.unsqueeze(-1) * frequency, b.unsqueeze(-1) * frequency  # (..., n, d, N)
    weighted = u.unsqueeze(-1) * c
    left = torch.cat((at_q.sin() * weighted, at_q.cos() * weighted), -1).flatten(-2)
    right = torch.cat((at_k.cos(), at_k.sin()), -1).flatten(-2)
    rest = w.sum(-1, keepdim=True) * (1 - f.span / 2)
    of_query = (a * u).sum(-1, keepdim=True) * series.linear + rest
    of_key = (b * u).sum(-1, keepdim=True) * series.linear
    return left @ right.mT + of_query + of_key.mT


def _reaches(q: Tensor, k: Tensor, w: Tensor, gain: float) -> list[float] | None:
    """Return the largest |gain (q + k)| of each hidden unit, or None where it cannot be read.

    It is infinite where sines must not be used.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    with torch.no_grad():
        highest = q.amax(-2) + k.amax(-2)
        lowest = q.amin(-2) + k.amin(-2)
        reach = torch.maximum(highest, -lowest)
        size = torch.maximum(q.abs().amax(-2), k.abs().amax(-2))
        usable = w.isfinite() & (gain * size <= FACTORED / 2)  # further, sines lose their places
        reach = torch.where(usable, gain * reach, torch.inf)
        try:
            return reach.flatten(0, -2).amax(0).tolist() if reach.dim() > 1 else reach.tolist()
        except RuntimeError:  # batched by vmap, recorded by make_fx, or without data
            return None
