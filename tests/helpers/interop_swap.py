"""A live module of another library, as a test calls and swaps it: several steps of a decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attnkernels.interop import replace_attention
from attnkernels.interop.core.live import KEPT
from attnkernels.testing import assert_within_budget
from helpers.nn_twins import check_twin

E, D, A = 6, 5, 9  # features of the memory, of the decoder's state and of the scored sum
LENGTHS, MORE_LENGTHS, STEPS = (7, 1, 4), (3, 5), 4

Reorder = Callable[..., Any]  # (module, carried) -> carried


class SwapCase(NamedTuple):
    """A module and the way its library calls it.

    Attributes:
        make: a function that returns a new module.
        run: a function of the module, a memory (B, M, E), decoder states (STEPS, B, D), the
            lengths of the memory and a `Reorder`. It returns the results of each call. Between
            steps it passes the module, and whatever the library carries from step to step, to
            the `Reorder`.
        source: a part of the module's name in a report.
        cached: the attributes that the module caches and a beam search reorders.
        sizes: E and D, if they differ from the usual.
    """

    make: Callable[[], nn.Module]
    run: Callable[..., list[Any]]
    source: str
    cached: tuple[str, ...] = ()
    sizes: tuple[int, int] = (E, D)


def keep(module: nn.Module, carried: Any = None) -> Any:
    """Reorder nothing."""
    return carried


def reselect(case: SwapCase) -> Reorder:
    """Return a `Reorder` that replaces the cached attributes by a selection, as a beam search."""

    def reorder(module: Any, carried: Any = None) -> Any:
        for attribute in case.cached:
            setattr(module, attribute, select(getattr(module, attribute)))
        return select(carried)

    return reorder


def padding(lengths: Any, m: int) -> Tensor:
    """Return bool (B, m), True beyond the lengths, which are a list or a tensor."""
    return torch.arange(m) >= torch.as_tensor(lengths).unsqueeze(1)


def weigh(
    scores: Tensor, padded: Tensor | None, values: Tensor, summed: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the context and weights of scores (B, m) and values (B, m, .).

    Autocast casts the product of matrices and not, with ``summed``, the sum of products.
    """
    if padded is not None:
        scores = scores.masked_fill(padded, -torch.inf)
    weights = scores.softmax(-1)
    if summed:
        return (weights.unsqueeze(2) * values).sum(1), weights
    return (weights.unsqueeze(1) @ values).squeeze(1), weights


def batches(case: SwapCase, dtype: torch.dtype, *, grad: bool = True) -> dict[str, Tensor]:
    """Return the leaves of two batches, the second of another size."""
    e, d = case.sizes
    sizes = {
        "memory": (len(LENGTHS), max(LENGTHS), e),
        "states": (STEPS, len(LENGTHS), d),
        "second memory": (len(MORE_LENGTHS), max(MORE_LENGTHS), e),
        "second states": (STEPS - 1, len(MORE_LENGTHS), d),
    }
    return {
        name: torch.randn(size, dtype=torch.float64).to(dtype).requires_grad_(grad)
        for name, size in sizes.items()
    }


def drive(case: SwapCase, reorder: Reorder = keep) -> Callable[..., list[Any]]:
    """Return a function of a module and `batches` that runs both, one after the other."""

    def call(module: nn.Module, *inputs: Tensor) -> list[Any]:
        memory, states, more_memory, more_states = inputs
        return [
            *case.run(module, memory, states, LENGTHS, reorder),
            *case.run(module, more_memory, more_states, MORE_LENGTHS, reorder),
        ]

    return call


def tensors(found: Any) -> tuple[Tensor, ...]:
    """Return the tensors in tuples and lists, in order."""
    return (found,) if isinstance(found, Tensor) else tuple(x for y in found for x in tensors(y))


def swapped(case: SwapCase, dtype: torch.dtype = torch.float32) -> Any:
    """Return a new module of the case, swapped."""
    module = case.make().to(dtype)
    report = replace_attention(module)
    assert list(report.swapped) == [""] and not report.left, str(report)
    assert case.source in report.swapped[""]
    return module


def plain(module: nn.Module) -> Any:
    """Return the library's own module with the parameters of the swapped one."""
    _, own = type(module).__bases__
    twin: Any = object.__new__(own)
    twin.__dict__.update({name: x for name, x in vars(module).items() if name != KEPT})
    return twin


def check(case: SwapCase, module: nn.Module, reorder: Any = None, **options: Any) -> None:
    """Assert that all results and gradients are within the budget around the library's."""
    run = drive(case, *[reorder] * (reorder is not None))
    check_twin(
        module,
        lambda module, *inputs: tensors(run(plain(module), *inputs)),
        batches(case, next(module.parameters()).dtype),
        call=lambda module, *inputs: tensors(run(module, *inputs)),
        **options,
    )


def assert_rounded(
    found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], exact: tuple[Tensor, ...]
) -> None:
    """Assert that results under autocast have the library's dtypes, and are right to bfloat16."""
    for x, y, z in zip(found, wanted, exact, strict=True):
        assert x.dtype is y.dtype
        x, y = x.to(torch.bfloat16), y.to(torch.bfloat16)
        assert_within_budget(x, y, z.double(), magnitude=1.0)


def same(found: Any, wanted: Any) -> None:
    """Assert that two trees of tuples, lists and tensors are equal up to rounding."""
    assert type(found) is type(wanted)
    if isinstance(wanted, (tuple, list)):
        assert len(found) == len(wanted)
        for x, y in zip(found, wanted, strict=True):
            same(x, y)
    elif isinstance(wanted, Tensor) and wanted.is_floating_point():
        assert found.requires_grad == wanted.requires_grad
        assert_within_budget(found, wanted, wanted, magnitude=1 + wanted.abs().max().item())
    elif isinstance(wanted, Tensor):
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    else:
        assert found == wanted


def select(x: Any) -> Any:
    """Return the entries of a batch as a beam search might select them, some twice."""
    if isinstance(x, (list, tuple)):
        return type(x)(map(select, x))
    return x if x is None else x.index_select(0, torch.tensor([2, 0, 0])[-x.shape[0] :])
