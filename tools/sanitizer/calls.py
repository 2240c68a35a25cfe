"""Run every kernel of a backend once, on inputs so small that a tool can watch each access.

    python -m tools.sanitizer.calls [--device cuda|cpu] [--backend NAME]

`benchmarks.gpu` runs this under compute-sanitizer. The results are not checked; tests do that. The
inputs are made on the CPU and copied, so that almost every kernel is the backend's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnkernels import (
    additive_attention,
    additive_attention_varlen,
    additive_scores,
    prepare_keys,
)

ROWS = (1, 4, 70)  # a step, the largest step, and more than a tile
M, D, DV = 133, 35, 21  # beyond a tile, and not a multiple of a vector
DTYPES = (torch.float32, torch.bfloat16)  # float16 has the same size
ACTIVATIONS = ("tanh", "sigmoid", "relu", "leaky_relu")
Call = Callable[[], Any]


class Small:
    """The calls, with inputs of one device and dtype."""

    def __init__(self, device: str, dtype: torch.dtype, backend: str) -> None:
        self._device, self._dtype, self._backend = device, dtype, backend

    def calls(self) -> Iterator[Call]:
        """Return functions without arguments that return outputs to differentiate."""
        for n in ROWS:
            attend = partial(additive_attention, *self._inputs(n), backend=self._backend)
            yield attend
            for activation in ACTIVATIONS[1:]:
                yield partial(attend, activation=activation)
            yield partial(attend, attn_mask=self._to(torch.rand(n, M) < 0.5), return_weights=True)
            mask, lengths = self._leaf(2, n, M), self._to(torch.tensor([M, 50]))
            options = {"attn_mask": mask, "key_lengths": lengths, "dropout_p": 0.3}
            yield partial(attend, **options, is_causal=True, return_weights=True, return_lse=True)
            yield partial(attend, window_size=(20, 3), dropout_p=0.3)
            yield partial(self._heads, n)
            yield partial(self._scores, n)
            yield partial(self._step, n)
        yield partial(self._packed, [70, 0, 1, 4], [133, 5, 0, 40])
        yield partial(self._packed, [1, 1, 1, 1], [133, 5, 0, 40])
        yield partial(additive_attention, *self._inputs(5, m=0), backend=self._backend)

    def _inputs(self, n: int, m: int = M) -> tuple[Tensor, ...]:
        return self._leaf(2, n, D), self._leaf(2, m, D), self._leaf(2, m, DV), self._leaf(D)

    def _leaf(self, *shape: int) -> Tensor:
        return self._to(torch.randn(shape).to(self._dtype)).requires_grad_()

    def _to(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device)

    def _heads(self, n: int) -> Any:
        """Make calls with leading dimensions that broadcast, and rows that are not dense."""
        query, key = self._leaf(2, 1, D, n).mT, self._leaf(1, 3, M, 2 * D)[..., ::2]
        return additive_attention(
            query, key, self._leaf(M, DV), self._leaf(3, D), backend=self._backend
        )

    def _scores(self, n: int) -> Any:
        query, key, _, weight = self._inputs(n)
        return additive_scores(query, key, weight, backend=self._backend)

    def _step(self, n: int) -> Any:
        query, key, value, weight = self._inputs(n)
        return prepare_keys(key, value, weight, backend=self._backend).attend(query)

    def _packed(self, queries: list[int], keys: list[int]) -> Any:
        rows, columns = sum(queries), sum(keys)
        ends = [self._to(torch.tensor([0, *each]).cumsum(0)) for each in (queries, keys)]
        matrices = self._leaf(rows, D), self._leaf(columns, D), self._leaf(columns, DV)
        return additive_attention_varlen(
            *matrices, self._leaf(D), *ends, dropout_p=0.3, is_causal=True, backend=self._backend
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return 0, unless a call raises."""
    parser = argparse.ArgumentParser(prog="python -m tools.sanitizer.calls")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--backend", default="native")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    count = 0
    for dtype in DTYPES:
        for call in Small(options.device, dtype, options.backend).calls():
            outputs = call()
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            ones = [torch.ones(x.shape, dtype=x.dtype).to(options.device) for x in outputs]
            torch.autograd.backward(outputs, ones)
            with torch.no_grad():
                call()
            count += 1
    if options.device == "cuda":
        torch.cuda.synchronize()
    print(f"{count} calls of {options.backend}, forward and backward")
    return 0
