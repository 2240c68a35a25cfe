"""Check one backend as models use it, without deterministic algorithms, against float64.

    python -m benchmarks.gpu.check --out DIR --until EPOCH --backend NAME [--device cuda|cpu]

`benchmarks.gpu` runs this in a separate process per backend. It adds to "check" of
DIR/results.json, call by call, the largest error of any output or gradient over what
`attnkernels.testing` allows, or a sentence that says what went wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator

import torch

from attnkernels.backends import BACKENDS
from attnkernels.backends.base import Problem
from attnkernels.measure.files import folder
from attnkernels.testing import check_attention
from benchmarks.gpu.cases import sentence
from benchmarks.suite.cases import Case, inputs
from benchmarks.suite.run import write

Shape = tuple[int, int, int, int, int]
SHAPES: dict[str, Shape] = {
    "past a tile": (2, 130, 257, 33, 20),
    "rnnsearch": (8, 50, 50, 1000, 1000),
    "many keys": (1, 70, 3001, 64, 32),
    "a step": (32, 1, 200, 512, 512),
    "four queries": (2, 4, 300, 65, 7),
}
SMALL: dict[str, Shape] = {"past a tile": (1, 9, 17, 5, 3), "a step": (2, 1, 9, 4, 3)}
DTYPES = (torch.float32, torch.bfloat16)
NOT_CHECKED = "not checked"


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if a result is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.check")
    add = parser.add_argument
    names = [backend.NAME for backend in BACKENDS]
    add("--out", type=folder, metavar="DIR", required=True)
    add("--until", type=float, metavar="EPOCH", required=True, help="start nothing after")
    add("--backend", choices=names, required=True)
    add("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(arguments)
    path = options.out / "results.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    found = result["check"].setdefault(options.backend, {})
    for name, error in _errors(options.backend, options.device, options.until):
        print(f"{options.backend}, {name}: {error}", flush=True)
        found[name] = error
        write(path, result)
    said = [error for error in found.values() if isinstance(error, str)]
    return int(not all(error.startswith(NOT_CHECKED) for error in said))


def _errors(backend: str, device: str, until: float) -> Iterator[tuple[str, float | str]]:
    (of,) = (each for each in BACKENDS if each.NAME == backend)
    torch.use_deterministic_algorithms(False)
    shapes = SHAPES if device == "cuda" else SMALL
    for suffix in ("", " with masks"):
        for dtype in DTYPES:
            why = of.why_not(Problem(device, dtype))
            for title, shape in shapes.items():
                name = f"{title}{suffix}, {str(dtype).removeprefix('torch.')}"
                if why is None and time.time() > until:
                    why = "the time was up"
                if why is not None:
                    yield name, f"{NOT_CHECKED}: {why}"
                    continue
                given = inputs(Case(name, shape), dtype, True, device)[:4]
                options = _masks(shape, device) if suffix else {}
                try:
                    errors = check_attention(*given, backend=backend, **options)
                    yield name, round(max(errors.values()), 3)
                except Exception as error:  # also of the compiler or of the device
                    yield name, sentence(error)


def _masks(shape: Shape, device: str) -> dict[str, torch.Tensor]:
    batch, n, m, *_ = shape
    generator = torch.Generator(device).manual_seed(0)
    mask = torch.rand(n, m, generator=generator, device=device) < 0.8
    lengths = torch.arange(batch, device=device) % 2 * (m // 2) + m // 2
    return {"key_lengths": lengths, "attn_mask": mask}


if __name__ == "__main__":
    sys.exit(main())
