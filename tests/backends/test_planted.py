"""Faults planted in the CUDA kernels are found by running them in the emulator.

Each fault is one edit of a kernel's source. The error budget finds it, or the emulator's own checks
do, through the public API.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulator import library
from helpers.extensions import why_not

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")

CHECKS = """
import torch
from helpers.edges import check_sparse, graph, operands
from helpers.inputs import make
from attnkernels import additive_scores
from attnkernels.testing import check_attention
torch.use_deterministic_algorithms(True)
torch.utils.deterministic.fill_uninitialized_memory = True  # with NaN
torch.manual_seed(0)
for shape in [(1, 70, 150, 33, 40), (2, 2, 150, 33, 40)]:
    check_attention(*make(shape), backend="native")
for edges in (graph(3, 9, 400), graph(9, 3, 400)):
    check_sparse(**operands(edges, (2,), 32, None, edge_bias=True), backend="native")
torch.use_deterministic_algorithms(False)  # whose backward is not cut into slices
check_attention(*make((1, 50, 100, 260, 40)), backend="native")
query, key, _, weight = make((1, 70, 70, 40, 1), grad=False)
fast, exact = (
    additive_scores(query, key, weight, backend="native", precision=x) for x in ("fast", "exact")
)
assert 0 < (fast - exact).abs().max() < 3e-3
"""

# (fault, kernel to compile again, file, text, replacement)
PLANTED = [
    ("nothing", "forward.cu", "forward.cu", "", ""),
    ("a tail that is one key too long", "forward.cu", "mask.h", "j >= keys.end", "j > keys.end"),
    ("a tail that is one query short", "backward.cu", "mask.h", "i >= rows", "i >= rows - 1"),
    (
        "no barrier before the softmax reads",
        "forward.cu",
        "forward.cu",
        "__syncthreads();\n    soften(",
        "soften(",
    ),
    (
        "no barrier before a stage is written again",
        "forward.cu",
        "score.h",
        "kStageQuads);\n    __syncthreads();",
        "kStageQuads);",
    ),
    (
        "no barrier before the gradients are read",
        "backward.cu",
        "backward.cu",
        "__syncthreads_or(make_gradients(shared, p, job, act, dc, it, jt))",
        "make_gradients(shared, p, job, act, dc, it, jt)",
    ),
    (
        "no barrier before a step's scores are read",
        "step.cu",
        "step.cu",
        "__syncthreads();\n    if (warp < p.n) {",
        "if (warp < p.n) {",
    ),
    (
        "no barrier before the products of slices",
        "sliced.cu",
        "sliced.cu",
        "__syncthreads();\n    const int64_t value_at",
        "const int64_t value_at",
    ),
    (
        "a slice that is a quad short",
        "sliced.cu",
        "sliced.cu",
        "min(begin + job.scores.each, p.padded / 4)",
        "min(begin + job.scores.each, p.padded / 4 - 1)",
    ),
    (
        "sums that are not cleared",
        "sliced_backward.cu",
        "sliced_backward.cu",
        "memory.data, memory.count, host",
        "memory.data, 0, host",
    ),
    (
        "no barrier before a tile of ds is swept",
        "sliced_backward.cu",
        "sliced_backward.cu",
        "load_tile(shared, p, job.ds, it, jt);\n  __syncthreads();",
        "load_tile(shared, p, job.ds, it, jt);",
    ),
    (
        "no barrier before the sines of keys are read",
        "scores.cu",
        "sines.h",
        "__syncthreads();\n        add_products",
        "add_products",
    ),
    ("no wait for a copy", "forward.cu", "score.h", "async_wait<1>()", "async_wait<2>()"),
    (
        "a mask of half the lanes",
        "forward.cu",
        "forward.cu",
        "__shfl_xor_sync(kWarp, sum",
        "__shfl_xor_sync(0x0000ffff, sum",
    ),
    (
        "a row that is not written",
        "forward.cu",
        "forward.cu",
        "if (row < rows)",
        "if (row + 1 < rows)",
    ),
    (
        "shared memory that is too small",
        "backward.cu",
        "backward.cu",
        "kThreads, sizeof(Shared), host",
        "kThreads, sizeof(Shared) - 64, host",
    ),
    (
        "the rest of a row that begins one edge late",
        "edge_forward.cu",
        "edge_team.h",
        "from_ = start - low;",
        "from_ = start - low + 1;",
    ),
    (
        "a part of a row that is not merged",
        "edge_sums.cu",
        "edge_team.h",
        "/ s.size) - share + 1;",
        "/ s.size) - share;",
    ),
    (
        "a team's sum without half its lanes",
        "edge_targets.cu",
        "edge_team.h",
        "if (lanes > 4) sum",
        "if (lanes > 8) sum",
    ),
    (
        "a place without an edge that is added",
        "edge_sources.cu",
        "edge_sources.cu",
        "edges_where(!(pair.y < 0))",
        "edges_where(true)",
    ),
]


@pytest.mark.parametrize("what, kernel, file, text, other", PLANTED, ids=[x[0] for x in PLANTED])
def test_found(what: str, kernel: str, file: str, text: str, other: str) -> None:
    source = (ROOT / "csrc/cuda" / file).read_text(encoding="utf-8")
    assert source.count(text) == 1 or what == "nothing", f"{file} has changed: mend this test"
    folder = library.BUILT / "planted" / what.replace(" ", "-")
    changed = folder / "cuda" / file
    changed.parent.mkdir(parents=True, exist_ok=True)
    text_now = source.replace(text, other) if text else source
    if not changed.exists() or changed.read_text(encoding="utf-8") != text_now:
        changed.write_text(text_now, encoding="utf-8")
    path = changed if file == kernel else ROOT / "csrc/cuda" / kernel
    built = library.build(path, folder, f"-iquote{folder}")
    done = subprocess.run(
        [sys.executable, "-c", CHECKS],
        env={
            **os.environ,
            "ATTNKERNELS_LIBRARY": str(built),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        },
        capture_output=True,
        text=True,
    )
    said = done.stderr.strip().splitlines()[-1:] or [""]
    if what == "nothing":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1, "it was not found"
        assert said[0].startswith(("AssertionError", "RuntimeError")), done.stderr
