"""Swapped modules compile in no more graphs than the library's own, and compute the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from helpers.inputs import F32
from helpers.interop_swap import LENGTHS, SwapCase, batches, keep, plain, same, swapped, tensors
from interop.libraries import SWAPS
from torch import nn


class Compiled:
    """A module whose calls are compiled; its attributes and other methods are as they were."""

    def __init__(self, module: nn.Module, **options: Any) -> None:
        vars(self).update(module=module, call=torch.compile(module, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def __setattr__(self, name: str, x: Any) -> None:
        setattr(self.module, name, x)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.call(*args, **options)


@pytest.mark.parametrize("case", SWAPS.values(), ids=SWAPS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_compiled_in_as_many_graphs(case: SwapCase, training: bool) -> None:
    """Each call is one graph, and the steps of a decoder share it as the library's do."""
    module = swapped(case).train(training)
    memory, states, *_ = batches(case, F32, grad=training).values()
    states = states[: 2 if case.cached else 1]
    counts, results = [], []
    for each in plain(module), module:
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounter()
        compiled = Compiled(each, backend=counter, fullgraph=True)
        with torch.set_grad_enabled(training):
            results.append(tensors(case.run(compiled, memory, states, LENGTHS, keep)))
        counts.append(counter.frame_count)
    same(*results)
    assert counts[1] <= counts[0]
