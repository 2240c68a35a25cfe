"""The profile over many ranks: each holds its share of the text."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed import context_parallel_attention, split_sequence, transfer
from ..measure import files
from ..measure.device import Device
from . import tables
from .sweep import WARM_UP, call_of
from .text import Attended, Text, encode
from .units import show_mib, show_ms

UNUSED = ("compile", "plot")  # options of the profile on one rank


@dataclass
class Row:
    """One length: the slowest rank's time, the largest memory, and the mean share of waiting."""

    length: int
    ms: float
    peak_mib: float
    waiting: float
    g_elements_per_s: float


def check(options: argparse.Namespace) -> None:
    """Raise ValueError unless torchrun started this process and the options fit."""
    if "RANK" not in os.environ:
        raise ValueError(
            "--distributed: start the ranks with torchrun --nproc-per-node 2 -m"
            " attnkernels.profile --distributed"
        )
    for name in UNUSED:
        if getattr(options, name):
            raise ValueError(f"--{name} cannot be used with --distributed")


def run(
    options: argparse.Namespace, device: Device, text: Text, lengths: list[int], backend: str
) -> int:
    """Measure every length on all ranks; the first rank prints the table. Return 0."""
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        encoded = encode(text.characters[: lengths[-1]], options.dim, options.seed)
        rows = []
        for length in (min(WARM_UP, lengths[-1]), *lengths):  # the first is not kept
            rows.append(_row(options, device, encoded, length, backend))
        if dist.get_rank() == 0:
            _show(options, device, text, rows[1:], backend)
        dist.barrier()
    finally:
        dist.destroy_process_group()
    return 0


def _row(
    options: argparse.Namespace, device: Device, encoded: Attended, length: int, backend: str
) -> Row:
    group = dist.group.WORLD
    assert group is not None
    *whole, weight = (x.to(device.type) for x in encoded)
    query, key, value = (split_sequence(x[:, :length], group).contiguous() for x in whole)
    attention: Callable[..., Any] = partial(
        context_parallel_attention,
        mesh_or_group=group,
        precision=options.precision,
        backend=backend,
    )
    if options.window is not None:
        attention = partial(attention, window_size=(options.window, options.window))
    call = call_of(attention, Attended(query, key, value, weight), options.backward)
    waits: list[float] = []
    transfer.observers.append(waits.append)
    try:
        dist.barrier()
        measured = device.measure(call)
    finally:
        transfer.observers.remove(waits.append)
    mine = [measured.seconds, measured.peak_bytes, sum(waits)]
    every = _gathered(torch.tensor(mine, dtype=torch.float64), device)
    seconds, peak, waited = every.unbind(1)
    slowest = seconds.max().item()
    return Row(
        length,
        slowest * 1e3,
        peak.max().item() / 2**20,
        (waited / seconds).mean().item(),
        length**2 * encoded.query.shape[-1] / slowest / 1e9,
    )


def _gathered(mine: Tensor, device: Device) -> Tensor:
    mine = mine.to(device.type)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    return torch.stack(every).cpu()


def _show(
    options: argparse.Namespace, device: Device, text: Text, rows: list[Row], backend: str
) -> None:
    console = tables.console()
    size = dist.get_world_size()
    passes = "forward + backward" if options.backward else "forward"
    title = f"Additive attention over {text.source}, {passes}, width {options.dim}, {size} ranks"
    if options.window is not None:
        title += f", window {options.window:,}"
    if options.precision != "exact":
        title += f", precision {options.precision}"
    console.print(f"{device.name}, torch {torch.__version__}; backend {backend}", highlight=False)
    table = tables.Table("characters", title=title)
    for heading in ("time", "memory per rank", "waiting for others"):
        table.add_column(heading, justify="right")
    if options.window is None:
        table.add_column("G elements/s", justify="right")
    for row in rows:
        rate = [f"{row.g_elements_per_s:.1f}"] if options.window is None else []
        cells = show_ms(row.ms), show_mib(row.peak_mib), f"{row.waiting:.1%}", *rate
        table.add_row(f"{row.length:,}", *cells)
    console.print(table)
    if options.json is not None:
        files.write(
            options.json, json.dumps({"ranks": size, "rows": [asdict(row) for row in rows]})
        )
