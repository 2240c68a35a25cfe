"""Every backend gives the share of a block: sums over blocks are the whole attention."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F32, F64, make, normal
from helpers.pieces import in_pieces, rows

from attnkernels import additive_attention
from attnkernels.testing import check_attention

N, M = 13, 23
QUERIES = rows(4, 9)
KEYS = rows(1, 5, 8, 9)  # a single key; and places that are no multiple of 4

OPTIONS: dict[str, dict[str, Any]] = {
    "all pairs": {},
    "weights": {"return_weights": True},
    "causal": {"is_causal": True},
    "window": {"window_size": (2, 3)},
    "to the left": {"window_size": (4, -1), "return_weights": True},
    "lengths": {"key_lengths": torch.tensor([0, 9])},
    "bool mask": {"attn_mask": torch.arange(N * M).view(N, M) % 5 > 1},
    "dropout": {"dropout_p": 0.4},
    "dropout of weights": {"dropout_p": 0.4, "return_weights": True, "is_causal": True},
    "dropout in a window": {"dropout_p": 0.4, "window_size": (3, 6)},
    "relu": {"activation": "relu", "scale": 0.5},
    "all": {
        "attn_mask": torch.arange(M) % 3 > 0,
        "key_lengths": torch.tensor([M, 20]),
        "window_size": (9, 2),
        "dropout_p": 0.3,
        "return_weights": True,
    },
}


INTERPRETED = ("dropout of weights", "all")  # what an interpreter has time for
CHOICE = [
    pytest.param(options, id=name, marks=[] if name in INTERPRETED else pytest.mark.large)
    for name, options in OPTIONS.items()
]


def cut(backend: str, **more: Any) -> Any:
    return partial(in_pieces, backend=backend, **({"queries": QUERIES, "keys": KEYS} | more))


@pytest.mark.parametrize("options", CHOICE)
def test_options(backend: str, options: dict[str, Any]) -> None:
    check_attention(*make((2, N, M, 9, 5)), backend=cut(backend), return_lse=True, **options)


@pytest.mark.large
@pytest.mark.parametrize("dtype", [BF16, F64])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    inputs = make((2, N, M, 9, 5), dtype)
    check_attention(*inputs, backend=cut(backend), is_causal=True, return_lse=True)


@pytest.mark.large
@pytest.mark.parametrize("form", [(2, N, M), (1, M), (N, 1), (M,)], ids=str)
def test_the_gradient_of_a_float_mask(backend: str, form: tuple[int, ...]) -> None:
    options = {"attn_mask": normal(*form), "dropout_p": 0.3, "return_weights": True}
    check_attention(*make((2, N, M, 9, 5)), backend=cut(backend), **options)


@pytest.mark.large
@pytest.mark.parametrize("n", [1, 3])
def test_few_queries(backend: str, n: int) -> None:
    function = cut(backend, queries=rows(n))
    check_attention(*make((2, n, M, 9, 5)), backend=function, window_size=(-1, 7), return_lse=True)


def test_keys_one_by_one(backend: str) -> None:
    """A block with one key does not take it for the only key of its rows."""
    function = cut(backend, queries=rows(5), keys=rows(1, 1, 1, 1))
    for options in ({}, {"return_weights": True}, {"dropout_p": 0.5, "return_weights": True}):
        check_attention(*make((1, 5, 4, 6, 3)), backend=function, return_lse=True, **options)


@pytest.mark.large
def test_a_key_that_is_alone_takes_no_gradient(backend: str) -> None:
    """As without pieces: differences that cancel leave nothing."""
    query, key, value, weight = make((1, 6, 9, 40, 7), size=3.0)
    function = cut(backend, queries=rows(2, 4), keys=rows(5, 4))
    context = function(query, key, value, weight, key_lengths=torch.tensor([1]))[0]
    gradients = torch.autograd.grad(context, (query, key, weight), torch.randn_like(context))
    assert all((x == 0).all() for x in gradients)


@pytest.mark.large
def test_tiles(backend: str) -> None:
    """Blocks of several tiles, whose windows begin and end inside of others."""
    inputs = make((1, 70, 90, 5, 3))
    function = cut(backend, queries=rows(3, 67), keys=rows(6, 50, 34))
    check_attention(*inputs, backend=function, window_size=(20, 11), return_lse=True)


def test_the_mask_of_dropout_is_that_of_one_call(backend: str) -> None:
    inputs = make((2, N, M, 3, 2))
    options = {"dropout_p": 0.35, "return_weights": True, "backend": backend}
    torch.manual_seed(4)
    whole = additive_attention(*inputs, **options)[1]
    torch.manual_seed(4)
    found = in_pieces(*inputs, queries=QUERIES, keys=KEYS, **options)[1]
    assert torch.equal(found == 0, whole == 0)


@pytest.mark.large
def test_nothing_to_see(backend: str) -> None:
    """Rows without keys, and NaN in keys that are excluded."""
    query, key, value, weight = make((1, N, M, 4, 3), F32)
    with torch.no_grad():
        key[..., 6:, :], value[..., 6:, :] = torch.nan, torch.nan
    lengths, function = torch.tensor([6]), cut(backend)
    options: dict[str, Any] = {"key_lengths": lengths, "window_size": (2, 0), "return_lse": True}
    check_attention(query, key, value, weight, backend=function, **options)


@pytest.mark.large
def test_nan_gives_nan(backend: str) -> None:
    query, key, value, weight = make((1, N, M, 4, 3))
    with torch.no_grad():
        key[..., 7, 0] = torch.nan
    found = cut(backend)(query, key, value, weight, is_causal=True, return_lse=True)
    for x in found:
        assert x[:, :7].isfinite().all() and x[:, 7:].isnan().all()
