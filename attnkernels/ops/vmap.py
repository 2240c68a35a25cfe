"""torch.func.vmap of the operators: the mapped dimension becomes one more leading dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .signature import SIGNATURES, Operator, Signature, Values

Dims = tuple[int | None, ...]


def rule(name: str, op: Operator) -> Operator:
    """Return the vmap rule of `op`, which is the operator `name`."""
    signature = SIGNATURES[name]
    shared, broadcast = signature.places("shared"), _broadcast(signature)
    whole = signature.places("whole")
    gradients = _gradients(signature)

    needed = (place for place, _ in broadcast if signature.arguments[place].type == "Tensor")
    first = next(needed, None)
    pairs, seed = signature.pairs(), None
    if pairs and "seed" in signature.names:
        seed = signature.place("seed")

    def call(info: Any, dims: Dims, *args: Any) -> Any:
        if seed is not None and args[seed] is not None and dims[seed] is None:
            return _one_by_one(op, info.batch_size, dims, args)
        for pair in pairs:  # a tangent has the shape of its primal: both are mapped, or neither
            if pair[1] == first or any(dims[place] is not None for place in pair):
                args, dims = _mapped(info.batch_size, dims, args, pair)
        for place in shared:
            _refuse(signature.names[place], args[place], dims[place])
        # each example has gradients of its own, and a gradient has the shape of its argument
        leaves = [(i, place) for i, place, bit in gradients if args[-1] & bit]
        args, dims = _mapped(info.batch_size, dims, args, (*whole, *(place for _, place in leaves)))
        outputs = op(*_leading(info.batch_size, dims, args, broadcast, first))
        if isinstance(outputs, Tensor):
            return outputs, 0
        outputs = list(outputs)
        for i, place in leaves:
            outputs[i] = outputs[i].view(args[place].shape)
        return tuple(outputs), tuple(0 if x.dim() > 1 else None for x in outputs)

    return call


def _one_by_one(op: Operator, size: int, dims: Dims, args: Values) -> Any:
    """Return the results of a loop over the examples, each with the dropout of a call of its own.

    Forward-mode derivatives are mapped over by jacfwd, whose examples share one mask.
    """
    outputs = [
        op(*(x if dim is None else x.select(dim, i) for x, dim in zip(args, dims, strict=True)))
        for i in range(size)
    ]
    return tuple(map(torch.stack, zip(*outputs, strict=True))), (0,) * len(outputs[0])


def _broadcast(signature: Signature) -> tuple[tuple[int, int], ...]:
    """Return (position, trailing dimensions) of each argument that broadcasts over L."""
    return tuple(
        (place, each.trailing)
        for place, each in enumerate(signature.arguments)
        if each.trailing is not None
    )


def _gradients(signature: Signature) -> tuple[tuple[int, int, int], ...]:
    """Return (position among the results, position of its argument, bit) of each gradient."""
    if signature.names[-1] != "wanted":
        return ()
    return tuple(
        (signature.results.index(each.name), signature.place(each.name), each.wanted)
        for each in signature.leaves
    )


def _refuse(name: str, value: Tensor | None, dim: int | None) -> None:
    """Raise ValueError for arguments that the rules cannot map over."""
    if name == "seed" and value is not None:
        raise ValueError(
            "dropout_p must be 0 under torch.func.vmap, got dropout: the leading index of an"
            " example is a part of its mask; give the dimension as a leading one instead"
        )
    if dim is not None:
        raise ValueError(f"{name} must be shared by all examples of torch.func.vmap, got one each")


def _mapped(size: int, dims: Dims, args: Values, which: tuple[int, ...]) -> tuple[Values, Dims]:
    """Return `args` and `dims` with the mapped dimension first in those of `which`.

    Arguments that lack it are expanded.
    """
    new_args, new_dims = list(args), list(dims)
    for place in which:
        if args[place] is not None:
            new_args[place], new_dims[place] = _first(size, dims[place], args[place]), 0
    return tuple(new_args), tuple(new_dims)


def _leading(
    size: int, dims: Dims, args: Values, broadcast: tuple[tuple[int, int], ...], first: int | None
) -> list[Any]:
    """Return `args` with the mapped dimension as the first leading one.

    Argument `first` always has it.
    """
    out = list(args)
    rank = max(
        args[place].dim() - (dims[place] is not None) - trailing
        for place, trailing in broadcast
        if args[place] is not None
    )
    for place, trailing in broadcast:
        x, dim = args[place], dims[place]
        if x is None or (dim is None and place != first):
            continue
        x = _first(size, dim, x)
        missing = rank + trailing - (x.dim() - 1)
        out[place] = x[(slice(None), *(None,) * missing)] if missing else x
    return out


def _first(size: int, dim: int | None, x: Tensor) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
