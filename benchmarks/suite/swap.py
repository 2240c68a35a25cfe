"""Measure the attention of other libraries before and after `replace_attention`.

    python -m benchmarks.suite.swap [--seconds S] [--json FILE]

Forward and backward run interleaved in one process. A decoder step is a twentieth of 20 steps after
`reset`. It is measured with the library's projections, which are the same for both (that of the
keys runs once per 20 steps and takes most of the time), and without them.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnkernels.interop import replace_attention
from attnkernels.measure import files
from attnkernels.measure.busy import Others, sentence
from attnkernels.measure.options import seconds
from attnkernels.measure.wording import tolerate_any_encoding
from attnkernels.profile import tables
from benchmarks.suite import figures, peers
from benchmarks.suite.measure import interleaved

STEPS = 20


class Case(NamedTuple):
    name: str
    module: torch.nn.Module
    run: Callable[[Any], Tensor]  # module -> the tensor to differentiate
    per: int = 1  # how many steps it is
    without: tuple[str, ...] = ()  # projections that are removed from both, once it is swapped


def cases() -> tuple[list[Case], dict[str, str]]:
    """Return the cases that can be measured here, and the reasons for the others."""
    made, absent = [], {}
    for make in (
        speechbrain_content,
        speechbrain_attention,
        speechbrain_location,
        opennmt,
        keras,
        gatv2,
    ):
        try:
            made.append(make())
        except ImportError as error:
            absent[make.__name__] = str(error)
    return made, absent


def speechbrain_content() -> Case:
    module = peers.speechbrain().ContentBasedAttention(512, 512, 512, 512)
    return Case("SpeechBrain content, step 32x200x512", module, _speechbrain(), STEPS)


def speechbrain_attention() -> Case:
    case = speechbrain_content()
    name = "SpeechBrain content, attention alone"
    return case._replace(name=name, without=("mlp_enc", "mlp_dec", "mlp_out"))


def speechbrain_location() -> Case:
    module = peers.speechbrain().LocationAwareAttention(512, 512, 512, 512, 10, 50)
    return Case("SpeechBrain location, step 32x200x512", module, _speechbrain(), STEPS)


def _speechbrain() -> Callable[[Any], Tensor]:
    memory, lengths, queries = _draw(32, 200, 512), torch.full((32,), 200.0), _draw(STEPS, 32, 512)

    def run(module: Any) -> Tensor:
        module.reset()
        return torch.stack([module(memory, lengths, query)[0] for query in queries.unbind()])

    return run


def opennmt() -> Case:
    module = peers.opennmt().GlobalAttention(512, attn_type="mlp")
    query, memory, lengths = _draw(32, 50, 512), _draw(32, 50, 512), torch.full((32,), 50)
    return Case("OpenNMT-py, 32x50x50x512", module, lambda m: m(query, memory, lengths)[0])


def keras() -> Case:
    query, memory = _draw(8, 50, 512), _draw(8, 50, 512)
    module = peers.keras().layers.AdditiveAttention()
    module([query, memory])  # builds it
    return Case("Keras, 8x50x50x512", module, lambda m: m([query, memory]))


def gatv2() -> Case:
    nodes = torch.arange(512)
    edges, x = torch.cartesian_prod(nodes, nodes).t().contiguous(), _draw(512, 64)
    module = peers.geometric().GATv2Conv(64, 64, heads=8)
    return Case("GATv2Conv, 512 nodes, all edges, 8x64", module, lambda m: m(x, edges))


def _draw(*sizes: int) -> Tensor:
    return torch.randn(sizes, requires_grad=True)


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """Return the milliseconds and memory of both, per step if the case has steps."""
    # Keras copies its own layer, so the copy stays unswapped.
    own = copy.deepcopy(case.module)
    report = replace_attention(case.module)
    if list(report.swapped) != [""]:
        raise RuntimeError(f"{case.name} was not swapped: {report}")
    modules = {"own": own, "swapped": case.module}
    for module in modules.values():
        for name in case.without:
            setattr(module, name, torch.nn.Identity())

    def call(module: torch.nn.Module) -> Callable[[], None]:
        out = case.run(module)
        direction = torch.randn_like(out)
        return lambda: case.run(module).backward(direction)

    timings = interleaved({name: call(module) for name, module in modules.items()}, seconds)
    row: dict[str, Any] = {"case": case.name}
    for name, timing in timings.items():
        row[f"{name}_ms"] = timing.median_ms / case.per
        row[f"{name}_peak_mib"] = timing.peak_mib
    return row | {"times": timings["own"].median_ms / timings["swapped"].median_ms}


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    tolerate_any_encoding()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite.swap",
        description="Other libraries' attention, before and after",
    )
    parser.add_argument("--seconds", type=seconds, default=5.0, help="a case (default: 5)")
    parser.add_argument(
        "--json", type=files.output, metavar="FILE", help="where to write the figures"
    )
    options = parser.parse_args(arguments)
    try:
        files.check({"--json": options.json})
    except ValueError as error:
        parser.error(str(error))
    torch.manual_seed(0)
    found, absent = cases()
    others = Others()
    rows = [measure(case, options.seconds) for case in found]
    table = tables.Table("forward and backward", "own", "swapped", "times", "memory, own / swapped")
    for row in rows:
        table.add_row(
            row["case"],
            f"{row['own_ms']:.2f} ms",
            f"{row['swapped_ms']:.2f} ms",
            f"{row['times']:.1f}x",
            f"{row['own_peak_mib']:.0f} / {row['swapped_peak_mib']:.0f} MiB",
        )
    console = tables.console()
    console.print(table)
    if busy := sentence(others.cpus(), []):
        console.print(busy)
    for name, why in absent.items():
        console.print(f"not measured: {name}: {why}")
    if options.json:
        figures.write(options.json, rows, absent=absent)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
