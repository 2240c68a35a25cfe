"""Random calls on all ranks, the same ones on each: shapes, spreads, options and dtypes."""

from __future__ import annotations

import os
import traceback
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from attnkernels.testing import check_attention

from . import ranks
from .context_parallel import CASES, compare, on_all_ranks, prepare
from .inputs import ACTIVATIONS, BF16, F32, F64, make, normal

RANDOM = "random cases"
EXAMPLES = int(os.environ.get("ATTNKERNELS_EXAMPLES", "12"))
SPREADS = st.sampled_from(["even", "uneven", "empty"])
SIDES = st.sampled_from([-1, -1, 0, 1, 3, 40])
# Without shrinking, so that the ranks stay together.
TOGETHER = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@TOGETHER
@given(st.data())
def compare_random(data: Any) -> None:
    """Compare one random call with one process; raise on all ranks if one of them does."""
    draw = data.draw
    dtype = draw(st.sampled_from([F32, F32, F64, BF16]))
    n, m = draw(st.integers(0, 20)), draw(st.sampled_from([0, 1, 2, 5, 9, 17, 33, 150]))
    batch, d, dv = draw(st.integers(1, 2)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    options: dict[str, Any] = {
        "is_causal": draw(st.booleans()),
        "window_size": (draw(SIDES), draw(SIDES)),
        "activation": draw(st.sampled_from(["tanh", *ACTIVATIONS])),
        "dropout_p": draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        "return_weights": draw(st.booleans()),
        "return_lse": draw(st.booleans()),
    }
    layout = {"spread": (draw(SPREADS), draw(SPREADS)), "balanced": draw(st.booleans())}
    mask = draw(st.sampled_from(["none", "none", "bool", "floating", "keys"]))
    lengths = draw(st.none() | st.lists(st.integers(0, m), min_size=batch, max_size=batch))
    torch.manual_seed(0)
    inputs = make((batch, n, m, d, dv), dtype)
    if lengths is not None:
        options["key_lengths"] = torch.tensor(lengths)
    if mask != "none":
        shape = (m,) if mask == "keys" else (batch, n, m)
        numbers = normal(*shape, dtype=dtype)
        options["attn_mask"] = numbers.detach() > -0.5 if mask == "bool" else numbers
    error = ""
    try:
        check_attention(*inputs, backend=partial(on_all_ranks, **layout), **options)
    except Exception:
        error = traceback.format_exc()
    failed = torch.tensor(float(bool(error)))
    dist.all_reduce(failed)
    assert not failed, error or "another rank failed"


def worker(rank: int, folder: Path, count: int) -> None:
    """Run all cases as one of the processes."""
    prepare()
    ranks.run(rank, folder, (*CASES, RANDOM), _case, count, timedelta(minutes=2))


def _case(name: str) -> None:
    return compare_random() if name == RANDOM else compare(name)
