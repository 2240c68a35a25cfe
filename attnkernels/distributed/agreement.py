"""The arguments that all ranks must agree on, compared once before they work."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..functional import checks
from ..ops.signature import Options
from .transfer import Group

R = TypeVar("R")
Described = dict[str, str]


def agreed(
    group: Group, device: torch.device, check: Callable[[], R], describe: Callable[[], Described]
) -> R:
    """Return check() if it succeeds on every rank and all ranks describe() the same.

    The ranks compare by tensors on `device`.

    Raises:
        TypeError, ValueError: this rank's own, if its check failed.
        ValueError: another rank's check failed, or two ranks differ; the message names the ranks.
    """
    error, found = None, None
    try:
        found = check()
    except (TypeError, ValueError) as own:
        error = own
    mine = json.dumps([None if error is None else str(error), describe()])
    every = [json.loads(text) for text in group.gather_texts(mine, device)]
    if error is not None:
        raise error
    for rank, (failed, _) in enumerate(every):
        if failed is not None:
            raise ValueError(f"the arguments of rank {rank} are wrong: {failed}")
    for name in describe():
        _compare(name, [said.get(name) for _, said in every])
    return found  # type: ignore[return-value]


def _compare(name: str, values: list[str]) -> None:
    groups: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        groups.setdefault(value, []).append(rank)
    if len(groups) > 1:
        each = "; ".join(
            f"{value} on rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
            for value, ranks in groups.items()
        )
        raise ValueError(f"{name} must be the same on all ranks, got {each}")


def described(inputs: tuple[Tensor, ...], options: Options, more: dict[str, Any]) -> Described:
    """Return what all ranks must agree on, by name, whatever the arguments are."""
    said: Described = {}
    for name, x in zip(("query", "key", "value", "weight"), inputs, strict=True):
        if isinstance(x, Tensor):
            rows = name != "weight"
            shape = [*x.shape]
            shape[-2:-1] = ["rows"] * rows if rows and len(shape) > 1 else shape[-2:-1]
            said[name] = f"({', '.join(map(str, shape))}), {x.dtype} on {x.device.type}"
    first = Options._fields.index("dropout_p")
    more = dict(zip(Options._fields[first:], options[first:], strict=True)) | more
    for name, value in more.items():
        said[name] = repr(checks.readable(value) if isinstance(value, Tensor) else value)
    return said
