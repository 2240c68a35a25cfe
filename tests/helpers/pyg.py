"""PyTorch Geometric's own GATv2Conv, swapped, and graphs for it."""

from __future__ import annotations

import sys
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnkernels.interop import replace_attention
from benchmarks.suite import peers

from .inputs import F32
from .interop_swap import plain
from .nn_twins import check_twin

try:
    geometric = peers.geometric()
except ImportError as error:
    pytest.skip(f"PyTorch Geometric cannot be imported: {error}", allow_module_level=True)

SOURCES, TARGETS, FEATURES = 12, 9, 5


def graph(
    *, sources: int = SOURCES, targets: int = SOURCES, density: float = 0.4, twice: int = 0
) -> Tensor:
    """Return random edges (2, E), with loops, in random order, the first of them twice.

    Node 1 has no edge.
    """
    generator = torch.Generator().manual_seed(5)
    there = torch.rand(sources, targets, generator=generator) < density
    there[1], there[:, 1] = False, False
    edges = there.nonzero().t()
    edges = torch.cat([edges, edges[:, :twice]], 1)
    return edges[:, torch.randperm(edges.shape[1], generator=generator)]


def complete(nodes: int = SOURCES) -> Tensor:
    return torch.ones(nodes, nodes).nonzero().t()


def convolution(dtype: torch.dtype = F32, **options: Any) -> Any:
    """Return a swapped GATv2Conv, by default of two heads."""
    size = options.pop("in_channels", FEATURES)
    if "residual" in options and "residual" not in signature(geometric.GATv2Conv).parameters:
        pytest.skip("this release has no residual")
    module = geometric.GATv2Conv(size, 3, **{"heads": 2, **options}).to(dtype)
    if module.bias is not None:
        nn.init.normal_(module.bias)
    report = replace_attention(module)
    if "exchanges lin_l and lin_r" in str(report):
        pytest.skip(str(report))
    assert report.swapped == {"": "PyTorch Geometric, GATv2Conv"} and not report.left
    return module


def edge_index(*arguments: Any, **options: Any) -> Tensor:
    """Return an EdgeIndex, or skip the test in a release without them."""
    if not hasattr(sys.modules["torch_geometric"], "EdgeIndex"):
        pytest.skip("this release has no EdgeIndex")
    edges: Tensor = sys.modules["torch_geometric"].EdgeIndex(*arguments, **options)
    return edges


def calls_of_its_own(module: Any) -> list[str]:
    """Return a list that grows by one with each message passing of the library."""
    calls, own = [], module.propagate

    def propagate(*args: Any, **options: Any) -> Any:
        calls.append("propagate")
        return own(*args, **options)

    vars(module)["propagate"] = propagate
    return calls


def check(
    module: Any, inputs: dict[str, Tensor], edges: Tensor, features: Tensor | None = None
) -> None:
    """Assert that results and gradients are the library's, without a message passing."""
    if features is not None:
        inputs = {**inputs, "features": features}

    def call(module: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        rest = () if features is None else inputs[-1:]
        nodes = inputs[: len(inputs) - len(rest)]
        x = nodes[0] if len(nodes) == 1 else nodes
        out = module(x, edges, *rest)
        again, (found, weights) = module(x, edges, *rest, return_attention_weights=True)
        orders.append(found)
        return out, again, weights

    orders: list[Tensor] = []
    check_twin(module, lambda module, *x: call(plain(module), *x), inputs, call=call)
    assert all(torch.equal(x, orders[0]) for x in orders)  # the same edges in the same order
    calls = calls_of_its_own(module)
    call(module, *inputs.values())
    assert not calls


def both(module: Any, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """Return what the swapped module and the library's own return, or the errors they raise."""
    results: list[Any] = []
    for each in module, plain(module):
        try:
            results.append(each(*arguments, **options))
        except Exception as error:
            results.append(error)
    return results[0], results[1]
