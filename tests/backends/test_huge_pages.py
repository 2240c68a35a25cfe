"""Large results of the CPU kernels ask Linux for huge pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.inputs import make
from torch import Tensor

from attnkernels import additive_attention

SMAPS = Path("/proc/self/smaps")
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags_at(address: int) -> list[str]:
    """Return the flags of the mapping that holds an address, as `man proc_pid_smaps` names them."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            begin, end = (int(each, 16) for each in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return rest.split()
    return []


@pytest.mark.skipif(not SMAPS.exists() or not SWITCH.exists(), reason="of Linux with huge pages")
@pytest.mark.parametrize("columns, asks", [(2200, True), (1000, False)])
def test_large_results_ask_for_huge_pages(columns: int, asks: bool) -> None:
    found: Tensor = additive_attention(
        *make((1, 4096, 1, 1, columns), grad=False), backend="native"
    )
    flags = flags_at(found.data_ptr() + found.nbytes // 2)
    if not flags:
        pytest.skip("this kernel does not say")
    assert ("hg" in flags) == asks
