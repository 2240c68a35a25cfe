"""Processes that run the same cases side by side, on gloo."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

RANKS = 2


def run(
    rank: int,
    folder: Path,
    names: Iterable[str],
    case: Callable[[str], Any],
    count: int = RANKS,
    timeout: timedelta | None = None,
) -> None:
    """Run every case as one of the processes; save the results, or the error of each."""
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timeout)
    results: dict[str, Any] = {}
    for name in names:
        try:
            results[name] = case(name)
        except Exception:
            results[name] = traceback.format_exc()
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def spawned(
    worker: Callable[[int, Path], None], folder: Path, count: int = RANKS
) -> list[dict[str, Any]]:
    """Return what each process saved, by case."""
    torch.multiprocessing.spawn(worker, (folder,), count)
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]
