"""The error that precision="fast" may have: at most that of rounding all inputs to bfloat16.

It is measured beside each call, as a norm, because it depends on the inputs as theirs does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .inputs import BF16, F32, F64


def outcome(call: Any, tensors: list[Tensor], dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """Return the results of a call in `dtype`, and its gradients for the same directions."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in tensors]
    torch.manual_seed(5)  # of dropout
    found = call(*leaves, **options)
    results = list(found) if isinstance(found, tuple) else [found]
    torch.manual_seed(7)
    outer = [torch.randn(x.shape, dtype=F64).to(x.dtype) for x in results]
    return [*results, *torch.autograd.grad(results, leaves, outer)]


def assert_as_good_as_bfloat16(
    call: Any, tensors: list[Tensor], name: str, times: float = 1.0, **options: Any
) -> None:
    """Assert that errors have a smaller norm than `times` those that rounding the inputs causes."""
    exact = outcome(call, tensors, F64, backend="reference", **options)
    rounded = [x.detach().to(BF16).to(F64) for x in tensors]
    allowed = outcome(call, rounded, F64, backend="reference", **options)
    found = outcome(call, tensors, F32, backend=name, precision="fast", **options)
    assert len(found) == len(exact)
    for place, (x, wanted, other) in enumerate(zip(found, exact, allowed, strict=True)):
        finite = wanted.isfinite()
        assert torch.equal(x.isfinite(), finite), place
        error = (x.double() - wanted)[finite].norm()
        assert error <= times * (other - wanted)[finite].norm() + 1e-6 * wanted[finite].norm(), (
            place
        )
