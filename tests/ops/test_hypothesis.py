"""Random shapes, strides, masks and options; derandomised, so every run has the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from helpers.inputs import (
    ACTIVATIONS,
    BF16,
    F16,
    F32,
    F64,
    batch_last,
    cumulative,
    normal,
    sliced,
    supports,
    transposed,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnkernels.testing import check_attention, check_scores, check_varlen

FEW = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

small = st.sampled_from([0, 1, 2, 3, 4, 5, 7])
keys = st.sampled_from([0, 1, 2, 5, 15, 16, 17, 31, 33, 64, 129])
width = st.sampled_from([1, 2, 3, 4, 7, 8, 15, 16, 17, 33])
value_width = st.sampled_from([0, 1, 2, 7, 16, 17, 33])
activations = st.sampled_from(["tanh", *ACTIVATIONS])
sides = st.sampled_from([-1, -1, -1, 0, 1, 3, 40])
dtypes = st.sampled_from([F32, F32, F32, BF16, F16, F64])


@dataclass
class Draw:
    """Tensors as hypothesis chooses them, with numbers from torch's seeded generator."""

    data: st.DataObject
    dtype: torch.dtype

    def broadcast(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return a shape that broadcasts to this one: with sizes of 1, without leading ones."""
        kept = tuple(size if self.data.draw(st.booleans()) else 1 for size in shape)
        return kept[self.data.draw(st.integers(0, len(shape))) :]

    def tensor(self, *shape: int, size: float = 1.0) -> Tensor:
        """Return a tensor: contiguous, transposed, sliced, batch-innermost or expanded."""
        x = normal(*shape, dtype=self.dtype, size=size)
        layouts = [
            "plain",
            "transposed",
            "sliced",
            "batch last",
            "rows expanded",
            "columns expanded",
        ]
        match self.data.draw(st.sampled_from(layouts)) if x.numel() and x.ndim > 1 else "plain":
            case "transposed":
                return transposed(x)
            case "sliced":
                return sliced(x)
            case "batch last":
                return batch_last(x)
            case "rows expanded":
                return x.detach()[..., :1, :].expand(shape).requires_grad_()
            case "columns expanded":
                return x.detach()[..., :1].expand(shape).requires_grad_()
        return x

    def some_gradients(self, *tensors: Tensor) -> list[Tensor]:
        return [x.requires_grad_(self.data.draw(st.booleans())) for x in tensors]


def begin(backend: str, data: Any, dtype: torch.dtype) -> tuple[Draw, tuple[int, ...]]:
    """Return a `Draw` and a leading shape."""
    assume(supports(backend, dtype))
    torch.manual_seed(0)
    return Draw(data, dtype), tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))


@FEW
@given(
    data=st.data(), n=small, m=keys, d=width, dv=value_width, dtype=dtypes, activation=activations
)
def test_attention(
    backend: str, data: Any, n: int, m: int, d: int, dv: int, dtype: torch.dtype, activation: str
) -> None:
    draw, lead = begin(backend, data, dtype)
    inputs = draw.some_gradients(
        draw.tensor(*draw.broadcast(lead), n, d),
        draw.tensor(*draw.broadcast(lead), m, d),
        draw.tensor(*draw.broadcast(lead), m, dv),
        draw.tensor(*draw.broadcast(lead), d, size=d**-0.5),
    )
    form = draw.broadcast((*lead, n, m))
    mask = data.draw(st.sampled_from([None, "bool", "float"]))
    lengths = data.draw(st.booleans())
    check_attention(
        *inputs,
        attn_mask=torch.rand(form) < 0.7
        if mask == "bool"
        else draw.tensor(*form)
        if mask
        else None,
        key_lengths=torch.randint(0, m + 1, draw.broadcast(lead)) if lengths else None,
        is_causal=data.draw(st.booleans()),
        window_size=(data.draw(sides), data.draw(sides)),
        activation=activation,
        return_weights=data.draw(st.booleans()),
        return_lse=data.draw(st.booleans()),
        backend=backend,
    )


@FEW
@given(data=st.data(), n=small, m=keys, d=width, dtype=dtypes, activation=activations)
def test_scores(
    backend: str, data: Any, n: int, m: int, d: int, dtype: torch.dtype, activation: str
) -> None:
    draw, lead = begin(backend, data, dtype)
    inputs = draw.some_gradients(
        draw.tensor(*draw.broadcast(lead), n, d),
        draw.tensor(*draw.broadcast(lead), m, d),
        draw.tensor(*draw.broadcast(lead), d, size=d**-0.5),
    )
    check_scores(*inputs, activation=activation, backend=backend)


@FEW
@given(
    data=st.data(),
    lengths=st.lists(st.tuples(small, keys), max_size=4),
    d=width,
    dv=value_width,
    dtype=dtypes,
    activation=activations,
)
def test_varlen(
    backend: str,
    data: Any,
    lengths: list[tuple[int, int]],
    d: int,
    dv: int,
    dtype: torch.dtype,
    activation: str,
) -> None:
    assume(supports(backend, dtype))
    torch.manual_seed(0)
    draw = Draw(data, dtype)
    lead = tuple(data.draw(st.lists(st.integers(1, 3), max_size=1)))
    lengths_q, lengths_k = [n for n, _ in lengths], [m for _, m in lengths]
    inputs = draw.some_gradients(
        draw.tensor(*draw.broadcast(lead), sum(lengths_q), d),
        draw.tensor(*draw.broadcast(lead), sum(lengths_k), d),
        draw.tensor(*draw.broadcast(lead), sum(lengths_k), dv),
        draw.tensor(*draw.broadcast(lead), d, size=d**-0.5),
    )
    check_varlen(
        *inputs,
        cumulative(lengths_q),
        cumulative(lengths_k),
        is_causal=data.draw(st.booleans()),
        window_size=(data.draw(sides), data.draw(sides)),
        activation=activation,
        return_lse=data.draw(st.booleans()),
        backend=backend,
    )
