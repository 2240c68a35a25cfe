"""Interpret the sums of products that the Triton sweep computes where it is compiled.

The interpreter itself takes a sum with fewer tensors. Run with TRITON_INTERPRET=1.
"""

import torch
import triton
import triton.language as tl

from attnkernels.backends.triton.device.sweep import add_products

ROWS, LANES = 16, 8


@triton.jit
def products_kernel(a, b, out, ROWS: tl.constexpr, LANES: tl.constexpr):
    at = tl.arange(0, ROWS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    lane = tl.arange(0, LANES)
    to = tl.load(out + lane)
    tl.store(out + lane, add_products(to, tl.load(a + at), tl.load(b + at), ROWS // 4))


if __name__ == "__main__":
    a, b = (torch.randint(-9, 10, (ROWS, LANES)).float() for _ in range(2))  # of exact sums
    out = torch.arange(float(LANES))
    expected = out + (a * b).sum(0)
    products_kernel[(1,)](a, b, out, ROWS, LANES)
    assert torch.equal(out, expected), (out, expected)
