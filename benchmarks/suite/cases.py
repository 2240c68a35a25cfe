"""The named cases: the uses of additive attention, at their usual sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

DIRECTIONS = ("forward", "both")
GRAPH = "graph"  # the forward replayed from a CUDA graph: the kernels of a step without its Python
FAST = frozenset({"reference-fast", "triton-fast", "native-fast"})  # with precision="fast"
EVERYONE = frozenset({"eager", "compile", "keras", "keops", "triton", "native"}) | FAST


class Case(NamedTuple):
    """A case of `shape` (B, n, m, d, dv).

    prepared: a decoder's step with prepared keys.
    window: how many keys a query sees before its own position, and after it; None: all. n is m.
    """

    name: str
    shape: tuple[int, int, int, int, int]
    group: str = "main"
    directions: tuple[str, ...] = DIRECTIONS
    providers: frozenset[str] = EVERYONE
    prepared: bool = False
    window: int | None = None


def _case(name: str, batch: int, n: int, m: int, d: int, **options: Any) -> Case:
    return Case(name, (batch, n, m, d, d), **options)


_OURS = frozenset({"triton", "native"}) | FAST
_LONG: dict[str, Any] = {"group": "long", "providers": _OURS}
_SMALL: dict[str, Any] = {"group": "small", "providers": _OURS | {"eager", "compile"}}
_STEP: dict[str, Any] = {"directions": (*DIRECTIONS, GRAPH)}
_GPU_LONG: dict[str, Any] = {"group": "gpu", "directions": ("both",), "providers": _OURS}

CASES = (
    _case("rnnsearch", 8, 50, 50, 1000),
    _case("gnmt", 32, 74, 75, 1024),
    _case("decoder-step", 32, 1, 200, 512, **_STEP),
    _case("decoder-step-prepared", 32, 1, 200, 512, directions=("forward", GRAPH), prepared=True),
    _case("tacotron-step", 16, 1, 400, 128, **_STEP),
    _case("pooling", 256, 1, 512, 256),
    _case("pointer", 64, 20, 20, 256),
    _case("character", 1, 2048, 2048, 256),
    _case("square", 1, 512, 512, 256),
    _case("square-128", 1, 512, 512, 128),
    _case("tiny-1", 1, 1, 1, 1, **_SMALL),
    _case("tiny-2", 2, 3, 5, 8, **_SMALL),
    _case("tiny-4", 4, 7, 9, 33, **_SMALL),
    _case("long-16k", 1, 16384, 16384, 128, **_LONG),
    _case("long-64k", 1, 65536, 65536, 64, directions=("forward",), **_LONG),
    _case("window", 1, 65536, 65536, 64, **_LONG | {"providers": _OURS | {"eager"}}, window=256),
    _case("gpu-square", 8, 1024, 1024, 256, group="gpu"),
    _case("gpu-step", 64, 1, 4096, 512, group="gpu", **_STEP),
    _case("gpu-long", 1, 32768, 32768, 256, **_GPU_LONG),
)
BY_REQUEST = {"long", "gpu"}  # groups that run only if they, or one of their cases, are named


def choose(wanted: str | None) -> list[Case]:
    """Return the cases of a comma-separated list of names and groups; None: all but BY_REQUEST.

    Raises:
        ValueError: a name is unknown; the message lists the known ones.
    """
    if wanted is None:
        return [case for case in CASES if case.group not in BY_REQUEST]
    names = wanted.split(",")
    known = {case.name for case in CASES} | {case.group for case in CASES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"no case or group {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    return [case for case in CASES if case.name in names or case.group in names]


class Inputs(NamedTuple):
    query: Tensor  # (B, n, d)
    key: Tensor  # (B, m, d)
    value: Tensor  # (B, m, dv)
    weight: Tensor  # (d,)
    arriving: Tensor  # (B, n, dv), the gradient of the context


def inputs(case: Case, dtype: torch.dtype, requires_grad: bool, device: str = "cpu") -> Inputs:
    """Make standard normal inputs, the same in every process, and weight of variance 1 / d."""
    batch, n, m, d, dv = case.shape
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    weight = (normal(d) / d**0.5).to(dtype)
    given = Inputs(
        normal(batch, n, d), normal(batch, m, d), normal(batch, m, dv), weight, normal(batch, n, dv)
    )
    for leaf in given[:4]:
        leaf.requires_grad_(requires_grad)
    return given
