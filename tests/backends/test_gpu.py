"""Results of the backends with GPU kernels, where emulator and interpreter cannot stand in.

Triton
compiles each combination of options, which takes longer than everything else. Options are
therefore
combined, and sizes are few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.gpu import (
    EVERYTHING,
    GPU,
    MARKS,
    NAMES,
    PAST_THE_TILES,
    STEP,
    attention,
    check,
    on_gpu,
    packed,
)
from helpers.inputs import (
    BF16,
    CORNERS,
    EMPTY,
    F16,
    F32,
    F64,
    Shape,
    batch_last,
    make,
    normal,
    sliced,
    transposed,
)
from ops.test_memory_object import prepared
from ops.test_ranges import SEAMS, around
from torch import Tensor

from attnkernels import additive_attention, prepare_keys
from attnkernels.backends import BACKENDS, ON_GPU, Preference, select
from attnkernels.backends.base import Problem
from attnkernels.testing import check_scores, check_varlen

pytestmark = MARKS


@pytest.mark.parametrize("shape", CORNERS, ids=str)
def test_corners(name: str, shape: Shape) -> None:
    check(name, *on_gpu(make, shape))


def test_empty(name: str) -> None:
    for shape in EMPTY:
        check(name, *on_gpu(make, shape), **EVERYTHING)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("shape", [PAST_THE_TILES, STEP], ids=str)
def test_dtypes(name: str, shape: Shape, dtype: torch.dtype) -> None:
    check(name, *on_gpu(make, shape, dtype), **EVERYTHING)


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "leaky_relu"])
@pytest.mark.parametrize("shape", [PAST_THE_TILES, STEP], ids=str)
def test_activations_and_scale(name: str, shape: Shape, activation: str) -> None:
    check(name, *on_gpu(make, shape), activation=activation, negative_slope=0.3, scale=-0.7)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("shape", [PAST_THE_TILES, STEP], ids=str)
def test_everything_at_once(name: str, shape: Shape, dtype: torch.dtype) -> None:
    """Gradients pass through all three outputs; that of a broadcast mask is summed."""
    batch, n, m, _, _ = shape
    mask = on_gpu(normal, batch, 1, m, dtype=dtype, grad=False)
    mask = mask.masked_fill(torch.rand(m, device=GPU) < 0.2, -torch.inf).requires_grad_()
    lengths = torch.tensor([m, 0, m // 2][:batch], device=GPU)
    options = {"attn_mask": mask, "key_lengths": lengths, "is_causal": n > 1, "dropout_p": 0.3}
    check(name, *on_gpu(make, shape, dtype), **options, **EVERYTHING)


@pytest.mark.parametrize("form", [(2, 130, 257), (130, 1), (257,), ()], ids=str)
def test_masks(name: str, form: tuple[int, ...]) -> None:
    keep = torch.rand(form, device=GPU) < 0.6
    check(name, *on_gpu(make, PAST_THE_TILES), attn_mask=keep, return_lse=True)
    check(name, *on_gpu(make, PAST_THE_TILES), attn_mask=on_gpu(normal, *form))
    alone = on_gpu(make, PAST_THE_TILES, grad=False)
    check(name, *alone, attn_mask=on_gpu(normal, *form))


def test_strided_masks_and_whole_tiles_without_a_pair(name: str) -> None:
    keep = torch.ones(257, 130, dtype=torch.bool, device=GPU).T
    keep[:, 32:160] = False
    keep[64:] = False
    check(name, *on_gpu(make, PAST_THE_TILES), attn_mask=keep, return_lse=True)
    mask = on_gpu(transposed, on_gpu(normal, 130, 257))
    check(name, *on_gpu(make, PAST_THE_TILES), attn_mask=mask)


def test_keys_beyond_the_length_are_never_looked_at(name: str) -> None:
    for shape in (PAST_THE_TILES, STEP):
        query, key, value, weight = on_gpu(make, shape)
        lengths = torch.full((shape[0],), 100, dtype=torch.int32, device=GPU)
        with torch.no_grad():
            key[:, 100:], value[:, 100:] = torch.nan, torch.inf
        check(name, query, key, value, weight, key_lengths=lengths, return_lse=True)


def test_nan_in_is_nan_out(name: str) -> None:
    for shape in (PAST_THE_TILES, STEP):
        query, key, value, weight = on_gpu(make, shape, grad=False)
        query[0, 0, 3], key[1, 77, 1] = torch.nan, torch.nan
        check(name, query, key, value, weight, return_lse=True)


@pytest.mark.parametrize("n", [1, 40])
def test_every_seam_of_the_ranges_in_one_tile(name: str, n: int) -> None:
    """Reach quads, bounded quads and direct tiles: docs/math.md, "Ranges"."""
    sums = torch.tensor(SEAMS, dtype=F64, device=GPU)
    for offset in (0.0, 20.0, 60.0, 1e4):
        check(name, *on_gpu(around, sums, offset, (1, n, 140, len(SEAMS), 4)))
        quiet = torch.zeros(len(SEAMS), dtype=F64, device=GPU)
        check(name, *on_gpu(around, quiet, offset, (1, n, 140, len(SEAMS), 4)))


LEADS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((), (), (), ()),
    "outer, and a weight a head": ((2, 1), (1, 3), (), (3,)),
    "a value a head": ((2, 1, 1), (1,), (3, 1), ()),
}


@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize("leads", LEADS.values(), ids=LEADS)
def test_leading_dimensions_broadcast(name: str, leads: tuple[Any, ...], n: int) -> None:
    sizes = ((n, 19), (70, 19), (70, 6), (19,))
    check(name, *(on_gpu(normal, *lead, *size) for lead, size in zip(leads, sizes, strict=True)))


def test_more_leading_entries_and_tiles_than_a_launch_has_in_one_dimension(name: str) -> None:
    check(name, *on_gpu(make, (70_000, 1, 2, 3, 2)))
    check(name, *on_gpu(make, (14_000, 5, 2, 3, 2)))
    check(name, *on_gpu(make, (1, 5_000_000, 2, 2, 1), grad=False))


@pytest.mark.parametrize("layout", [transposed, sliced, batch_last])
@pytest.mark.parametrize("shape", [PAST_THE_TILES, STEP], ids=str)
def test_layouts(name: str, shape: Shape, layout: Callable[[Tensor], Tensor]) -> None:
    *matrices, weight = on_gpu(make, shape)
    check(name, *(on_gpu(layout, x) for x in matrices), weight)


@pytest.mark.parametrize("output", ["context", "weights", "lse"])
def test_gradients_through_one_output_alone(name: str, output: str) -> None:
    for shape in (PAST_THE_TILES, STEP):
        check(name, *on_gpu(make, shape), **EVERYTHING, through=(output,))


@pytest.mark.parametrize("wanted", range(4))
def test_only_the_gradient_asked_for(name: str, wanted: int) -> None:
    inputs = on_gpu(make, PAST_THE_TILES, grad=False)
    check(name, *(x.requires_grad_(place == wanted) for place, x in enumerate(inputs)))


def test_an_expanded_incoming_gradient(name: str) -> None:
    """sum().backward() expands one number: the same bits as a tensor of ones."""
    inputs = on_gpu(make, PAST_THE_TILES)
    context = attention(name, *inputs)
    by_sum = torch.autograd.grad(context.sum(), inputs, retain_graph=True)
    by_ones = torch.autograd.grad(context, inputs, torch.ones_like(context))
    assert all(torch.equal(a, b) for a, b in zip(by_sum, by_ones, strict=True))


@pytest.mark.parametrize("shape", [PAST_THE_TILES, STEP], ids=str)
def test_dropout_drops_what_the_reference_drops(name: str, shape: Shape) -> None:
    inputs, masks = on_gpu(make, shape, grad=False), []
    for backend in (name, "reference"):
        torch.manual_seed(5)
        options = {"dropout_p": 0.4, "return_weights": True, "backend": backend}
        masks.append(additive_attention(*inputs, **options)[1] != 0)
    assert torch.equal(*masks) and 0.5 < masks[0].float().mean() < 0.7


PACKED: dict[str, tuple[list[int], list[int]]] = {
    "past a tile, and nothing": ([130, 3, 0, 4], [257, 140, 9, 0]),
    "decoder steps": ([1, 1, 1, 1], [200, 3, 129, 64]),
}


@pytest.mark.parametrize("lengths", PACKED.values(), ids=PACKED)
def test_packed_sequences(name: str, lengths: tuple[list[int], list[int]]) -> None:
    options = {"return_lse": True, "dropout_p": 0.3, "backend": name}
    check_varlen(*packed(lengths), is_causal=True, **options)
    check_varlen(*packed(lengths, BF16), activation="relu", backend=name)


def test_scores(name: str) -> None:
    for n in (1, 130):
        query, key = on_gpu(normal, 2, 1, n, 33), on_gpu(normal, 3, 257, 33)
        check_scores(query, key, on_gpu(normal, 33), scale=0.5, backend=name)
        check_scores(query, key, on_gpu(normal, 3, 33), activation="leaky_relu", backend=name)


def test_a_memory_attends_and_is_reordered(name: str) -> None:
    lengths = torch.tensor([0, 129, 300], device=GPU)
    check(prepared(name), *on_gpu(make, STEP), key_lengths=lengths)
    turned = torch.tensor([2, 0, 0], device=GPU)
    query, key, value, weight = on_gpu(make, STEP, grad=False)
    memory = prepare_keys(key, value, weight, backend=name).index_select(0, turned)
    anew = prepare_keys(key[turned], value[turned], weight, backend=name)
    assert torch.equal(memory.attend(query), anew.attend(query))


def test_which_backend_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, inputs = Problem("cuda", F32), on_gpu(make, PAST_THE_TILES, grad=False)
    assert select(problem, None, inputs).NAME in NAMES
    order = (select(problem, name), *BACKENDS)
    monkeypatch.setitem(ON_GPU, ("inference", "tiles"), Preference(order, "in a test"))
    assert select(problem, None, inputs).NAME == name
    assert torch.equal(additive_attention(*inputs), attention(name, *inputs))
    assert additive_attention(*on_gpu(make, STEP, F64)).dtype == F64
    with pytest.raises(ValueError, match=f"'{name}' cannot be used: .*float64"):
        attention(name, *on_gpu(make, STEP, F64))


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    inputs = on_gpu(make, PAST_THE_TILES)
    with torch.autocast("cuda", dtype):
        context = attention(name, *inputs)
    assert torch.equal(context, attention(name, *(x.to(dtype) for x in inputs)))
    assert all(g.dtype == F32 for g in torch.autograd.grad(context.sum(), inputs))
