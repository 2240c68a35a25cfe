"""Run the same cases through pytest-benchmark, one group per case and direction.

    pytest benchmarks -k "square and native"

Compilation happens before the measurement.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnkernels.measure.memory import measure
from benchmarks.suite.cases import BY_REQUEST, CASES, Case
from benchmarks.suite.providers import PROVIDERS, Provider, prepare, why_not

pytest.importorskip("pytest_benchmark")

WANTED = [
    pytest.param(case, direction, provider, id=f"{case.name}-{direction}-{provider.name}")
    for case in CASES
    if case.group not in BY_REQUEST
    for direction in case.directions
    for provider in PROVIDERS
    if provider.name in case.providers
]


@pytest.mark.benchmark(min_rounds=3, max_time=1.0)
@pytest.mark.parametrize("case, direction, provider", WANTED)
def test_attention(benchmark: Any, case: Case, direction: str, provider: Provider) -> None:
    sentence = why_not(provider, case, direction, torch.float32)
    if sentence is not None:
        pytest.skip(f"{provider.name}: {sentence}")
    benchmark.group = f"{case.name} {'x'.join(map(str, case.shape))} {direction}"
    call = prepare(provider, case, direction, torch.float32)
    call()  # compiles
    benchmark.extra_info["peak_mib"] = measure(call).peak_bytes / 2**20
    benchmark(call)
