"""Measure the cost of attention when words become characters.

    python -m examples.char_cost [--text FILE] [--dim 256]

Fifty words against fifty words make 2,500 scores, which the naive formula can handle; the
characters of a chapter make billions. A real text attends to itself: its first words, the
characters of these words, and more and more of its characters. Each is measured forward and with
the backward, by the naive formula while it fits and by the fused operator, as `attnkernels.profile`
measures.

--out keeps every length that is done; --resume does not measure it again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from attnkernels.backends import select
from attnkernels.backends.base import Problem
from attnkernels.extras import needs
from attnkernels.measure.busy import Others, sentence
from attnkernels.measure.device import Device, find
from attnkernels.measure.machine import free_memory
from attnkernels.measure.options import positive
from attnkernels.measure.wording import count
from attnkernels.profile.axes import memory_axis, time_axis
from attnkernels.profile.sweep import Row, methods, spreads, sweep
from attnkernels.profile.text import Attended, Text, check_memory, encode, read_text
from attnkernels.profile.units import show_mib, show_ms, show_ratio
from examples.options import parser
from examples.results import write
from examples.training import interruptible

with needs("examples"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

    from attnkernels.profile.report import Cells, by_cell, ratio, write_json
    from attnkernels.viz import plot_cost

NAIVE_SECONDS = 60.0  # the naive formula is skipped when a call is expected to take longer
PASSES = {"forward": False, "both": True}  # "both" is forward and backward
COLUMNS = ["pass", "attends", "scores", "naive", "fused", "faster", "less memory"]


class Size(NamedTuple):
    words: int
    characters: list[int]  # beyond those of the words


TINY, DEFAULT = Size(5, [64]), Size(50, [1024, 2048, 4096, 16384, 65536])
FULL = Size(50, [*DEFAULT.characters, 131072, 262144])


class Passages(NamedTuple):
    """A passage: its length, its name, and the states from which it is cut."""

    lengths: list[int]
    names: dict[int, str]
    states: dict[int, Attended]


@interruptible
def main(arguments: list[str] | None = None) -> int:
    """Run the example and return its exit status: 0, 130 if interrupted, 2 for bad usage."""
    command = parser("char_cost", "Measure the cost of attention when words become characters.")
    command.add_argument(
        "--text",
        metavar="FILE",
        help="UTF-8, - is standard input (default: Python's documentation)",
    )
    command.add_argument("--dim", type=positive, default=256, help="width (default: %(default)s)")
    options = command.parse_args(arguments)
    size = TINY if options.tiny else FULL if options.full else DEFAULT
    try:
        device = find(options.device)
        text = read_text(options.text)
        check(text, size, options.dim)
        check_memory(size.characters[-1], options.dim, free_memory())
        kept = {name: restore(options, text, name) for name in PASSES}
    except ValueError as error:
        command.error(str(error))
    return run(options, device, text, size, kept)


def run(
    options: argparse.Namespace, device: Device, text: Text, size: Size, kept: dict[str, list[Row]]
) -> int:
    """Measure the passages that are not among `kept`, and write everything."""
    others = Others()
    with Console().status("encoding") as status:
        passages = encoded(text, size, options.dim, options.seed, device)
        backend = select(Problem(device.type, torch.float32), None).NAME
        for name, rows in kept.items():
            todo = methods(options.dim, PASSES[name], False, backend, NAIVE_SECONDS, float("inf"))
            for length in passages.lengths:
                done = [row for row in rows if row.length == length]
                if not done:
                    status.update(f"{name}, {passages.names[length]}")
                    inputs = passages.states[length]
                    done = list(sweep(device, inputs, [length], todo, PASSES[name]))
                    rows += done
                    write_json(file(options, name), head(options, text), rows)
                for method, row in zip(todo, done, strict=True):
                    if row.ms is not None:
                        method.last = row  # the basis of the estimate

    words, characters, *_ = passages.lengths
    print(
        f"{words} words of {text.source} have {words**2:,} scores; their {characters} characters "
        f"have {characters**2:,}, {show_ratio((characters / words) ** 2)} as many."
    )
    cells = {name: by_cell(rows) for name, rows in kept.items()}
    write(
        options.out,
        options=vars(options),
        columns=COLUMNS,
        keys=2,
        rows=[line(name, passages, n, cells[name]) for name in PASSES for n in passages.lengths],
        figures={
            "time": picture(passages, cells, "ms", "time", time_axis),
            "memory": picture(passages, cells, "peak_mib", "peak extra memory", memory_axis),
        },
        record={
            "device": device.facts(),
            "backend": backend,
            "text": {"source": text.source, "characters": len(text.characters)},
            "attends": passages.names,
            "rows": {name: [vars(row) for row in rows] for name, rows in kept.items()},
        },
    )
    everything = [row for rows in kept.values() for row in rows]
    if busy := sentence(others.cpus(), spreads(everything)):
        print(busy)
    return 0


def check(text: Text, size: Size, dim: int) -> None:
    """Refuse a text that is too short, and a width that two directions cannot share."""
    if len(text.characters) < size.characters[-1] or len(text.characters.split()) < size.words:
        raise ValueError(
            f"the text {text.source} has {count(len(text.characters), 'character')}; it must have "
            f"{size.characters[-1]:,}, and {size.words} words"
        )
    if dim < 2 or dim % 2:
        raise ValueError(f"--dim is {dim}; it must be an even number, 2 or more")


def encoded(text: Text, size: Size, dim: int, seed: int, device: Device) -> Passages:
    """Return the first words, their characters, and the characters of the longer passages."""
    spans = [found.span() for found in re.finditer(r"\S+", text.characters)]
    first = text.characters[: spans[size.words - 1][1]]
    lengths = [size.words, len(first), *(n for n in size.characters if n > len(first))]
    names = {n: f"{n:,} characters" for n in lengths}
    names[size.words] = f"{size.words} words"
    names[len(first)] = f"their {len(first)} characters"
    states = [
        Attended(*(x.to(device.type) for x in encode(tokens, dim, seed)))
        for tokens in (first.split(), text.characters[: lengths[-1]])
    ]
    return Passages(lengths, names, {n: states[n > size.words] for n in lengths})


def file(options: argparse.Namespace, name: str) -> Path:
    """Return the file that keeps the rows of a pass."""
    return options.out / f"rows_{name}.json"


def head(options: argparse.Namespace, text: Text) -> dict[str, object]:
    """Return the settings in which kept rows must agree to be used again."""
    return {
        "text": text.source,
        "dim": options.dim,
        "seed": options.seed,
        "device": options.device,
        "threads": torch.get_num_threads(),
    }


def restore(options: argparse.Namespace, text: Text, name: str) -> list[Row]:
    """Return the rows of an earlier run if --resume wants them."""
    path = file(options, name)
    if not options.resume or not path.exists():
        return []
    kept = json.loads(path.read_text(encoding="utf-8"))
    rows = [Row(**row) for row in kept.pop("rows")]
    if kept != head(options, text):
        raise ValueError(f"--resume: {path} is of {kept}, and this run is of {head(options, text)}")
    return rows


def line(name: str, passages: Passages, length: int, cells: Cells) -> list[str]:
    """Format a row of the table."""
    naive, fused = cells[length, "naive"], cells[length, "fused"]
    factors = [ratio(naive, fused, field) for field in ("ms", "peak_mib")]
    return [
        name,
        passages.names[length],
        f"{length**2:,}",
        cost(naive),
        cost(fused),
        *("–" if factor is None else show_ratio(factor) for factor in factors),
    ]


def cost(row: Row) -> str:
    """Format time and memory, measured or estimated."""
    if row.ms is not None and row.peak_mib is not None:
        return f"{show_ms(row.ms)}, {show_mib(row.peak_mib)}"
    time = "" if row.estimated_ms is None else f", ~{show_ms(row.estimated_ms)}"
    memory = "" if row.estimated_mib is None else f", {show_mib(row.estimated_mib)}"
    return f"not run{time}{memory}"


def picture(
    passages: Passages,
    cells: dict[str, Cells],
    field: str,
    ylabel: str,
    label: Callable[[Axes], None],
) -> Figure:
    """Draw one line per method and pass, with one point per run that took a measurable time."""
    series: dict[str | tuple[str, str], list[float | None]] = {
        (method, "both passes" if PASSES[name] else name): [
            getattr(cells[name][length, method], field) or None for length in passages.lengths
        ]
        for method in ("fused", "naive")
        for name in PASSES
    }
    figure = plot_cost(passages.lengths, series, ylabel=ylabel)
    label(figure.axes[0])
    words = passages.names[passages.lengths[0]]
    figure.axes[0].set_xlabel(f"{words}, then characters: each attends to every other")
    return figure


if __name__ == "__main__":
    sys.exit(main())
