"""D_i of (E4), and the pairs near which it cancels.

ds is a difference, a_ij (da_ij - D_i). Where a_ij is almost 1, D_i is almost da_ij, and rounding
two separate products would leave noise instead of the difference: of a row that sees a single key,
instead of 0. For a pair with most of its row's weight the terms are subtracted before they are
multiplied, dc_i . (u_j - c_i), and differences that are smaller than the rounding of c_i count as
0. There is at most one such pair in a row.
"""

import triton
import triton.language as tl

from .mask import kept

MOST = tl.constexpr(0.5)  # the weight above which a pair has most of its row

ROUNDING = tl.constexpr(2.0**-24)


@triton.constexpr_function
def context_error(precision, element, dropout):
    """Return the relative error of the context of a row that sees a single key.

    A product in parts of 11 bits loses up to two bits of a float32 value, and more of one that
    dropout has scaled. It is exact for 16-bit values.
    """
    if precision == "tf32":
        return 2.0**-9
    if precision == "ieee" or (element != tl.float32 and not dropout):
        return ROUNDING.value
    return 2.0**-19 if dropout else 2.0**-21


@triton.jit
def difference(x, y, error: tl.constexpr):
    """Return x - y, or 0 where it is within `error` of y."""
    rest = x - y
    return tl.where(tl.abs(rest) <= tl.abs(y) * error, 0.0, rest)


@triton.jit
def centred(
    outer,
    row,
    there,
    i,
    j,
    item,
    dropout,
    value,
    value_at,
    m,
    dv,
    BLOCK: tl.constexpr,
    ERROR: tl.constexpr,
):
    """Return float32 [rows]: da_ij - D_i for one key j of each query i.

    row: the rows of the outputs, those of queries that are `there`; value_at: the first value.
    """
    keep = 1.0
    if dropout is not None:
        keep = tl.where(kept(dropout, i, j, item), dropout.keep_scale, 0.0)
    x = tl.zeros(row.shape, tl.float32)
    if outer.grad_context is not None:
        u_at = (value_at + j.to(tl.int64) * value.row)[:, None]
        for c0 in range(0, dv, BLOCK):
            c = c0 + tl.arange(0, BLOCK)
            inside = there[:, None] & (c < dv)[None, :]
            at = row[:, None] * dv + c[None, :]
            dc = tl.load(outer.grad_context + at, mask=inside, other=0.0)
            context = tl.load(outer.context + at, mask=inside, other=0.0)
            u = tl.load(u_at + c.to(tl.int64)[None, :] * value.unit, mask=inside, other=0.0)
            u = u.to(tl.float32)
            if dropout is not None:
                u = tl.where(keep[:, None] == 0, 0.0, u * keep[:, None])
            x += tl.sum(dc * difference(u, context, ERROR), 1)
    if outer.grad_weights is not None:
        g = tl.load(outer.grad_weights + row * m + j, mask=there, other=0.0)
        g = tl.where(keep == 0, 0.0, g * keep)
        x += difference(g, tl.load(outer.weights + row, mask=there, other=0.0), ROUNDING)
    if outer.grad_lse is not None:
        x += tl.load(outer.grad_lse + row, mask=there, other=0.0)
    return x
