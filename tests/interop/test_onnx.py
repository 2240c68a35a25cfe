"""torch.onnx.export of the operator and of modules, run by ONNX Runtime at other sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.exported import CASES, EXAMPLE, SIZES, Exported
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from attnkernels import additive_attention, additive_attention_sparse, prepare_edges
from attnkernels.nn import AdditiveAttention, GraphAttention
from attnkernels.testing import assert_within_budget

onnxruntime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="the package onnxscript is not installed")

DYNAMIC = torch.export.Dim.DYNAMIC
Check = Callable[..., None]


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Check]:
    def export(module: nn.Module, example: tuple[Tensor, ...], sizes: tuple[object, ...]) -> Check:
        program = torch.onnx.export(
            module.eval(), example, dynamo=True, dynamic_shapes=sizes, verbose=False
        )
        program.save(tmp_path / "module.onnx")
        if not isinstance(module, (OverEdges, GraphAttention)):
            assert [node.op_type for node in program.model.graph].count("Scan") >= 1  # memory n m
        session = onnxruntime.InferenceSession(tmp_path / "module.onnx")
        names = [each.name for each in session.get_inputs()]

        def check(*inputs: Tensor) -> None:
            with torch.no_grad():
                wanted = module(*inputs)
                exact = copy.deepcopy(module).double()(*map(doubled, inputs))
            arrays = (x.numpy() for x in inputs)
            found = session.run(None, dict(zip(names, arrays, strict=True)))
            results = [torch.from_numpy(x) for x in found], tree_leaves(wanted), tree_leaves(exact)
            for one, other, true in zip(*results, strict=True):
                assert_within_budget(one, other, true, magnitude=1 + true.abs().max().item())

        return check

    return export


def doubled(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


class Masked(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, weight: Tensor, mask: Tensor, n: Tensor
    ) -> tuple[Tensor, ...]:
        options = {"attn_mask": mask, "key_lengths": n, "return_weights": True, "return_lse": True}
        return additive_attention(query, key, value, weight, **options, **self.options)


def masked(batch: int, n: int, m: int, lengths: list[int]) -> tuple[Tensor, ...]:
    mask = torch.rand(batch, n, m) > 0.3
    mask[0, 0] = False  # a row without keys
    shapes = (batch, n, 19), (batch, m, 19), (batch, m, 4), (19,)
    return *map(torch.randn, shapes), mask, torch.tensor(lengths)


OPTIONS = [{}, {"is_causal": True}, {"window_size": (1, 3)}, {"backend": "native"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_operator_with_masks_and_rows_without_keys(
    exported: Callable[..., Check], options: dict[str, Any]
) -> None:
    rows, keys = {0: DYNAMIC, 1: DYNAMIC}, {0: DYNAMIC, 1: DYNAMIC}
    sizes = (rows, keys, keys, None, {0: DYNAMIC, 1: DYNAMIC, 2: DYNAMIC}, {0: DYNAMIC})
    check = exported(Masked(**options), masked(2, 5, 7, [7, 0]), sizes)
    check(*masked(2, 5, 7, [7, 0]))
    check(*masked(3, 4, 9, [9, 4, 0]))
    check(*masked(2, 3, 130, [130, 70]))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_modules(exported: Callable[..., Check], case: Exported) -> None:
    check = exported(case.module(), case.inputs(*EXAMPLE), case.dynamic)
    for sizes in SIZES:
        check(*case.inputs(*sizes))


@pytest.mark.parametrize("heads", [1, 2])
def test_a_module(exported: Callable[..., Check], heads: int) -> None:
    module = AdditiveAttention(12, 10, 8, num_heads=heads, normalize=True)
    dynamic = {0: DYNAMIC, 1: DYNAMIC}
    check = exported(module, (torch.randn(3, 5, 12), torch.randn(3, 7, 10)), (dynamic, dynamic))
    check(torch.randn(3, 5, 12), torch.randn(3, 7, 10))
    check(torch.randn(4, 2, 12), torch.randn(4, 11, 10))


class OverEdges(nn.Module):
    def forward(
        self, x: Tensor, edges: Tensor, weight: Tensor, edge_key: Tensor, edge_bias: Tensor
    ) -> tuple[Tensor, ...]:
        prepared = prepare_edges(edges, x.shape[1], x.shape[1])
        features = {"edge_key": edge_key, "edge_bias": edge_bias}
        options = {**features, "return_weights": True, "return_lse": True}
        return additive_attention_sparse(x, x, x, weight, prepared, **options)


def over_edges(nodes: int, count: int) -> tuple[Tensor, ...]:
    bias = torch.randn(count)
    bias[::3] = float("-inf")
    edges = torch.randint(nodes, (2, count))
    return torch.randn(2, nodes, 6), edges, torch.randn(2, 6), torch.randn(2, count, 6), bias


def test_over_edges(exported: Callable[..., Check]) -> None:
    sizes = {1: DYNAMIC}, {1: DYNAMIC}, None, {1: DYNAMIC}, {0: DYNAMIC}
    check = exported(OverEdges(), over_edges(9, 20), sizes)
    for given in (9, 20), (30, 11), (4, 90):
        check(*over_edges(*given))


@pytest.mark.parametrize("fill", ["mean", "max", 0.5])
def test_a_module_over_edges(exported: Callable[..., Check], fill: str | float) -> None:
    def inputs(nodes: int, count: int) -> tuple[Tensor, ...]:
        return torch.randn(nodes, 5), torch.randint(nodes, (2, count)), torch.randn(count, 2)

    module = GraphAttention(5, 3, 2, edge_dim=2, fill_value=fill)
    check = exported(module, inputs(30, 50), ({0: DYNAMIC}, {1: DYNAMIC}, {0: DYNAMIC}))
    for given in (30, 50), (5, 60), (40, 9):
        check(*inputs(*given))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = AdditiveAttention(6, 5, 8)

    def forward(self, query: Tensor, memory: Tensor, lengths: Tensor) -> Tensor:
        prepared = self.attention.prepare(memory, lengths)
        context = self.attention.step(query, prepared)
        return self.attention.step(query + context.sum(-1, keepdim=True), prepared)


def test_steps_of_a_decoder(exported: Callable[..., Check]) -> None:
    example = torch.randn(3, 6), torch.randn(3, 7, 5), torch.tensor([7, 3, 1])
    check = exported(Decoder(), example, ({0: DYNAMIC}, {0: DYNAMIC, 1: DYNAMIC}, {0: DYNAMIC}))
    check(*example)
    check(torch.randn(2, 6), torch.randn(2, 4, 5), torch.tensor([0, 4]))
