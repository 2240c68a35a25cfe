"""Call every public function many times, forward and backward, in memory that must not grow."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnkernels import (
    additive_attention,
    additive_attention_sparse,
    additive_attention_varlen,
    additive_scores,
    prepare_edges,
    prepare_keys,
)

from .calls import name_of

LEAKED = 64  # bytes per call: less than the smallest object that a call could lose
NOISE = 1 << 19  # bytes by which a process grows on its own
WARM_UP = 1000  # calls, before which allocators and caches still grow
STATUS = Path("/proc/self/status")
Call = Callable[[], Any]


def find_growth(backend: str, calls: int) -> int:
    """Print the growth of every function; return 1 if one grows with the number of calls."""
    torch.set_num_threads(1)
    grown = False
    for name, call in functions(name_of(backend)).items():
        start = time.monotonic()
        growth = growth_of(call, calls)
        leaks = growth > LEAKED * calls + NOISE
        grown |= leaks
        print(
            f"{'GROWS' if leaks else 'stays'} {backend} {name}: {growth / 1024:+.0f} KiB in"
            f" {calls:,} calls, {growth / calls:.1f} bytes per call"
            f" ({time.monotonic() - start:.0f} s)",
            flush=True,
        )
    return int(grown)


def growth_of(call: Call, calls: int) -> int:
    """Return the bytes by which the process grows in `calls` calls, after a warm-up."""
    for _ in range(min(WARM_UP, calls)):
        call()
    before = _resident()
    for _ in range(calls):
        call()
    return _resident() - before


def _resident() -> int:
    """Return the resident bytes of this process, without what its allocator could give back.

    Pages of files do not count: the system takes them away and brings them back as it likes.
    """
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(lines["RssAnon"].removesuffix("kB"))


def functions(backend: str) -> dict[str, Call]:
    """Return a small call of every public function, with its options, forward and backward."""
    torch.manual_seed(0)
    shapes = ((2, 3, 8), (2, 5, 8), (2, 5, 4), (8,))
    query, key, value, weight = (torch.randn(shape, requires_grad=True) for shape in shapes)
    rows, columns, values = (x.detach().flatten(0, 1).requires_grad_() for x in (query, key, value))
    mask = torch.randn(2, 3, 5, requires_grad=True)
    lengths, index = torch.tensor([5, 2]), torch.tensor([1, 0])
    ends = torch.tensor([0, 2, 6]), torch.tensor([0, 7, 10])
    given = {"backend": backend}

    def dense() -> Iterator[tuple[Tensor, ...]]:
        yield (additive_attention(query, key, value, weight, **given),)
        yield additive_attention(
            *(query, key, value, weight),
            attn_mask=mask,
            key_lengths=lengths,
            is_causal=True,
            window_size=(2, 1),
            dropout_p=0.2,
            return_weights=True,
            return_lse=True,
            **given,
        )

    def attend() -> Iterator[tuple[Tensor, ...]]:
        memory = prepare_keys(key, value, weight, key_lengths=lengths, **given)
        yield (memory.attend(query),)
        yield memory.index_select(0, index).attend(query, attn_mask=mask, return_weights=True)

    def scores() -> Iterator[tuple[Tensor, ...]]:
        yield (additive_scores(query, key, weight, activation="relu", **given),)

    def varlen() -> Iterator[tuple[Tensor, ...]]:
        packed = (rows, columns, values, weight, *ends)
        yield additive_attention_varlen(*packed, dropout_p=0.2, return_lse=True, **given)

    def sparse() -> Iterator[tuple[Tensor, ...]]:
        edges = prepare_edges(torch.tensor([[0, 4, 1, 0], [2, 2, 0, 2]]), n=3, m=5)
        yield (additive_attention_sparse(query, key, key, weight, edges, **given),)
        options = {"dropout_p": 0.2, "return_weights": True, "return_lse": True}
        yield additive_attention_sparse(
            *(query, key, value, weight, edges), edge_bias=mask[:, 0, :4], **options, **given
        )

    made = {
        "additive_attention": dense,
        "prepare_keys and attend": attend,
        "additive_scores": scores,
        "additive_attention_varlen": varlen,
        "prepare_edges and additive_attention_sparse": sparse,
    }
    return {name: _backward_of(variants) for name, variants in made.items()}


def _backward_of(variants: Callable[[], Iterator[tuple[Tensor, ...]]]) -> Call:
    """Return a call of one of the variants after another, with its backward pass."""
    outputs = (each for again in repeat(variants) for each in again())

    def call() -> None:
        found = [x.nan_to_num(neginf=0.0).sum() for x in next(outputs)]
        torch.stack([x.float() for x in found]).sum().backward()

    return call
