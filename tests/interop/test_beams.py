"""A memory that `expand` repeats for every beam is projected and prepared once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.inputs import F32, F64
from helpers.interop_swap import (
    LENGTHS,
    SwapCase,
    batches,
    keep,
    plain,
    reselect,
    same,
    swapped,
    tensors,
)
from interop.libraries import SWAPS
from torch import Tensor, nn

from attnkernels.interop.core import attend

ALL = pytest.mark.parametrize("case", SWAPS.values(), ids=SWAPS)


APART = ("allennlp", "tacotron")  # no layer projects the memory, or its caller calls it


def beams(case: SwapCase, grad: bool, dtype: torch.dtype = F32) -> tuple[Tensor, Tensor, Tensor]:
    """Return a memory, the same for every beam, and the states of the beams."""
    memory, states, *_ = batches(case, dtype, grad=grad).values()
    one = memory[:1].detach().clone().requires_grad_(grad)
    return one, one.expand(len(LENGTHS), -1, -1), states


@ALL
@pytest.mark.parametrize("reorder", [False, True], ids=["", "reordered"])
def test_results(case: SwapCase, reorder: bool) -> None:
    """Also the cached attributes keep their shapes and values."""
    module = swapped(case)
    _, memory, states = beams(case, False)
    found = []
    with torch.inference_mode():
        for each in module, plain(module):
            results = case.run(each, memory, states, LENGTHS, reselect(case) if reorder else keep)
            found.append([*tensors(results), *(getattr(each, name) for name in case.cached)])
    same(*found)


@ALL
@pytest.mark.parametrize("frozen", [False, True], ids=["", "a frozen memory"])
def test_gradients(case: SwapCase, frozen: bool) -> None:
    module, found = swapped(case, F64), []
    one, memory, states = beams(case, True, F64)
    for each in module, plain(module):
        for x in one, states, *module.parameters():
            x.grad = None
        given = memory.detach() if frozen else memory
        results = tensors(case.run(each, given, states, LENGTHS, keep))
        sum((x.square().sum() for x in results), torch.zeros(())).backward()
        found.append([x.grad for x in (states, *module.parameters())] + [one.grad] * (not frozen))
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("name", [x for x in SWAPS if x[:8] not in APART and x[-3:] != "han"])
def test_projections_are_computed_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the memory: no layer sees its rows more than once.

    In han_mode the memory is another at each step, and no expanded one.
    """
    case = SWAPS[name]
    module, rows, own = swapped(case), [], nn.Linear.forward
    _, memory, states = beams(case, False)

    def forward(self: Any, x: Tensor) -> Tensor:
        rows.append(x.shape[:-1].numel() if x.shape[-1] == memory.shape[-1] else 0)
        return own(self, x)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    with torch.no_grad():
        case.run(module, memory, states, LENGTHS, keep)
    assert max(rows) < len(LENGTHS) * memory.shape[1]


@pytest.mark.parametrize("name", ["captioning", "espnet-add", "espnet-heads", "speechbrain"])
def test_keys_are_given_to_the_operator_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = SWAPS[name]
    module, sizes = swapped(case), []

    def watch(of: str) -> None:
        own = getattr(attend, of)

        def call(*args: Any, **options: Any) -> Any:
            sizes.extend(len(x) for x in args if x.dim() == 3 and x.shape[1] == max(LENGTHS))
            return own(*args, **options)

        monkeypatch.setattr(attend, of, call)

    watch("additive_attention")
    watch("prepare_keys")
    _, memory, states = beams(case, False)
    with torch.no_grad():
        case.run(module, memory, states, LENGTHS, keep)
    assert sizes and set(sizes) == {1}
