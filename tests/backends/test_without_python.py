"""The compiled library serves a program without Python: it defines its operators itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.exported import EXAMPLE, SIZES, TOGETHER
from helpers.extensions import SETUP, why_not
from torch.utils._pytree import tree_leaves

from attnkernels.backends import native
from attnkernels.backends.base import Problem

LIBRARY = Path(native.__file__).parents[1] / "_C.abi3.so"
ALONE = """
import sys, torch
torch.ops.load_library(sys.argv[1])
x = torch.ones(1, 2, 3)
options = (None,) * 7 + (0.0, None, None, 0, 0.2, 1.0, False)
context, lse, _ = torch.ops.attnkernels.native_forward(x, x, x, torch.ones(3), *options)
assert "attnkernels" not in sys.modules
print(context.sum().item())
"""

pytestmark = pytest.mark.skipif(
    not LIBRARY.exists() or native.why_not(Problem("cpu", torch.float32)) is not None,
    reason="the library is not built",
)


def test_torch_alone_runs_the_operators() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(LIBRARY)], capture_output=True, text=True
    )
    assert done.stdout.split() == ["6.0"], done.stderr


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
@pytest.mark.skipif(sys.platform != "linux", reason="links as on Linux")
def test_a_program_runs_a_package(tmp_path: Path) -> None:
    """At other sizes than the example's, and so does Python."""
    module, program = TOGETHER.module().eval(), _compiled(tmp_path)
    package, given, found = (str(tmp_path / name) for name in ("module.pt2", "given", "found"))
    inputs = [list(TOGETHER.inputs(*sizes)) for sizes in SIZES]
    torch.save(inputs, given)
    with torch.no_grad():
        exported = torch.export.export(
            module, TOGETHER.inputs(*EXAMPLE), dynamic_shapes=(TOGETHER.dynamic,)
        )
        torch._inductor.aoti_compile_and_package(exported, package_path=package)
        expected = [tree_leaves(module(*each)) for each in inputs]
        loaded = torch._inductor.aoti_load_package(package)
        torch.testing.assert_close([tree_leaves(loaded(*each)) for each in inputs], expected)
    done = subprocess.run([program, LIBRARY, package, given, found], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(found, weights_only=False), expected)


def _compiled(folder: Path) -> Path:
    """Build serve.cpp against the installed torch."""
    torch_folder = Path(torch.__file__).parent
    include, libraries = torch_folder / "include", torch_folder / "lib"
    program, source = folder / "serve", Path(__file__).parents[1] / "native" / "serve.cpp"
    subprocess.run(
        [
            *SETUP["compiler"](), "-std=c++20", "-O0", source, f"-I{include}",
            f"-I{include}/torch/csrc/api/include", f"-L{libraries}",
            "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl",
            f"-Wl,-rpath,{libraries}", "-o", program,
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return program
