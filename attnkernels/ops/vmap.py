"""torch.func.vmap of the operators: the mapped dimension becomes one more leading dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor

# How many dimensions of each tensor argument are not leading ones, by its place in the schema.
FORWARD = {0: 2, 1: 2, 2: 2, 3: 1, 4: 2, 5: 0, 8: 3}
BACKWARD = {3: 2, 4: 2, 5: 2, 6: 1, 7: 2, 8: 0}
SCORES = {0: 2, 1: 2, 2: 1}
SCORES_BACKWARD = {1: 2, 2: 2, 3: 1}


def rules(ops: SimpleNamespace) -> dict[str, Callable[..., Any]]:
    """The vmap rule of each operator."""

    def forward(info: Any, dims: tuple[Any, ...], *args: Any) -> Any:
        refuse(dims, {6: "cu_seqlens_q", 7: "cu_seqlens_k"}, args[9])
        outputs = ops.forward(*leading(info.batch_size, dims, args, FORWARD))
        return outputs, (0, 0, 0 if args[-1] else None)

    def backward(info: Any, dims: tuple[Any, ...], *args: Any) -> Any:
        refuse(dims, {9: "cu_seqlens_q", 10: "cu_seqlens_k"}, args[11])
        whole = mapped(info.batch_size, dims, args, (0, 1, 2, 7, 12, 13, 14))
        dims = (*dims[:7], 0, *dims[8:])
        *grads, mask = ops.backward(*leading(info.batch_size, dims, whole, BACKWARD))
        if mask.numel():
            mask = mask.view(whole[7].shape)
        return (*grads, mask), places((*grads, mask))

    def scores(info: Any, dims: tuple[Any, ...], *args: Any) -> Any:
        return ops.scores(*leading(info.batch_size, dims, args, SCORES)), 0

    def scores_backward(info: Any, dims: tuple[Any, ...], *args: Any) -> Any:
        whole = mapped(info.batch_size, dims, args, (0,))
        grads = ops.scores_backward(*leading(info.batch_size, dims, whole, SCORES_BACKWARD))
        return grads, places(grads)

    def pack_keys(info: Any, dims: tuple[Any, ...], key: Tensor, activation: int) -> Any:
        return ops.pack_keys(key.movedim(dims[0], 0), activation), 0

    return {
        "forward": forward,
        "backward": backward,
        "scores": scores,
        "scores_backward": scores_backward,
        "pack_keys": pack_keys,
    }


def refuse(dims: tuple[Any, ...], names: dict[int, str], seed: Tensor | None) -> None:
    """What the rules cannot do."""
    if seed is not None:
        raise ValueError(
            "torch.func.vmap cannot map a call with dropout: the leading index of an example is a"
            " part of its mask; give the dimension as a leading one instead"
        )
    for place, name in names.items():
        if dims[place] is not None:
            raise ValueError(f"torch.func.vmap cannot map over {name}: examples must share it")


def mapped(
    size: int, dims: tuple[Any, ...], args: Sequence[Any], which: tuple[int, ...]
) -> list[Any]:
    """`args` with the mapped dimension first in those of `which`, made where there is none."""
    out = list(args)
    for place in which:
        x, dim = args[place], dims[place]
        if x is not None:
            out[place] = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return out


def leading(
    size: int, dims: tuple[Any, ...], args: Sequence[Any], trailing: dict[int, int]
) -> list[Any]:
    """`args` with the mapped dimension as the first leading one; query has it in any case."""
    out = list(args)
    query = min(trailing)
    rank = max(
        args[place].dim() - (dims[place] is not None) - t
        for place, t in trailing.items()
        if args[place] is not None
    )
    for place, t in trailing.items():
        x, dim = args[place], dims[place]
        if x is None or (dim is None and place != query):
            continue
        x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        missing = rank + t - (x.dim() - 1)
        out[place] = x[(slice(None), *(None,) * missing)] if missing else x
    return out


def places(grads: tuple[Tensor, ...]) -> tuple[int | None, ...]:
    """Where the mapped dimension is: nowhere in a gradient that was not wanted."""
    return tuple(0 if g.dim() > 1 else None for g in grads)
