"""Attention of ranks that share a sequence: against one process, against a slow network, modelled.

    python -m benchmarks.ranks [--length 4096] [--dim 128] [--repeats 3]

Ranks are processes of one thread on this machine, on gloo; one process has two threads. Runs of
both are interleaved, and each rank's time is that of the slowest. `cost` is a model of what many
ranks take; the command prints it beside what it measured.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from attnkernels import additive_attention
from attnkernels.distributed import context_parallel_attention, ring, split_sequence, transfer
from attnkernels.measure.memory import measure

WARM_UP = 32  # rows of a call that is not measured
DELAYS = (0.0, 0.01, 0.03, 0.1, 0.3)  # seconds before a transfer arrives


class Machine(NamedTuple):
    """One rank: elements per second in both passes, bytes per second and seconds per message."""

    forward: float
    backward: float
    bandwidth: float
    latency: float


def cost(
    n: int, m: int, d: int, ranks: int, of: Machine, itemsize: int = 4, cut: ring.Cut = ring.ON_GPU
) -> dict[str, float]:
    """Return the seconds of both passes over `ranks` ranks, and the share that is communication.

    dv is d. Each of the ranks - 1 steps moves one shard of keys and values in pieces, and in the
    backward also its gradients in 4 bytes. A piece is under way while another one is computed; what
    takes longer than that is seen.
    """
    rows, keys = n / ranks, m / ranks
    pieces = max(1, min(cut.keys, int(keys) // cut.least_keys))
    work, moved = rows * keys * d / pieces, 2 * keys * d / pieces
    passes = (work / of.forward, itemsize), (work / of.backward, itemsize + 4)
    total = seen = 0.0
    for compute, size in passes:
        late = max(0.0, moved * size / of.bandwidth + of.latency - compute)
        seen += late * pieces * (ranks - 1)
        total += compute * pieces * ranks
    total += seen
    return {"seconds": total, "waiting": seen / total if total else 0.0}


def predicted(run: Run, ranks: int, one: float) -> float:
    """Return the model's seconds of a run, from those of one process with two threads.

    Half of the pairs of a causal call take part. Loopback is taken to move 1 GB/s. More ranks share
    the two cores.
    """
    rate = run.length**2 * run.dim / one  # of a core, each pass taking half of the time
    rate *= min(1.0, 2 / ranks)
    machine = Machine(rate, rate, 1e9, run.delay)
    return cost(*[run.length] * 2, run.dim, ranks, machine, cut=ring.ON_CPU)["seconds"]


class Run(NamedTuple):
    """One comparison: the sequence, and how slow the other ranks are to reach."""

    length: int
    dim: int
    causal: bool
    delay: float
    repeats: int


def _inputs(run: Run) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, run.length, run.dim)] * 3
    whole = [torch.randn(shape, generator=generator) for shape in shapes]
    return [*whole, torch.randn(run.dim, generator=generator) / run.dim**0.5]


def _both(attention: Callable[..., Any], inputs: list[torch.Tensor]) -> object:
    leaves = [x.detach().requires_grad_() for x in inputs]
    context = attention(*leaves)
    return context, torch.autograd.grad(context, leaves, inputs[2])


class _Late(transfer.Transfer):
    """A transfer that arrives no sooner than `delay` seconds after it began."""

    delay = 0.0

    def __init__(self, works: list[Any], tensors: list[torch.Tensor]) -> None:
        super().__init__(works, tensors)
        self.due = time.perf_counter() + (self.delay if works else 0.0)

    def wait(self) -> None:
        time.sleep(max(0.0, self.due - time.perf_counter()))
        super().wait()


def _rank(rank: int, size: int, folder: str, runs: list[Run], turn: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    transfer.Transfer = _Late  # type: ignore[misc]
    found, waits = [], []
    transfer.observers.append(waits.append)
    for run in runs:
        _Late.delay = run.delay
        balanced = run.causal
        cut = partial(split_sequence, mesh_or_group=dist.group.WORLD, balanced=balanced)
        *whole, weight = _inputs(run)
        own = [*(cut(x).contiguous() for x in whole), weight]
        attention = partial(
            context_parallel_attention,
            mesh_or_group=dist.group.WORLD,
            is_causal=run.causal,
            balanced=balanced,
        )
        del whole
        call = partial(_both, attention, own)
        _both(attention, [*(x[:, :WARM_UP] for x in own[:3]), weight])
        dist.barrier()
        for _ in range(run.repeats):
            turn.wait()  # the others' turn
            dist.barrier()
            waits.clear()
            seconds, peak = measure(call)
            found.append((seconds, peak, sum(waits) / seconds))
            turn.wait()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def compare(size: int, runs: list[Run]) -> list[dict[str, Any]]:
    """Return the medians of each run, of `size` ranks and of one process, interleaved."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.get_context("spawn")
        turn = context.Barrier(size + 1)
        ranks = torch.multiprocessing.spawn(_rank, (size, folder, runs, turn), size, join=False)
        alone = []
        for run in runs:
            attention, inputs = partial(additive_attention, is_causal=run.causal), _inputs(run)
            call = partial(_both, attention, inputs)
            _both(attention, [*(x[:, :WARM_UP] for x in inputs[:3]), inputs[3]])
            for _ in range(run.repeats):
                alone.append(measure(call))
                turn.wait()
                turn.wait()
        while not ranks.join():
            pass
        every = [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)
        ]
    found = []
    for at, run in enumerate(runs):
        span = slice(at * run.repeats, (at + 1) * run.repeats)
        whole, parts = alone[span], list(zip(*(each[span] for each in every), strict=True))
        seconds = [max(seconds for seconds, _, _ in ranks) for ranks in parts]
        peaks = [max(peak for _, peak, _ in ranks) for ranks in parts]
        found.append(
            {
                "run": run,
                "one": median(each.seconds for each in whole),
                "ranks": median(seconds),
                "ratio": median(x / y.seconds for x, y in zip(seconds, whole, strict=True)),
                "waiting": median(max(waiting for *_, waiting in ranks) for ranks in parts),
                "memory": median(peaks) / median(each.peak_bytes for each in whole),
                "mib": median(each.peak_bytes for each in whole) / 2**20,
            }
        )
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--delays", action="store_true", help="only a slow network")
    options = parser.parse_args(arguments)
    shape = options.length, options.dim
    if options.delays:
        runs = [Run(*shape, False, delay, options.repeats) for delay in DELAYS]
    else:
        runs = [Run(*shape, causal, 0.0, options.repeats) for causal in (False, True)]
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, load {load:.1f}, {options.ranks} ranks of 1 thread")
    for each in compare(options.ranks, runs):
        run = each["run"]
        print(
            f"1x{run.length}x{run.length}x{run.dim}{' causal' * run.causal}, delay {run.delay} s:"
        )
        print(f"  one process of 2 threads {each['one']:.2f} s, {each['mib']:.0f} MiB")
        print(
            f"  ranks {each['ranks']:.2f} s, {each['ratio']:.2f}x; memory {each['memory']:.2f}x;"
            f" waiting {each['waiting']:.1%}; the model says"
            f" {predicted(run, options.ranks, each['one']):.2f} s"
        )


if __name__ == "__main__":
    main()
