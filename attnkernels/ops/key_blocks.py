"""Scores of one block of keys after another, the form in which torch.onnx.export writes (E1)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.compiler import is_exporting
from torch.nn.functional import pad
from torch.onnx import is_in_onnx_export

KEYS = 64  # per block: few enough for the memory, and enough for the loop not to count


def in_blocks(
    scores: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, w: Tensor
) -> Tensor:
    """Return scores(q, k, w), where ONNX is written in a loop over blocks of keys.

    ONNX Runtime would otherwise hold all n m d terms; a block has n d of them per key.
    """
    if not (is_exporting() and is_in_onnx_export()):
        return scores(q, k, w)
    from torch._higher_order_ops.scan import scan  # it becomes the operator Scan of ONNX

    def block(nothing: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        return nothing.clone(), scores(q, keys, w)

    q, k, w = (x.detach() for x in (q, k, w))  # scan's own derivative is not traced, and not wanted
    m = k.shape[-2]
    blocks = pad(k, (0, 0, 0, -m % KEYS)).unflatten(-2, (-1, KEYS)).movedim(-3, 0)
    found = scan(block, k.new_zeros(1), blocks)[1]  # (blocks, ..., n, KEYS)
    return found.movedim(0, -2).flatten(-2)[..., :m]
