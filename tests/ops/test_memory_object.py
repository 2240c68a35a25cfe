"""AdditiveMemory: attending to prepared keys gives the results of a plain call."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F16, F32, F64, MANY, Shape, make, normal
from torch import Tensor

from attnkernels import AdditiveMemory, additive_attention, prepare_keys
from attnkernels.testing import check_attention

SHAPE: Shape = (3, 2, MANY, 19, 7)
PREPARED = ("key_lengths", "activation", "negative_slope", "scale")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lengths": {"key_lengths": torch.tensor([0, MANY - 11, MANY])},
    "relu": {"activation": "relu"},
    "leaky": {"activation": "leaky_relu", "negative_slope": 0.4, "scale": 0.7},
    "sigmoid": {"activation": "sigmoid", "scale": -2.0},
}


def prepared(backend: str, change: Any = lambda memory: memory) -> Callable[..., Any]:
    """Return additive_attention through prepared keys, after `change` of the memory."""

    def call(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, **options: Any) -> Any:
        early = {name: options.pop(name) for name in PREPARED if name in options}
        memory = prepare_keys(key, value, weight, backend=backend, **early)
        return change(memory).attend(query, **options)

    return call


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("n", [1, 2, 40])
def test_attends_as_a_plain_call(backend: str, options: dict[str, Any], n: int) -> None:
    check_attention(*make((3, n, MANY, 19, 7)), **options, backend=prepared(backend))
    check_attention(*make((3, n, MANY, 19, 7), grad=False), **options, backend=prepared(backend))


@pytest.mark.parametrize("dtype", [BF16, F16, F64])
@pytest.mark.parametrize("grad", [True, False])
def test_dtypes(backend: str, dtype: torch.dtype, grad: bool) -> None:
    check_attention(*make(SHAPE, dtype, grad=grad), backend=prepared(backend))


def test_without_autograd(backend: str) -> None:
    with torch.no_grad():
        found = prepared(backend)(*make(SHAPE))
    assert not found.requires_grad

    def call(*inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return prepared(backend)(*inputs)

    check_attention(*make(SHAPE, grad=False), backend=call)


def test_weights_lse_mask_and_dropout(backend: str) -> None:
    check_attention(
        *make(SHAPE),
        attn_mask=torch.rand(2, MANY) < 0.7,
        dropout_p=0.3,
        return_weights=True,
        return_lse=True,
        **OPTIONS["lengths"],
        backend=prepared(backend),
    )
    check_attention(*make(SHAPE), attn_mask=normal(2, MANY), backend=prepared(backend))


def test_gradients_reach_keys_over_several_steps(backend: str) -> None:
    def call(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        memory = prepare_keys(key, value, weight, backend=backend)
        return torch.cat([memory.attend(query[:, i : i + 1]) for i in range(4)], 1)

    check_attention(*make((2, 4, 30, 9, 5)), backend=call)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("shift", [-60.0, -8.0, -5.0, -3.0, 3.0, 5.0, 8.0, 60.0, 1e4])
def test_huge_keys_survive_preparation(backend: str, shift: float, dtype: torch.dtype) -> None:
    """exp(2k) overflows past 43, and 5.5 in float16, while q + k may be small."""
    query, key, value, weight = make(SHAPE, dtype, grad=False)
    check_attention(query - shift, key + shift, value, weight, backend=prepared(backend))


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("n", [1, 7, 20])
def test_keys_of_every_size_side_by_side(backend: str, dtype: torch.dtype, n: int) -> None:
    query, key, value, weight = make((1, n, 50, 19, 7), dtype, grad=False)
    key *= torch.linspace(0, 12, 50, dtype=dtype).unsqueeze(-1)
    check_attention(query * 4, key, value, weight, backend=prepared(backend))


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64])
def test_prepared_keys_take_no_more_bytes_than_keys(backend: str, dtype: torch.dtype) -> None:
    _, key, value, weight = make((2, 1, 96, 64, 1), dtype)
    packed = prepare_keys(key, value, weight, backend=backend).packed_key
    assert packed is None or packed.nbytes <= 1.05 * key.nbytes


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_gradients_where_scores_are_huge(backend: str, dtype: torch.dtype) -> None:
    """The backward's scores may exceed the maximum that the forward found, by a rounding."""
    *inputs, weight = make(SHAPE, dtype)
    weight = (weight.detach() * 3e4).requires_grad_()
    context = prepared(backend)(*inputs, weight)
    grads = torch.autograd.grad(context.float().sum(), (*inputs, weight))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("n", [1, 12])
def test_half_types_are_as_exact_as_plain_keys(backend: str, n: int, dtype: torch.dtype) -> None:
    """Log-sum-exp is in float32, and the backward's scores are those of the forward."""
    query, key, value, _ = make((2, n, 40, 33, 7), dtype)
    weight = normal(33, dtype=dtype)
    check_attention(query, key, value, weight, backend=prepared(backend), return_lse=True)


def equal(chosen: AdditiveMemory, anew: AdditiveMemory, query: Tensor, *leaves: Tensor) -> None:
    """Assert that two memories give the same bits, in forward and backward."""
    assert isinstance(chosen, AdditiveMemory)
    found, wanted = (memory.attend(query) for memory in (chosen, anew))
    assert torch.equal(found, wanted)
    for a, b in zip(
        *(torch.autograd.grad(x.square().sum(), leaves) for x in (found, wanted)), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "lengths", [None, torch.tensor([3, MANY, MANY // 2 + 7])], ids=["full", "lengths"]
)
@pytest.mark.parametrize("index", [[2, 0, 0, 1], [1], [], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_index_select_reorders_beams(
    backend: str, dtype: torch.dtype, index: list[int], lengths: Tensor | None
) -> None:
    """Selecting entries of a memory equals selecting keys before preparing them."""
    query, key, value, weight = make(SHAPE)
    at = torch.tensor(index, dtype=dtype)
    memory = prepare_keys(key, value, weight, key_lengths=lengths, backend=backend)
    before = memory.attend(query)
    chosen = memory.index_select(0, at)
    anew = prepare_keys(
        key.index_select(0, at),
        value.index_select(0, at),
        weight,
        key_lengths=None if lengths is None else lengths.index_select(0, at),
        backend=backend,
    )
    equal(chosen, anew, query.index_select(0, at), key, value, weight)
    assert torch.equal(memory.attend(query), before)


@pytest.mark.parametrize("dim", [1, -1])
def test_index_select_of_a_beam_dimension(backend: str, dim: int) -> None:
    """Select from (batch, beam) along the second; tensors that broadcast along it stay."""
    query, key, value, weight = normal(2, 3, 1, 9), normal(2, 3, 30, 9), normal(3, 30, 5), normal(9)
    index = torch.tensor([2, 2, 0])
    memory = prepare_keys(key, value, weight, backend=backend).index_select(dim, index)
    anew = prepare_keys(key[:, index], value[index], weight, backend=backend)
    equal(memory, anew, query, key, value, weight)
    shared = prepare_keys(key[:, :1], value, weight, backend=backend).index_select(dim, index)
    equal(
        shared, prepare_keys(key[:, :1], value[index], weight, backend=backend), query, key, value
    )
    assert shared.lead == (2, 3)


@pytest.mark.parametrize(
    "dim, index, error",
    [
        (1, torch.tensor([0]), ValueError),
        (-2, torch.tensor([0]), ValueError),
        ("beam", torch.tensor([0]), TypeError),
        (0, [0], TypeError),
        (0, torch.tensor([0.0]), TypeError),
        (0, torch.tensor([[0]]), ValueError),
        (0, torch.tensor([3]), ValueError),
        (0, torch.tensor([-1]), ValueError),
    ],
)
def test_index_select_refuses(backend: str, dim: Any, index: Any, error: type[Exception]) -> None:
    _, key, value, weight = make(SHAPE)
    memory = prepare_keys(key, value, weight, backend=backend)
    with pytest.raises(error, match="dim|index"):
        memory.index_select(dim, index)


def test_leading_dimensions_broadcast(backend: str) -> None:
    """Test one memory for a batch of queries, and queries shared by a batch of memories."""
    check_attention(
        normal(4, 2, 9), normal(30, 9), normal(30, 5), normal(9), backend=prepared(backend)
    )
    check_attention(
        normal(1, 9), normal(3, 30, 9), normal(2, 1, 30, 5), normal(3, 9), backend=prepared(backend)
    )


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles(backend: str, copied: Callable[..., AdditiveMemory]) -> None:
    query, key, value, weight = make(SHAPE, grad=False)
    lengths = torch.tensor([3, MANY, MANY // 2 + 7])
    memory = prepare_keys(
        key, value, weight, key_lengths=lengths, activation="sigmoid", backend=backend
    )
    assert torch.equal(copied(memory).attend(query), memory.attend(query))


def test_under_autocast(backend: str) -> None:
    """Prepared inside autocast, a memory has its dtype; outside, it is cast as in a plain call."""
    query, key, value, weight = make(SHAPE)
    mask = normal(2, MANY)
    outside = prepare_keys(key, value, weight, backend=backend)
    with torch.autocast("cpu", BF16):
        wanted = additive_attention(query, key, value, weight, attn_mask=mask, backend=backend)
        inside = prepare_keys(key, value, weight, backend=backend)
        assert inside.key.dtype == wanted.dtype == BF16
        narrow = [x.detach().to(BF16) for x in (query, key, value, weight, mask)]
        found = inside.attend(query, attn_mask=mask)
        assert torch.equal(outside.attend(query, attn_mask=mask), wanted)
    *narrow, mask = narrow
    assert torch.equal(found, prepared(backend)(*narrow, attn_mask=mask))


def test_no_hidden_state(backend: str) -> None:
    query, key, value, weight = make(SHAPE, grad=False)
    memory = prepare_keys(key, value, weight, backend=backend)
    first = memory.attend(query)
    memory.attend(normal(3, 1, 19, dtype=F32))
    assert torch.equal(memory.attend(query), first)


@pytest.mark.parametrize("n, m", [(0, 5), (2, 0)])
def test_empty(backend: str, n: int, m: int) -> None:
    check_attention(*make((2, n, m, 4, 3)), return_lse=True, backend=prepared(backend))


@pytest.mark.parametrize("name", ["key", "value", "weight", "key_lengths"])
def test_a_memory_whose_tensors_changed_refuses_to_attend(backend: str, name: str) -> None:
    query, key, value, weight = make((2, 1, 6, 5, 4), grad=False)
    tensors = {"key": key, "value": value, "weight": weight, "key_lengths": torch.tensor([3, 6])}
    memory = prepare_keys(**tensors, backend=backend)
    tensors[name].sub_(1)
    with pytest.raises(RuntimeError, match=rf"^{name} must be as it was .* prepare the keys anew$"):
        memory.attend(query)
    with pytest.raises(RuntimeError, match=f"^{name} must be"):
        memory.index_select(0, torch.tensor([0]))


def test_a_step_of_an_optimizer_makes_a_memory_stale() -> None:
    query, key, value, weight = make((2, 1, 6, 5, 4))
    memory = prepare_keys(key, value, weight)
    memory.attend(query).sum().backward()
    torch.optim.SGD([key], lr=1.0).step()
    with pytest.raises(RuntimeError, match="^key must be as it was"):
        memory.attend(query)
    prepare_keys(key, value, weight).attend(query)


def test_a_memory_of_inference_tensors_has_no_versions() -> None:
    with torch.inference_mode():
        query, key, value, weight = (x.clone() for x in make((2, 1, 6, 5, 4), grad=False))
        memory = prepare_keys(key, value, weight)
        assert memory.versions is None and memory.attend(query).shape == (2, 1, 4)
