"""`python -m attnkernels.info`, and what is left where the kernels were not built."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import attnkernels
from attnkernels.backends import BACKENDS
from attnkernels.backends.base import Problem

USES_IT = """
import torch
from attnkernels import additive_attention
inputs = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 2), torch.randn(4)
print(additive_attention(*inputs).shape)
try:
    additive_attention(*inputs, backend="native")
except ValueError as error:
    print(error)
"""


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_versions_backends_and_reasons() -> None:
    page = run("-m", "attnkernels.info")
    assert attnkernels.__version__ in page and torch.__version__ in page
    for backend in BACKENDS:
        assert backend.NAME in page
        for device in ("cpu", "cuda"):
            assert (backend.why_not(Problem(device, torch.float32)) or "available") in page


@pytest.mark.parametrize("isa", ["default", "avx2", "avx512"])
def test_names_the_instruction_set(fused: str, isa: str) -> None:
    """The one torch was made to use, and so the kernels."""
    page = run("-m", "attnkernels.info", ATEN_CPU_CAPABILITY=isa)
    if isa.upper() not in page:
        pytest.skip(f"this machine does not run {isa}")
    assert page.count(isa.upper()) >= 2


def test_without_the_library_the_reference_works() -> None:
    """As after an installation without a compiler: a sentence, and only where native is named."""
    nowhere = os.path.join(os.path.dirname(__file__), "nowhere.so")
    shape, *sentence = run("-c", USES_IT, ATTNKERNELS_LIBRARY=nowhere).splitlines()
    assert shape == "torch.Size([2, 3, 2])"
    assert "native" in sentence[0] and "nowhere.so" in sentence[0]
    assert "missing" in run("-m", "attnkernels.info", ATTNKERNELS_LIBRARY=nowhere)
