"""DTensors in every placement that additive_attention takes, and some that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from attnkernels import additive_attention
from attnkernels.testing import check_attention

from . import ranks
from .inputs import F64, normal

COPY = Replicate()
BATCH, HEADS, ROWS, COLUMNS = (Shard(dim) for dim in range(4))
Placements = tuple[Placement, ...]


class Case(NamedTuple):
    """Placements of query, key, value, weight and the mask, and options."""

    query: Placements
    key: Placements
    value: Placements
    weight: Placements = (COPY,)
    mask: Placements = (COPY,)
    options: dict[str, Any] = {}
    shape: tuple[int, ...] = (3, 2)  # leading
    mask_shape: tuple[int, ...] | None = None
    mesh: tuple[int, ...] = (2,)


BOTH = {"return_weights": True, "return_lse": True}
CASES = {
    "replicated": Case((COPY,), (COPY,), (COPY,), options=BOTH),
    "batch": Case((BATCH,), (BATCH,), (BATCH,), options=BOTH),
    "heads": Case((HEADS,), (HEADS,), (HEADS,), (BATCH,), options=BOTH),
    "batch with a mask": Case(
        (BATCH,), (BATCH,), (BATCH,), mask=(BATCH,), mask_shape=(3, 1, 5, 7), options=BOTH
    ),
    "a mask of all": Case((BATCH,), (BATCH,), (BATCH,), mask_shape=(7,), options=BOTH),
    "rows": Case((ROWS,), (COPY,), (COPY,), mask=(ROWS,), mask_shape=(1, 1, 5, 7), options=BOTH),
    "rows, causal": Case((ROWS,), (COPY,), (COPY,), options={"is_causal": True, **BOTH}),
    "rows, window": Case((ROWS,), (COPY,), (COPY,), options={"window_size": (1, 1), **BOTH}),
    "rows that see nothing": Case(
        (ROWS,), (COPY,), (COPY,), options={"window_size": (0, 0)}, shape=(3, 2), mesh=(2,)
    ),
    "rows, dropout": Case((ROWS,), (COPY,), (COPY,), options={"dropout_p": 0.4, **BOTH}),
    "batch and rows": Case(
        (BATCH, ROWS), (BATCH, COPY), (BATCH, COPY), (COPY, COPY), options=BOTH, mesh=(2, 1)
    ),
}

WRONG = {
    "keys": (Case((COPY,), (ROWS,), (ROWS,)), "key must be Replicate on dimension 0"),
    "hidden units": (
        Case((COLUMNS,), (COLUMNS,), (COPY,)),
        "query must be Replicate on dimension 0",
    ),
    "one batch": (
        Case((BATCH,), (COPY,), (BATCH,), shape=(4, 2)),
        r"key must have the placement S\(0\) on dimension 0 of the mesh, whose shards are of"
        r" leading dimension -2, got R",
    ),
    "partial": (Case((Partial(),), (COPY,), (COPY,)), "query must be Shard or Replicate"),
}


def placed(case: Case, mesh: Any) -> Any:
    """Return `additive_attention` of plain tensors, by DTensors in the placements of a case."""

    def call(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        weight: Tensor,
        attn_mask: Tensor | None = None,
        **options: Any,
    ) -> Any:
        def put(x: Tensor, placements: Placements) -> DTensor:
            whole = DTensor.from_local(x, mesh, [COPY] * mesh.ndim, run_check=False)
            return whole.redistribute(placements=placements)

        inputs = [put(x, each) for x, each in zip((query, key, value, weight), case, strict=False)]
        mask = None if attn_mask is None else put(attn_mask, case.mask)
        found = additive_attention(*inputs, attn_mask=mask, **options)
        found = found if isinstance(found, tuple) else (found,)
        assert all(isinstance(x, DTensor) for x in found)
        return tuple(x.full_tensor() for x in found)

    return call


def compare(name: str) -> str | None:
    """Compare a case with one process, or return the error of a wrong one."""
    case = CASES[name] if name in CASES else WRONG[name][0]
    mesh = init_device_mesh("cpu", case.mesh)
    torch.manual_seed(0)
    lead, n, m, d, dv = case.shape, 5, 7, 4, 3
    weight = normal(lead[-1], d, dtype=F64) if name == "heads" else normal(d, dtype=F64)
    inputs = (
        normal(*lead, n, d, dtype=F64),
        normal(*lead, m, d, dtype=F64),
        normal(*lead, m, dv, dtype=F64),
        weight,
    )
    options = dict(case.options)
    if case.mask_shape is not None:
        options["attn_mask"] = normal(*case.mask_shape, dtype=F64)
    if name in CASES:
        check_attention(*inputs, backend=placed(case, mesh), **options)
        return None
    given = [
        DTensor.from_local(x.detach().chunk(2, each[0].dim)[0], mesh, each, run_check=False)
        if isinstance(each[0], Shard)
        else DTensor.from_local(x.detach(), mesh, each, run_check=False)
        for x, each in zip(inputs, case, strict=False)
    ]
    try:
        additive_attention(*given)
    except (TypeError, ValueError) as error:
        return str(error)
    return "no error"


def worker(rank: int, folder: Path) -> None:
    """Run all cases as one of the processes."""
    ranks.run(rank, folder, (*CASES, *WRONG), compare)
