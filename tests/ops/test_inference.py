"""The forward's overload for inference: the context alone, in the query's dtype, seen by nobody."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, CORNERS, EMPTY, F16, F32, F64, Shape, make, normal
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from attnkernels import additive_attention, prepare_keys
from attnkernels.backends import native
from attnkernels.backends.base import Problem
from attnkernels.ops.codes import ACTIVATIONS
from attnkernels.ops.inference import inference
from attnkernels.ops.signature import FORWARD, Options

pytestmark = pytest.mark.skipif(
    not hasattr(native.ops.forward.overloadpacket, "inference"), reason="the library is not built"
)
of_native = pytest.mark.parametrize("backend", ["native"])  # the CUDA kernels as well, emulated
SLICED = (1, 20, 24, 512, 36)  # few tiles and many hidden units


def usual(*inputs: Tensor, **options: Any) -> Tensor:
    """Return the context of the operator with all arguments, rounded afterwards."""
    given = Options(**options)._replace(activation=ACTIVATIONS["tanh"].code)
    return native.ops.forward(*inputs, *given[: len(FORWARD.names) - 4])[0].to(inputs[0].dtype)


attend = partial(additive_attention, backend="native")


def test_its_arguments_are_some_of_the_forward_s() -> None:
    schema = native.ops.forward.overloadpacket.inference._schema
    names = [each.name for each in schema.arguments]
    assert names == [name for name in FORWARD.names if name in names]


@of_native
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
@pytest.mark.parametrize("shape", [*CORNERS, *EMPTY, SLICED, (2, 70, 600, 24, 20)], ids=str)
def test_it_rounds_what_the_forward_computes(
    shape: Shape, dtype: torch.dtype, backend: str
) -> None:
    if native.why_not(Problem("cpu", dtype)):
        pytest.skip("the kernels have no such dtype")
    inputs = make(shape, dtype, grad=False)
    lengths = torch.arange(shape[0]) * 37 % (shape[2] + 1)  # the first row has no keys
    for options in {}, {"key_lengths": lengths}:
        found = inference(native.ops.forward)(*inputs, options.get("key_lengths"), None)
        assert found.dtype == dtype
        # the same bits: one kernel computes both
        torch.testing.assert_close(found, usual(*inputs, **options), rtol=0, atol=0)
        assert found.equal(attend(*inputs, **options))


@of_native
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("dv", [5, 8, 12])
def test_it_stores_rows_at_any_alignment(dv: int, dtype: torch.dtype, backend: str) -> None:
    # expanded and strided inputs, whose contexts are contiguous all the same
    query, key = normal(3, 1, 70, 8, dtype=dtype, grad=False), normal(2, 9, 8, dtype=dtype)
    value = normal(2, dv, 9, dtype=dtype, grad=False).mT
    inputs = query, key.detach(), value, normal(8, dtype=dtype, grad=False)
    found = attend(*inputs)
    assert found.is_contiguous() and found.shape == (3, 2, 70, dv)
    assert found.equal(usual(*inputs))


@of_native
@pytest.mark.parametrize("bad", ["query", "key", "value"])
def test_nan_in_gives_nan_out(bad: str, backend: str) -> None:
    query, key, value, weight = make((1, 6, 7, 8, 4), BF16, grad=False)
    {"query": query, "key": key, "value": value}[bad][0, 2, 1] = torch.nan
    found = attend(query, key, value, weight).isnan()
    wanted = torch.zeros_like(found)
    wanted[{"query": (0, 2), "key": (...,), "value": (..., 1)}[bad]] = True
    assert found.equal(wanted)


def test_nobody_who_watches_or_differentiates_gets_it() -> None:
    inputs = make((1, 3, 4, 8, 5), grad=False)
    function = inference(native.ops.forward)
    assert function(*inputs, None, None) is not None
    for place in range(4):
        leaves = [x.clone().requires_grad_(k == place) for k, x in enumerate(inputs)]
        assert function(*leaves, None, None) is None
        with torch.no_grad():
            assert function(*leaves, None, None) is not None
        (grad,) = torch.autograd.grad(attend(*leaves).sum(), leaves[place])
        assert grad.any()
    with FakeTensorMode():
        assert function(*inputs, None, None) is None
    traced = torch.jit.trace(lambda *x: attend(*x), inputs, check_trace=False)
    calls = [each for each in traced.graph.nodes() if "native_forward" in each.kind()]
    assert [each.outputsSize() for each in calls] == [3]
    targets = [str(node.target) for node in make_fx(attend)(*inputs).graph.nodes]
    assert [each for each in targets if "attnkernels" in each] == [
        "attnkernels.native_forward.default"
    ]
    mapped = torch.vmap(attend, in_dims=(0, 0, 0, None))(*inputs)
    torch.testing.assert_close(mapped, attend(*inputs))
    tangents = tuple(map(torch.ones_like, inputs))
    primal, tangent = torch.func.jvp(attend, inputs, tangents)
    torch.testing.assert_close(primal, attend(*inputs))
    assert tangent.any()


def test_it_is_the_usual_one_for_fake_tensors() -> None:
    inputs = make((1, 3, 4, 8, 5), BF16, grad=False)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in inputs]
        context = native.ops.forward.overloadpacket.inference(*fakes, None, None)
    assert context.shape == (1, 3, 5) and context.dtype == BF16


@of_native
def test_prepared_keys_use_it(backend: str) -> None:
    query, key, value, weight = make((2, 1, 40, 16, 12), grad=False)
    lengths = torch.tensor([40, 7])
    memory = prepare_keys(key, value, weight, key_lengths=lengths, backend="native")
    options = {"key_lengths": lengths, "packed_key": memory.packed_key}
    found = memory.attend(query)
    assert found.equal(usual(query, key, value, weight, **options))
    context, lse = memory.attend(query, return_lse=True)
    assert found.equal(context) and lse.shape == (2, 1)
