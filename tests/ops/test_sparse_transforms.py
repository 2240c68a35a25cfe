"""Attention over edges under torch.compile, export, fake tensors, opcheck and torch.func."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from helpers.edges import check_sparse, graph, operands
from helpers.inputs import BF16, F32
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves, tree_map_only

from attnkernels import Edges, additive_attention_sparse, prepare_edges
from attnkernels.ops.codes import ACTIVATIONS
from attnkernels.ops.signature import SPARSE_BACKWARD, SPARSE_FORWARD, EdgeOptions
from attnkernels.testing import assert_within_budget

EDGES = graph(7, 9, 40)
ALL: dict[str, Any] = {"return_weights": True, "return_lse": True}


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("everything", [False, True], ids=["plain", "everything"])
def test_opcheck(fused: str, lead: tuple[int, ...], everything: bool, dtype: torch.dtype) -> None:
    given = operands(EDGES, lead, 6, 4 if everything else None, dtype, everything, everything)
    given["weight"] = given["weight"].expand(*lead, 6)
    edges = given.pop("edges")
    values = {name: None if x is None else x.detach() for name, x in given.items()}
    seed = torch.tensor(5) if everything else None
    options = EdgeOptions(
        values.get("edge_key"), values.get("edge_bias"), **edges._asdict(), seed=seed
    )
    call = values | options._asdict() | {"dropout_p": 0.3 if everything else 0.0}
    call |= {"activation": ACTIVATIONS["tanh"].code, "return_weights": everything}
    ops = torch.ops.attnkernels
    forward = getattr(ops, f"{fused}_sparse_forward").default
    args = [call[name] for name in SPARSE_FORWARD.names]
    torch.library.opcheck(forward, args)
    outputs = dict(zip(SPARSE_FORWARD.results, forward(*args), strict=True))
    wanted = sum(each.wanted for each in SPARSE_FORWARD.leaves if call[each.name] is not None)
    call |= outputs | {"wanted": wanted, "grad_context": torch.ones_like(outputs["context"])}
    call |= {"grad_lse": None, "grad_weights": outputs["weights"] if everything else None}
    backward = getattr(ops, f"{fused}_sparse_backward").default
    torch.library.opcheck(backward, [call[name] for name in SPARSE_BACKWARD.names])


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_fullgraph(fused: str, dynamic: bool, compiler: str) -> None:
    compiled = torch.compile(
        additive_attention_sparse, fullgraph=True, dynamic=dynamic, backend=compiler
    )
    for edges in (EDGES, graph(8, 5, 31)):
        for dv in (None, 3):
            given = operands(edges, (2,), 6, dv, edge_key=True)
            check_sparse(**given, backend=partial(compiled, backend=fused), **ALL)


def test_a_changing_number_of_edges_is_compiled_twice_at_most() -> None:
    """Once for the first graph, and once for any other."""
    compiled = torch.compile(additive_attention_sparse, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=False, recompile_limit=2):
        for count in (30, 40, 50, 61):
            given = operands(graph(7, 9, count), (2,), 6, 4)
            compiled(**given)


def test_edges_are_prepared_in_the_graph() -> None:
    def call(index: Tensor, query: Tensor, key: Tensor, weight: Tensor) -> Any:
        edges = prepare_edges(index, query.shape[-2], key.shape[-2])
        return additive_attention_sparse(query, key, key, weight, edges)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (30, 50):
        index = torch.stack([torch.randint(0, 9, (count,)), torch.randint(0, 7, (count,))])
        args = index, torch.randn(2, 7, 6), torch.randn(2, 9, 6), torch.randn(6)
        torch.testing.assert_close(compiled(*args), call(*args))


def test_export_with_any_number_of_edges(fused: str) -> None:
    class Layer(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, weight: Tensor, index: Tensor) -> Tensor:
            edges = prepare_edges(index, query.shape[-2], key.shape[-2])
            return additive_attention_sparse(query, key, key, weight, edges, backend=fused)

    def inputs(n: int, m: int, count: int) -> tuple[Tensor, ...]:
        index = torch.stack([torch.randint(0, m, (count,)), torch.randint(0, n, (count,))])
        return torch.randn(2, n, 6), torch.randn(2, m, 6), torch.randn(6), index

    n, m, count = (torch.export.Dim(name) for name in ("n", "m", "count"))
    shapes = {"query": {1: n}, "key": {1: m}, "weight": None, "index": {1: count}}
    program = torch.export.export(Layer(), inputs(7, 9, 40), dynamic_shapes=shapes)
    for sizes in ((7, 9, 40), (5, 4, 21)):
        args = inputs(*sizes)
        torch.testing.assert_close(program.module()(*args), Layer()(*args))


def test_fake_tensors(backend: str) -> None:
    given = operands(EDGES, (2,), 6, 4, edge_key=True, edge_bias=True)
    real = additive_attention_sparse(**given, backend=backend, **ALL)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = tree_map_only(Tensor, mode.from_tensor, given)
        found = additive_attention_sparse(**fake, backend=backend, **ALL)
    for x, y in zip(found, real, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert backend == "reference" or x.stride() == y.stride()


def _loop(given: dict[str, Any], mapped: dict[str, int], **options: Any) -> Any:
    """Return the results of one call per example."""
    size = max(given[name].shape[dim] for name, dim in mapped.items())
    calls = [
        additive_attention_sparse(
            **{n: x.select(mapped[n], i) if n in mapped else x for n, x in given.items()},
            **options,
        )
        for i in range(size)
    ]
    return tuple(torch.stack(each) for each in zip(*calls, strict=True))


@pytest.mark.parametrize(
    "mapped", [{"query": 0}, {"key": 1, "value": 0}, {"weight": 0, "edge_bias": 0}], ids=str
)
def test_vmap_and_its_gradients(backend: str, mapped: dict[str, int]) -> None:
    given = operands(EDGES, (2,), 6, 4, edge_bias=True)
    given["weight"] = torch.randn(2, 6)
    for name, dim in mapped.items():
        given[name] = torch.stack([given[name].detach()] * 3, dim) * torch.randn(())
    edges, names = given.pop("edges"), list(given)
    given = {name: x.detach().requires_grad_() for name, x in given.items()}

    def call(*tensors: Tensor) -> Any:
        found = dict(zip(names, tensors, strict=True))
        return additive_attention_sparse(**found, edges=edges, backend=backend, **ALL)

    dims = tuple(mapped.get(name) for name in names)
    found = torch.func.vmap(call, dims)(*given.values())
    wanted = _loop(given, mapped, edges=edges, backend=backend, **ALL)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y)
    directions = [torch.randn_like(y) for y in wanted[:2]]
    leaves = list(given.values())
    for x, y in zip(
        torch.autograd.grad(found[:2], leaves, directions),
        torch.autograd.grad(wanted[:2], leaves, directions),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def test_vmap_over_graphs_is_refused(fused: str) -> None:
    given = operands(EDGES, (2,), 6, 4)
    edges = tree_map_only(Tensor, lambda x: torch.stack([x, x]), given.pop("edges"))
    tensors = {name: x.detach() for name, x in given.items()}

    def call(*parts: Tensor) -> Any:
        return additive_attention_sparse(**tensors, edges=type(EDGES)(*parts), backend=fused)

    with pytest.raises(ValueError, match="must be shared by all examples"):
        torch.func.vmap(call)(*edges)


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_edges_are_an_input_of_an_export(strict: bool) -> None:
    class Module(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, weight: Tensor, edges: Edges) -> Any:
            return additive_attention_sparse(query, key, key, weight, edges)

    def inputs(n: int, m: int, count: int) -> tuple[Any, ...]:
        return torch.randn(n, 6), torch.randn(m, 6), torch.randn(6), graph(n, m, count)

    dynamic = {0: torch.export.Dim.DYNAMIC}
    sizes = dynamic, dynamic, None, Edges(*[dynamic] * 6)
    program = torch.export.export(
        Module(), inputs(9, 7, 30), dynamic_shapes=sizes, strict=strict
    ).module()
    for given in (9, 7, 30), (40, 50, 20):
        x = inputs(*given)
        torch.testing.assert_close(program(*x), Module()(*x))


def _function(backend: str) -> tuple[Any, list[Tensor]]:
    given = operands(EDGES, (2,), 6, 4, edge_key=True)
    edges, names = given.pop("edges"), list(given)

    def call(*tensors: Tensor) -> Tensor:
        found = dict(zip(names, tensors, strict=True))
        return additive_attention_sparse(
            **found, edges=edges, activation="tanh", backend=backend
        ).sin()

    return call, [x.detach() for x in given.values()]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_transforms(backend: str, compiled: bool) -> None:
    call, args = _function(backend)
    formula, _ = _function("reference")
    tangents = tuple(torch.randn_like(x) for x in args)
    places = tuple(range(len(args)))

    def transforms(call: Any, tensors: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Any:
        gradient = torch.func.grad(lambda *x: call(*x).sum(), places)
        return (
            gradient(*tensors),
            torch.func.jvp(call, tensors, tangents),
            torch.func.jvp(gradient, tensors, tangents)[1],
        )

    run = torch.compile(transforms, backend="aot_eager", fullgraph=True) if compiled else transforms
    doubles = (tuple(x.double() for x in each) for each in (args, tangents))
    found = run(call, tuple(args), tangents)
    reference, exact = transforms(formula, tuple(args), tangents), transforms(formula, *doubles)
    for each in zip(*map(tree_leaves, (found, reference, exact)), strict=True):
        assert_within_budget(*each)


def test_dual_numbers_keep_their_tangents(backend: str) -> None:
    call, args = _function(backend)
    tangent = torch.randn_like(args[0])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(args[0], tangent)
        found = forward_ad.unpack_dual(call(dual, *args[1:])).tangent
    wanted = torch.func.jvp(lambda x: call(x, *args[1:]), (args[0],), (tangent,))[1]
    torch.testing.assert_close(found, wanted)
