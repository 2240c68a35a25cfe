"""Swapped modules that are saved, traced or exported are the library's own."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.inputs import F32
from helpers.interop_swap import (
    LENGTHS,
    SwapCase,
    batches,
    keep,
    padding,
    plain,
    same,
    swapped,
    tensors,
    weigh,
)
from interop.libraries import SWAPS, captioning, fairseq
from torch import Tensor, nn

from attnkernels.interop import replace_attention

ALL = pytest.mark.parametrize("case", SWAPS.values(), ids=SWAPS)
TRACED = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit", "ignore:.*legacy", "ignore:.*TorchScr"
)


class Steps(nn.Module):
    """A decoder: the steps of a case as one module."""

    def __init__(self, case: SwapCase, attention: nn.Module) -> None:
        super().__init__()
        self.case, self.attention = case, attention

    def forward(self, memory: Tensor, states: Tensor) -> tuple[Tensor, ...]:
        return tensors(self.case.run(self.attention, memory, states, LENGTHS, keep))


def both(case: SwapCase) -> tuple[Steps, Steps, tuple[Tensor, Tensor]]:
    """Return the swapped module and the library's, and inputs."""
    module = swapped(case).eval()
    memory, states, *_ = batches(case, F32, grad=False).values()
    return Steps(case, module), Steps(case, plain(module)), (memory, states[:2])


@ALL
def test_pickles_are_the_librarys(case: SwapCase) -> None:
    """Also those in the middle of a sequence, of which they keep what the library keeps."""
    steps, own, inputs = both(case)
    with torch.no_grad():
        steps(*inputs)
        data = pickle.dumps(steps.attention)
        assert b"attnkernels" not in data
        again = pickle.loads(data)
        assert type(again) is type(own.attention)
        assert vars(again).keys() == vars(own.attention).keys()
        assert all(map(torch.equal, Steps(case, again)(*inputs), own(*inputs)))
        assert replace_attention(again).swapped
        same(Steps(case, again)(*inputs), own(*inputs))


HEAD = "import torch\nfrom torch import Tensor, nn\n"
CODE = """
import sys
sys.path.insert(0, sys.argv[1])
sys.modules["attnkernels"] = None  # an import of it fails
import torch
for name, module in torch.load(sys.argv[1] + "/modules.pt", weights_only=False).items():
    print(name, type(module).__module__, type(module).__name__)
"""


def test_saved_modules_load_without_this_package(tmp_path: Path) -> None:
    """The classes are in files of their own, as they are in their libraries."""
    saved, wanted = {}, []
    sys.path.insert(0, str(tmp_path))
    for name, case in SWAPS.items():
        module = case.make()
        own = sys.modules[type(module).__module__]
        theirs = f"their_{own.__name__.rpartition('.')[2]}"
        classes = [x for x in vars(own).values() if inspect.isclass(x) and is_of(x, own)]
        text = "\n\n".join(map(inspect.getsource, (padding, weigh, *classes)))
        (tmp_path / f"{theirs}.py").write_text(f"from __future__ import annotations\n{HEAD}{text}")
        for each in module.modules():
            if is_of(type(each), own):
                each.__class__ = getattr(import_module(theirs), type(each).__name__)
        assert replace_attention(module).swapped
        saved[name.replace(" ", "")] = module
        wanted.append(f"{name.replace(' ', '')} {theirs} {type(module).__name__}")
    torch.save(saved, tmp_path / "modules.pt")
    sys.path.remove(str(tmp_path))
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert run.stdout.splitlines() == wanted


def is_of(cls: type, module: Any) -> bool:
    return cls.__module__ == module.__name__


@ALL
@TRACED
def test_a_trace_is_the_librarys(case: SwapCase) -> None:
    module, own, inputs = both(case)
    traces = [torch.jit.trace(each, inputs, check_trace=False) for each in (own, module)]
    kinds = [[node.kind() for node in each.inlined_graph.nodes()] for each in traces]
    assert kinds[0] == kinds[1]
    torch.testing.assert_close(traces[1](*inputs), own(*inputs))


@pytest.mark.parametrize(
    "make, rest",
    [
        (lambda: captioning.Attention(6, 5, 4), {}),
        (lambda: fairseq.MLPAttention(5, 6, 4), {"encoder_padding_mask": None}),
    ],
    ids=["captioning", "fairseq"],
)
def test_a_symbolic_trace_is_the_librarys(
    make: Callable[[], nn.Module], rest: dict[str, None]
) -> None:
    module, kinds = make(), []
    for swap in False, True:
        assert not swap or replace_attention(module).swapped
        graph = torch.fx.symbolic_trace(module, concrete_args=rest).graph
        kinds.append([(node.op, str(node.target)) for node in graph.nodes])
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("name", ["allennlp", "captioning", "gnmt", "speechbrain"])
@pytest.mark.filterwarnings("ignore:The tensor attributes", "ignore:.*LeafSpec")
def test_an_exported_program_is_the_librarys(name: str) -> None:
    module, own, inputs = both(SWAPS[name])
    programs = [torch.export.export(each, inputs) for each in (own, module)]
    nodes = [[(node.op, str(node.target)) for node in each.graph.nodes] for each in programs]
    assert nodes[0] == nodes[1]


@ALL
@TRACED
def test_an_export_to_onnx_is_the_librarys(case: SwapCase, tmp_path: Path) -> None:
    exported_alike(case, tmp_path, dynamo=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["captioning", "speechbrain", "espnet-loc", "allennlp"])
def test_a_program_exported_to_onnx_is_the_librarys(name: str, tmp_path: Path) -> None:
    exported_alike(SWAPS[name], tmp_path, dynamo=True)


def exported_alike(case: SwapCase, folder: Path, dynamo: bool) -> None:
    onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
    pytest.importorskip("onnxscript", reason="the package onnxscript is not installed")
    module, own, inputs = both(case)
    nodes: list[Any] = []
    for each in own, module:
        path = folder / f"{len(nodes)}.onnx"
        try:
            torch.onnx.export(each.eval(), inputs, path, dynamo=dynamo, verbose=False)
        except torch.onnx.errors.OnnxExporterError as error:  # it knows no operator of the library
            nodes.append(type(error))
        else:
            nodes.append([node.op_type for node in onnx.load(path).graph.node])
    assert nodes[0] == nodes[1]
