"""`AdditiveMemory.attend` over a part of the keys, which gives the results of a mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F16, F64, MANY, make, normal
from torch import Tensor

from attnkernels import AdditiveMemory, additive_attention, prepare_keys
from attnkernels.backends import BACKENDS
from attnkernels.ops.signature import Options
from attnkernels.testing import check_attention

Bound = Tensor | int | None
PARTS: dict[str, tuple[Bound, Bound]] = {  # of three rows
    "rows": (torch.tensor([7, 0, MANY - 1]), torch.tensor([MANY - 3, 5, MANY])),
    "empty": (torch.tensor([9, MANY, 0]), torch.tensor([9, MANY, 1])),
    "panels": (torch.tensor([32, 31, 33]), torch.tensor([36, 33, 40])),
    "start": (torch.tensor([3, 20, 38], dtype=torch.int32), None),
    "stop": (None, torch.tensor([0, 20, 39])),
    "ints": (6, MANY - 2),
    "an int and a tensor": (2, torch.tensor([2, 33, 30])),
}
ROWS = PARTS["rows"]


def seen(start: Bound, stop: Bound) -> Tensor:
    """Return bool (3 or 1, 1, MANY): the keys from start on and before stop."""
    first = torch.as_tensor(0 if start is None else start).reshape(-1, 1, 1)
    end = torch.as_tensor(MANY if stop is None else stop).reshape(-1, 1, 1)
    j = torch.arange(MANY)
    return (first <= j) & (j < end)


def memory_of(backend: str, there: Tensor, *tensors: Tensor, **options: Any) -> AdditiveMemory:
    """Prepare keys and values that are NaN outside of the part."""
    key, value, weight = tensors
    key, value = (torch.where(there.mT, x, float("nan")) for x in (key, value))
    return prepare_keys(key, value, weight, backend=backend, **options)


def check(backend: str, name: str, *inputs: Tensor, **options: Any) -> None:
    """Check a part against a mask of the same keys; beside it, options["attn_mask"] counts."""
    start, stop = PARTS[name]
    there, own = seen(start, stop), options.pop("attn_mask", None)

    def call(query: Tensor, *tensors: Tensor, attn_mask: Tensor, **options: Any) -> Any:
        early = {n: options.pop(n) for n in ("key_lengths", "activation") if n in options}
        memory = memory_of(backend, there, *tensors, **early)
        return memory.attend(query, start=start, stop=stop, attn_mask=own, **options)

    mask = there if own is None else there & own
    check_attention(*inputs, attn_mask=mask, backend=call, **options)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("n", [1, 3, 9])
def test_a_part_is_a_mask(backend: str, n: int, name: str) -> None:
    check(backend, name, *make((3, n, MANY, 19, 7)), return_weights=True, return_lse=True)


@pytest.mark.parametrize("dtype", [F64, BF16, F16])
@pytest.mark.parametrize("grad", [True, False])
def test_dtypes(backend: str, dtype: torch.dtype, grad: bool) -> None:
    check(backend, "rows", *make((3, 1, MANY, 19, 7), dtype, grad=grad))


OPTIONS: dict[str, dict[str, Any]] = {
    "lengths": {"key_lengths": torch.tensor([20, 3, MANY])},
    "mask": {"attn_mask": torch.arange(2 * MANY).view(2, MANY) % 5 > 1},
    "dropout": {"dropout_p": 0.4, "return_weights": True},
    "relu": {"activation": "relu"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("n", [2, 9])
def test_options(backend: str, n: int, options: dict[str, Any]) -> None:
    rows = {k: x[:1] if k == "attn_mask" and n != 2 else x for k, x in options.items()}
    check(backend, "rows", *make((3, n, MANY, 19, 7)), **rows)


def test_the_gradient_of_a_float_mask(backend: str) -> None:
    there, mask = seen(*ROWS), normal(3, 2, MANY)

    def call(query: Tensor, *tensors: Tensor, attn_mask: Tensor) -> Tensor:
        start, stop = ROWS
        memory = memory_of(backend, there, *tensors)
        return memory.attend(query, start=start, stop=stop, attn_mask=attn_mask)

    limited = torch.where(there, mask.detach(), float("-inf")).requires_grad_()
    check_attention(*make((3, 2, MANY, 9, 4)), attn_mask=limited, backend=call)


@pytest.mark.parametrize("n", [2, 9])
def test_keys_outside_have_no_gradient(backend: str, n: int) -> None:
    """They are NaN, and so are the values; an empty part has no gradient at all."""
    query, *tensors = make((3, n, MANY, 9, 4))
    there = seen(*PARTS["empty"])
    key, value = (torch.where(there.mT, x.detach(), float("nan")) for x in tensors[:2])
    leaves = [x.detach().requires_grad_() for x in (query, key, value, tensors[2])]
    memory = prepare_keys(*leaves[1:], backend=backend)
    start, stop = PARTS["empty"]
    outputs = memory.attend(leaves[0], start=start, stop=stop, return_weights=True, return_lse=True)
    context, weights, lse = outputs
    assert (context[:2] == 0).all() and (weights[:2] == 0).all() and lse[:2].isneginf().all()
    grads = torch.autograd.grad(context.sum() + weights.square().sum(), leaves)
    assert all((x[:2] == 0).all() for x in grads[:3])
    assert (grads[1][2, 1:] == 0).all() and (grads[2][2, 1:] == 0).all()
    assert (grads[2][2, 0] == n).all()


def test_bounds_broadcast(backend: str) -> None:
    """Bounds of beams, and of a batch of queries against one memory."""
    query, key, value, weight = (
        normal(2, 3, 1, 9),
        normal(2, 1, MANY, 9),
        normal(MANY, 5),
        normal(9),
    )
    start, stop = torch.tensor([[0], [8]]), torch.tensor([30, 9, 38])
    memory = prepare_keys(key, value, weight, backend=backend)
    found = memory.attend(query, start=start, stop=stop)
    j = torch.arange(MANY)
    mask = (j >= start[..., None, None]) & (j < stop[:, None, None])
    wanted = additive_attention(query, key, value, weight, attn_mask=mask, backend=backend)
    torch.testing.assert_close(found, wanted)
    alone = prepare_keys(key[0, 0], value, weight, backend=backend)
    found = alone.attend(query[:, 0], start=start[:, 0], stop=stop[:2])
    torch.testing.assert_close(found[0], alone.attend(query[0, 0], start=0, stop=30))


def test_transforms(backend: str) -> None:
    query, key, value, weight = make((3, 2, MANY, 9, 4), grad=False)
    start, stop = ROWS

    def step(query: Tensor, key: Tensor, value: Tensor, start: Any, stop: Any) -> Tensor:
        memory = prepare_keys(key, value, weight, backend=backend)
        return memory.attend(query, start=start, stop=stop)

    wanted = step(query, key, value, start, stop)
    found = torch.func.vmap(step)(query, key, value, start, stop)
    torch.testing.assert_close(found, wanted)

    def of_query(query: Tensor) -> Tensor:
        return step(query, key, value, start, stop)

    _, tangent = torch.func.jvp(of_query, (query,), (query,))
    mask = seen(*ROWS)
    moved = torch.func.jvp(
        lambda x: additive_attention(x, key, value, weight, attn_mask=mask, backend=backend),
        (query,),
        (query,),
    )[1]
    torch.testing.assert_close(tangent, moved)


def test_traces(backend: str) -> None:
    """A compiled and an exported step, the latter dynamic in the rows and the keys."""

    class Step(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor, *part: Tensor) -> Tensor:
            memory = prepare_keys(key, value, weight, backend=backend)
            ints = memory.attend(query, start=1, stop=4)
            return ints + memory.attend(query, start=part[0], stop=part[1])

    query, key, value, weight = make((3, 2, MANY, 9, 4), grad=False)
    inputs = query, key, value, *ROWS
    wanted = Step()(*inputs)
    compiled = torch.compile(Step(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), wanted)
    rows, m = torch.export.Dim("rows"), torch.export.Dim("m", min=33)  # two panels
    dims = {0: rows}, {0: rows, 1: m}, {0: rows, 1: m}, ({0: rows}, {0: rows})
    exported = torch.export.export(Step(), inputs, dynamic_shapes=dims).module()
    torch.testing.assert_close(exported(*inputs), wanted)
    part = torch.tensor([3, 0]), torch.tensor([20, 0])
    inputs = query[:2], key[:2, :35], value[:2, :35], *part
    torch.testing.assert_close(exported(*inputs), Step()(*inputs))


def test_a_billion_keys(fused: str) -> None:
    """Time and memory are those of the part."""
    m, begin = 10**9, 123_456_789
    query, key, value, weight = make((2, 1, 1, 8, 4), grad=False)
    query = query[:1]
    bounds = torch.tensor([begin]), torch.tensor([begin + 50])
    chosen = next(each for each in BACKENDS if each.NAME == fused)
    many = (x[:1].expand(1, m, -1) for x in (key, value))
    options = Options(key_starts=bounds[0], key_lengths=bounds[1])
    found, _, lse = chosen.attention(query, *many, weight, options)
    few = (x[:1].expand(1, 50, -1) for x in (key, value))
    wanted, _, of_few = chosen.attention(query, *few, weight, Options())
    torch.testing.assert_close((found, lse), (wanted, of_few))


WRONG: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "float": (1.0, None, TypeError, "start must be an int, got "),
    "bool": (None, True, TypeError, "stop must be an int, got "),
    "floats": (torch.ones(3), None, TypeError, "start must be int32 or int64"),
    "negative": (-1, None, ValueError, r"start must lie in \[0, 6\] \(.*\), got -1"),
    "beyond": (None, 7, ValueError, r"stop must lie in \[0, 6\] \(the number of keys\), got 7"),
    "late": (4, 3, ValueError, r"start must lie in \[0, 3\] \(stop\), got 4"),
    "late row": (torch.tensor([1, 5, 0]), torch.tensor([6, 4, 0]), ValueError,
                 "start must be at most stop, got 5 and 4"),
    "rows": (None, torch.tensor([1, 7, 2]), ValueError, r"stop must lie in \[0, 6\]"),
    "shape": (torch.tensor([1, 2]), None, ValueError, r"must broadcast, got .*\(2,\) of start"),
    "both": (torch.tensor([1, 2]), torch.tensor([1, 2, 3]), ValueError, "must broadcast, got "),
}  # fmt: skip


@pytest.mark.parametrize("start, stop, error, message", WRONG.values(), ids=WRONG)
def test_refuses(start: Any, stop: Any, error: type[Exception], message: str) -> None:
    query, *tensors = make((3, 1, 6, 5, 2))
    with pytest.raises(error, match=message):
        prepare_keys(*tensors).attend(query, start=start, stop=stop)


def test_numpy_ints() -> None:
    np = pytest.importorskip("numpy")
    query, *tensors = make((3, 1, 6, 5, 2), grad=False)
    memory = prepare_keys(*tensors)
    found = memory.attend(query, start=np.int64(2), stop=np.int32(5))
    assert torch.equal(found, memory.attend(query, start=2, stop=5))
