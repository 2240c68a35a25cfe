"""Measure attention over edges beside PyTorch Geometric's, as an operator and as a layer.

    python -m benchmarks.suite.graphs [--cases NAME,...] [--seconds S] [--threads N] [--json FILE]

The operator is what GATv2Conv computes after its projections, 8 heads of 32 channels: PyG's eagerly
and compiled, and `additive_attention_sparse` on edges that are prepared once. The layer has its
projections from 128 channels. The swapped one sorts the edges at its first call, and compares them
with those at all others. Graphs are seeded, with degrees that follow a power law. All run
interleaved in one process.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnkernels import additive_attention_sparse, prepare_edges
from attnkernels.interop import replace_attention
from attnkernels.measure import files
from attnkernels.measure.busy import Others, sentence
from attnkernels.measure.options import positive, seconds
from attnkernels.measure.wording import tolerate_any_encoding
from attnkernels.profile import tables
from benchmarks.suite import figures, peers
from benchmarks.suite.measure import interleaved
from benchmarks.suite.meters import Call

HEADS, CHANNELS, FEATURES = 8, 32, 128
POWER = 3.0  # of the distribution of degrees


class Case(NamedTuple):
    """A graph of `edges` from `sources` to `targets`; even: all targets have as many."""

    name: str
    targets: int
    sources: int
    edges: int
    even: bool = False


CASES = (
    Case("cora-like", 2_708, 2_708, 10_556),
    Case("mini-batch, outer", 1_024, 12_000, 15_360, even=True),
    Case("mini-batch, inner", 12_000, 60_000, 120_000, even=True),
    Case("arxiv-like", 169_343, 169_343, 1_166_243),
    Case("dense-ish", 10_000, 10_000, 1_000_000),
    Case("star", 1, 1_000_000, 1_000_000, even=True),
    Case("even", 10_000, 1_000_000, 1_000_000, even=True),
)


def graph(case: Case) -> Tensor:
    """Return the edge_index (2, edges) of a case, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(case.sources, (case.edges,), generator=generator)
    if case.even:
        return torch.stack([source, torch.arange(case.edges) % case.targets])
    drawn = torch.rand(case.edges, generator=generator) ** POWER * case.targets
    return torch.stack([source, drawn.long().clamp(max=case.targets - 1)])


# A call, and the leaves whose gradients its backward computes.
Made = tuple[Callable[[], Tensor], list[Tensor]]


def operators(case: Case) -> dict[str, Made]:
    """Return the providers of the operator, all of the same operands."""
    index, nodes = graph(case), (case.sources, case.targets)
    size = {"add_self_loops": False, "bias": False, "heads": HEADS}
    layer = peers.geometric().GATv2Conv(CHANNELS, CHANNELS, **size)
    x, y = (torch.randn(count, HEADS, CHANNELS, requires_grad=True) for count in nodes)
    edges = prepare_edges(index, case.targets, case.sources)

    def pyg() -> Tensor:
        alpha = layer.edge_updater(index, x=(x, y), edge_attr=None)
        return layer.propagate(index, x=(x, y), alpha=alpha, size=nodes)

    def ours() -> Tensor:
        key = x.transpose(0, 1)
        out = additive_attention_sparse(y.transpose(0, 1), key, key, layer.att[0], edges)
        return out.transpose(0, 1)

    torch.compiler.reset()
    calls = {"PyG": pyg, "PyG, compiled": torch.compile(pyg), "attnkernels": ours}
    return {name: (call, [x, y, layer.att]) for name, call in calls.items()}


def layers(case: Case) -> dict[str, Made]:
    """Return the layer of PyG, eagerly and compiled, and swapped."""
    index = graph(case)
    own = peers.geometric().GATv2Conv((FEATURES, FEATURES), CHANNELS, HEADS, add_self_loops=False)
    swapped = copy.deepcopy(own)
    if list(replace_attention(swapped).swapped) != [""]:
        raise RuntimeError("GATv2Conv was not swapped")
    nodes = case.sources, case.targets
    x, y = (torch.randn(count, FEATURES, requires_grad=True) for count in nodes)
    torch.compiler.reset()
    modules = {"PyG": own, "PyG, compiled": torch.compile(own), "attnkernels": swapped}
    return {
        name: (partial(module, (x, y), index), [x, y, *module.parameters()])
        for name, module in modules.items()
    }


def _directions(call: Callable[[], Tensor], leaves: list[Tensor]) -> dict[str, Call]:
    with torch.no_grad():
        arriving = torch.randn_like(call())

    def forward() -> Tensor:
        with torch.no_grad():
            return call()

    return {"forward": forward, "both": lambda: torch.autograd.grad(call(), leaves, arriving)}


def measure(case: Case, what: str, duration: float) -> list[dict[str, Any]]:
    """Return a row per direction: the milliseconds and peak MiB of every provider."""
    made = {"operator": operators, "layer": layers}[what](case)
    rows = []
    calls = {name: _directions(*each) for name, each in made.items()}
    for direction in ("forward", "both"):
        found = interleaved({name: each[direction] for name, each in calls.items()}, duration)
        row: dict[str, Any] = {"case": case.name, "what": what, "direction": direction}
        for name, timing in found.items():
            row[name] = {"ms": timing.median_ms, "peak_mib": timing.peak_mib}
        rows.append(row)
    return rows


def _cell(timing: dict[str, float], ours: dict[str, float]) -> str:
    times = timing["ms"] / ours["ms"]
    return f"{timing['ms']:.3g} ms, {times:.1f}x, {timing['peak_mib']:.0f} MiB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite.graphs",
        description="attention over edges beside PyTorch Geometric's",
    )
    names = ", ".join(case.name for case in CASES)
    parser.add_argument("--cases", help=f"separated by semicolons, of: {names}")
    parser.add_argument("--what", choices=("operator", "layer"), help="default: both")
    parser.add_argument("--seconds", type=seconds, default=10.0, help="a row (default: 10)")
    parser.add_argument("--threads", type=positive, default=2, help="default: 2")
    parser.add_argument(
        "--json", type=files.output, metavar="FILE", help="where to write the figures"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    tolerate_any_encoding()
    parser = _parser()
    options = parser.parse_args(arguments)
    wanted = options.cases.split(";") if options.cases else [case.name for case in CASES]
    if unknown := set(wanted) - {case.name for case in CASES}:
        parser.error(f"no case {', '.join(sorted(unknown))}")
    try:
        files.check({"--json": options.json})
    except ValueError as error:
        parser.error(str(error))
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    others = Others()
    rows = []
    console = tables.console()
    for case in CASES:
        for what in (options.what,) if options.what else ("operator", "layer"):
            if case.name in wanted:
                rows += measure(case, what, options.seconds)
                if options.json:  # now: the whole takes longer than some can wait
                    figures.write(options.json, rows, torch_geometric=version("torch_geometric"))
    table = tables.Table("attention over edges", "PyG", "PyG, compiled", "attnkernels")
    for row in rows:
        ours = row["attnkernels"]
        table.add_row(
            f"{row['case']}, {row['what']}, {row['direction']}",
            _cell(row["PyG"], ours),
            _cell(row["PyG, compiled"], ours),
            f"{ours['ms']:.3g} ms, {ours['peak_mib']:.0f} MiB",
        )
    console.print(table)
    if busy := sentence(others.cpus(), []):
        console.print(busy)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
