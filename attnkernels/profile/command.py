"""Profile additive attention of every character of a real text to every other.

    python -m attnkernels.profile [--device cuda] [--text FILE] [--lengths 64,128,...] [--dim 256]
                                  [--window W] [--precision fast] [--backward] [--compile]
                                  [--json FILE] [--plot FILE]
    torchrun --nproc-per-node 2 -m attnkernels.profile --distributed

A seeded embedding and bidirectional GRU (RNNsearch's encoder) encode the text once. Its first n
characters then attend to each other, for growing n: through the naive formula while it fits in
memory and in --naive-seconds, through torch.compile of it with --compile, and through
`additive_attention`; with --window also through its window_size. The CPU encodes the text, so the
inputs are the same on every device.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from ..backends import select
from ..backends.base import Problem
from ..extras import needs
from ..functional.checks import PRECISIONS
from ..measure import files
from ..measure.busy import Others, sentence
from ..measure.device import KINDS, Device, find
from ..measure.machine import free_memory
from ..measure.options import positive, seconds, seed
from ..measure.wording import count, tolerate_any_encoding
from .plot import draw
from .sweep import Method, Row, methods, nominal_work, spreads, sweep
from .text import Attended, Text, check_memory, encode, read_text, source
from .units import show_mib

with needs("profile", "matplotlib"):  # checked now, because drawing comes after hours of measuring
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from . import report, tables

LENGTHS = [2**power for power in range(6, 17)]  # 64 to 65,536
DEFAULT_SECONDS = 60.0  # per call of a default length, so that the default run takes minutes
INTERRUPTED = 130  # the status that a shell reports after SIGINT


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status.

    It is 0, 1 if a file could not be written, 2 for bad usage, or 130 if interrupted.
    """
    tolerate_any_encoding()
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        text = read_text(options.text)
        lengths = _lengths(options.lengths, text)
        if options.dim < 2 or options.dim % 2:
            raise ValueError(f"--dim must be an even number, 2 or more, got {options.dim}")
        outputs = {"--json": options.json, "--plot": options.plot}
        files.check(outputs, {"--text": source(options.text)})
        files.check_figure("--plot", options.plot)
        device = find(options.device)
        if options.distributed:
            from . import ranks  # torch.distributed takes a second to load

            ranks.check(options)
        check_memory(lengths[-1], options.dim, free_memory())
        _check_inputs(device, lengths[-1], options.dim)
        backend = select(Problem(device.type, torch.float32), options.backend).NAME
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:  # while it waited for the text
        return INTERRUPTED
    if options.distributed:
        return ranks.run(options, device, text, lengths, backend)
    return _run(options, device, text, lengths, backend)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m attnkernels.profile",
        description="Time and memory of additive attention over the characters of a real text.",
    )
    add = parser.add_argument
    add("--device", choices=KINDS, default="cpu", help="cuda includes ROCm (default: cpu)")
    add(
        "--text",
        metavar="FILE",
        help="UTF-8, - is standard input (default: Python's documentation)",
    )
    add("--lengths", metavar="N,N,...", type=_integers, help="default: 64, doubling to 65536")
    add("--dim", type=positive, default=256, help="width of query, key and value (default: 256)")
    add("--seed", type=seed, default=0, help="of the encoder's weights (default: 0)")
    add(
        "--window",
        type=positive,
        metavar="W",
        help="also attend every character to the W before it and the W after it alone",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default="exact",
        help="of the fused operator; fast allows approximate activations (default: exact)",
    )
    add("--backward", action="store_true", help="time forward and backward together")
    add("--compile", action="store_true", help="also torch.compile of the naive formula")
    add(
        "--distributed",
        action="store_true",
        help="share each length among the ranks that torchrun starts; only the fused operator",
    )
    add("--backend", help="of the fused operator (default: the first that is available)")
    add(
        "--naive-seconds",
        type=seconds,
        default=10.0,
        metavar="S",
        help="skip the naive formula where a call is expected to take longer, by the square of the "
        "length and the last call; a call that has begun is not stopped (default: 10)",
    )
    for kind in ("json", "plot"):
        help = f"where to write the {kind} (default: none)"
        add(f"--{kind}", type=files.output, metavar="FILE", help=help)
    return parser


def _integers(text: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 64,128,256") from None
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"a length must be at least 1, got {numbers[0]}")
    return numbers


def _lengths(wanted: list[int] | None, text: Text) -> list[int]:
    """Return the lengths to measure: those requested, or the defaults that the text covers."""
    characters = len(text.characters)
    has = f"the text {text.source} has {count(characters, 'character')}"
    if wanted is not None and wanted[-1] > characters:
        raise ValueError(f"{has}, --lengths wants {wanted[-1]:,}")
    fitting = [length for length in wanted or LENGTHS if length <= characters]
    if not fitting:
        raise ValueError(
            f"{has}, at least {LENGTHS[0]} wanted; give shorter lengths, as in "
            f"--lengths {characters}"
        )
    return fitting


def _check_inputs(device: Device, length: int, dim: int) -> None:
    """Raise ValueError if the query, key and value do not fit on a device besides the CPU."""
    needed, free = 3 * 4 * length * dim, device.free_memory()
    if device.type != "cpu" and needed > free:
        raise ValueError(
            f"{count(length, 'character')} at width {dim} need {show_mib(needed / 2**20)} on "
            f"{device.type}, and {show_mib(free / 2**20)} are free"
        )


def _run(
    options: argparse.Namespace, device: Device, text: Text, lengths: list[int], backend: str
) -> int:
    console = tables.console()
    free_mib = device.free_memory() / 2**20
    machine = f"{device.name}, torch {torch.__version__}"
    console.print(f"{machine}, {show_mib(free_mib)} free; fused: backend {backend}")
    passes = "forward + backward" if options.backward else "forward"
    title = f"Additive attention over {text.source}, {passes}, width {options.dim}"
    if options.window is not None:
        title += f", window {options.window:,}"
    if options.precision != "exact":
        title += f", precision {options.precision}"

    head = _head(options, device, text, backend)
    rows: list[Row] = []
    others = Others()
    try:
        for _ in _measure(options, device, text, lengths, backend, console, title, rows):
            if options.json is not None and not files.is_stream(options.json):
                with suppress(OSError):  # the last time it is reported
                    report.write_json(options.json, {**head, "interrupted": True}, rows)
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True

    taken = others.cpus()
    head["other_cpus"] = None if taken is None else round(taken, 2)
    console.print()
    if busy := sentence(taken, spreads(rows)):
        console.print(busy, style="yellow", highlight=False)
    said = report.sentence(rows, options.dim, options.backward, options.window)
    console.print(said, highlight=False)
    if interrupted:
        console.print("Interrupted: these are the measurements so far.")
    written = not rows or _write(
        console,
        json=(
            options.json,
            lambda path: report.write_json(path, {**head, "interrupted": interrupted}, rows),
        ),
        plot=(options.plot, lambda path: draw(path, rows, f"{title}\n{machine}", free_mib)),
    )
    if interrupted:
        return INTERRUPTED
    return 0 if written else 1


def _write(console: Console, **outputs: tuple[Path | None, Callable[[Path], None]]) -> bool:
    """Write each output that has a path; print where it is, or why it could not be written."""
    whole = True
    for kind, (path, writing) in outputs.items():
        if path is None:
            continue
        try:
            writing(path)
            said = f"{kind}: {path if files.is_stream(path) else path.resolve()}"
        except OSError as error:
            whole = False
            said = f"{kind}: cannot write {path}: {error.strerror or error}"
        console.print(said, soft_wrap=True, highlight=False, markup=False)
    return whole


def _measure(
    options: argparse.Namespace,
    device: Device,
    text: Text,
    lengths: list[int],
    backend: str,
    console: Console,
    title: str,
    rows: list[Row],
) -> Iterator[Row]:
    """Measure, append each row to `rows` and yield it, and grow a table above a progress bar."""
    todo = methods(
        options.dim,
        options.backward,
        options.compile,
        backend,
        naive_seconds=options.naive_seconds,
        fused_seconds=float("inf") if options.lengths else DEFAULT_SECONDS,
        window=options.window,
        precision=options.precision,
    )
    names = [method.name for method in todo]
    progress = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    )
    work = {
        (method.name, length): nominal_work(method, length) for method in todo for length in lengths
    }
    # The ceilings are those of the forward pass.
    ceilings = {} if options.backward else device.ceilings
    task = progress.add_task(
        f"encoding {count(lengths[-1], 'character')}", total=sum(work.values())
    )

    def starting(method: Method, length: int) -> None:
        progress.update(task, description=f"{method.name}, {count(length, 'character')}")

    with Live(progress, console=console, refresh_per_second=8) as live:
        drawn: tables.Table | str = ""
        try:
            encoded = encode(text.characters[: lengths[-1]], options.dim, options.seed)
            inputs = Attended(*(tensor.to(device.type) for tensor in encoded))
            for row in sweep(device, inputs, lengths, todo, options.backward, starting):
                rows.append(row)
                drawn = report.table(title, lengths, names, rows, ceilings)
                progress.advance(task, work[row.method, row.length])
                live.update(Group(drawn, progress))
                yield row
        finally:  # keep the table, remove the bar
            live.update(drawn)


def _head(options: argparse.Namespace, device: Device, text: Text, backend: str) -> dict[str, Any]:
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": device.type,
        **device.facts(),
        "text": {"source": text.source, "characters": len(text.characters)},
        "seed": options.seed,
        "dim": options.dim,
        "window": options.window,
        "precision": options.precision,
        "dtype": "float32",
        "direction": "both" if options.backward else "forward",
        "backend": backend,
    }
