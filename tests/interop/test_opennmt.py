"""OpenNMT-py: its own module swapped, and the calls that it still computes itself.

Tests of OpenNMT-py itself are skipped if it is not installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.inputs import F32, F64
from helpers.interop_peers import QUIET, installed
from helpers.interop_swap import E, check, plain, swapped
from interop.libraries import SWAPS, opennmt

from attnkernels.interop import replace_attention
from benchmarks.suite import peers

pytestmark = QUIET


@pytest.fixture(scope="module")
def opennmt_attention() -> Iterator[Any]:
    """Yield the class, and afterwards remove the modules imported under stand-in packages."""
    before = set(sys.modules)
    yield installed(peers.opennmt).GlobalAttention
    for name in set(sys.modules) - before:
        if name.startswith("onmt."):
            del sys.modules[name]


@pytest.mark.parametrize("dtype", [F32, F64])
def test_opennmt(opennmt_attention: Any, dtype: torch.dtype) -> None:
    case = SWAPS["opennmt"]._replace(make=lambda: opennmt_attention(E, attn_type="mlp"))
    check(case, swapped(case, dtype))


def test_what_stays_opennmts(opennmt_attention: Any) -> None:
    module = opennmt_attention(E, coverage=True, attn_type="mlp")
    assert replace_attention(module).swapped
    src, memory, coverage = torch.randn(2, E), torch.randn(2, 5, E), torch.rand(2, 5)
    found = module(src, memory.clone(), torch.tensor([5, 3]), coverage)
    wanted = plain(module)(src, memory.clone(), torch.tensor([5, 3]), coverage)
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
    for options in ({"attn_type": "dot"}, {"attn_type": "mlp", "attn_func": "sparsemax"}):
        report = replace_attention(opennmt_attention(E, **options))
        assert not report.swapped and "attn_" in report.left[""]


def test_a_coverage_that_is_given_is_the_libraries_own_matter() -> None:
    module = opennmt.GlobalAttention(E, coverage=True)
    assert replace_attention(module).swapped
    src, memory, lengths = torch.randn(2, E), torch.randn(2, 5, E), torch.tensor([5, 3])
    coverage = torch.rand(2, 5)
    found = module(src, memory, lengths, coverage)
    wanted = plain(module)(src, memory, lengths, coverage)
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
    assert not torch.allclose(found[1], module(src, memory, lengths)[1])
