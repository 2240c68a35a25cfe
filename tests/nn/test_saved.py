"""Memories in files and on screens, and tools that trace: what each is told."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnkernels import additive_attention, prepare_keys
from attnkernels.functional.memory import AdditiveMemory, restore_memory
from attnkernels.interop import load_state_dict_from
from attnkernels.nn import (
    AdditiveAttention,
    AlignmentState,
    CoverageAttention,
    HardAttention,
    LocationSensitiveAttention,
    MonotonicAttention,
    PointerHead,
    PreparedMemory,
    ProjectedMemory,
)

KEY, LENGTHS, QUERY = torch.randn(3, 70, 5), torch.tensor([70, 1, 0]), torch.randn(3, 6)


def of_function() -> AdditiveMemory:
    options = {"key_lengths": LENGTHS, "activation": "relu", "scale": 0.5, "backend": "reference"}
    return prepare_keys(KEY, KEY, torch.ones(5), **options)


def by_function(memory: AdditiveMemory) -> Tensor:
    return memory.attend(QUERY[:, None, :5])


ADDITIVE = AdditiveAttention(6, 5, 8).requires_grad_(False)
COVERAGE = CoverageAttention(6, 5, 8).requires_grad_(False)
HARD = HardAttention(6, 5, 8).requires_grad_(False).eval()
# How to make a memory, how to use it, and the classes and functions that loading it needs.
MEMORIES: dict[str, tuple[Callable[[], Any], Callable[[Any], Tensor], list[Any]]] = {
    "function": (of_function, by_function, [restore_memory]),
    "additive": (
        lambda: ADDITIVE.prepare(KEY, LENGTHS),
        lambda memory: ADDITIVE.step(QUERY, memory),
        [PreparedMemory, restore_memory],
    ),
    "coverage": (
        lambda: COVERAGE.prepare(KEY, LENGTHS),
        lambda memory: COVERAGE.step(QUERY, memory)[0],
        [AlignmentState],
    ),
    "hard": (
        lambda: HARD.prepare(KEY, LENGTHS),
        lambda memory: HARD.step(QUERY, memory).context,
        [ProjectedMemory],
    ),
}
memories = pytest.mark.parametrize("make, use, needed", MEMORIES.values(), ids=MEMORIES)


@memories
def test_load_with_weights_only(
    make: Callable[[], Any], use: Callable[[Any], Tensor], needed: list[Any]
) -> None:
    """The names that the documentation lists are needed, and they suffice."""
    torch.serialization.clear_safe_globals()  # those that the documentation's code allows
    memory, stored = make(), io.BytesIO()
    torch.save(memory, stored)
    stored.seek(0)
    found = torch.serialization.get_unsafe_globals_in_checkpoint(stored)
    assert set(found) == {f"{x.__module__}.{x.__qualname__}" for x in needed}
    stored.seek(0)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(stored, weights_only=True)
    stored.seek(0)
    with torch.serialization.safe_globals(needed):
        loaded = torch.load(stored, weights_only=True)
    assert type(loaded) is type(memory)
    assert torch.equal(use(loaded), use(memory))


@memories
def test_a_memory_fits_on_a_screen(
    make: Callable[[], Any], use: Callable[[Any], Tensor], needed: list[Any]
) -> None:
    shown = repr(make())
    assert shown.startswith(type(make()).__name__) and len(shown) < 300 and "\n" not in shown
    assert "=float32[3, 70, " in shown and "key_lengths=int64[3]" in shown


MODULES: dict[str, Callable[[], nn.Module]] = {
    "additive": lambda: AdditiveAttention(6, 5, 8),
    "coverage": lambda: CoverageAttention(6, 5, 8),
    "location": lambda: LocationSensitiveAttention(6, 5, 8),
    "moving": lambda: MonotonicAttention(6, 5, 8),
    "hard": lambda: HardAttention(6, 5, 8),
    "pointer": lambda: PointerHead(6, 5, 8),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_symbolic_traces_are_told_what_to_do(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(TypeError, match=r"got a torch.fx.Proxy: use torch.export, or make the mod"):
        torch.fx.symbolic_trace(make())


class Around(nn.Module):
    """A user's module, whose tracer stops at the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = AdditiveAttention(6, 5, 8)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return 2 * self.attention(query, key)


class Tracer(torch.fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, AdditiveAttention) or super().is_leaf_module(module, name)


def test_what_symbolic_traces_are_told_works() -> None:
    module, given = Around(), (torch.randn(2, 3, 6), torch.randn(2, 4, 5))
    traced = torch.fx.GraphModule(module, Tracer().trace(module))
    assert torch.equal(traced(*given), module(*given))


@pytest.mark.parametrize("given", ["model.pt", None, ADDITIVE, [("weight", KEY)]])
def test_a_checkpoint_is_a_mapping(given: Any) -> None:
    wanted = f"^state_dict must be a mapping of names to tensors, got {type(given).__name__}"
    with pytest.raises(TypeError, match=wanted):
        load_state_dict_from(ADDITIVE, given, convention="speechbrain")
    for name in ("convention", "prefix"):
        options = {"convention": "speechbrain"} | {name: 3}
        with pytest.raises(TypeError, match=f"^{name} must be a string, got int"):
            load_state_dict_from(ADDITIVE, {}, **options)


RELOADING = """
import importlib, pkgutil, sys
import torch, attnkernels
names = [m.name for m in pkgutil.walk_packages(attnkernels.__path__, "attnkernels.")]
skipped = ("_C", "__main__", ".device", ".host", "keras")
for _ in range(2):
    for name in names:
        if not any(part in name for part in skipped) and name in sys.modules:
            importlib.reload(sys.modules[name])
importlib.reload(attnkernels)
q = torch.randn(2, 3, 4, requires_grad=True)
out = attnkernels.additive_attention(q, q, q, torch.randn(4), dropout_p=0.1)
out.sum().backward()
assert q.grad.isfinite().all()
torch.func.vmap(lambda q: attnkernels.additive_scores(q, q, torch.ones(4)))(q.detach())
torch.compile(attnkernels.additive_scores, backend="eager", fullgraph=True)(q, q + 1, torch.ones(4))
from attnkernels.nn import AdditiveAttention
AdditiveAttention(4, 4, 8)(q, q).sum().backward()
print("reloaded")
"""


def test_modules_can_be_loaded_again() -> None:
    """As a notebook's autoreload does."""
    command = [sys.executable, "-c", RELOADING]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "reloaded\n", done.stderr


def test_tensors_of_a_mesh_are_told_what_to_do(tmp_path: Any) -> None:
    from torch import distributed
    from torch.distributed.tensor import DeviceMesh, Replicate, distribute_tensor
    from torch.distributed.tensor.experimental import local_map

    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = DeviceMesh("cpu", [0])
        plain = [torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 4), torch.randn(4)]
        meshed = [distribute_tensor(x, mesh, [Replicate()]) for x in plain]
        refused = "must be a plain tensor, got a DTensor: .*local_map$"
        for place, name in enumerate(("key", "value", "weight"), 1):
            mixed = [*plain[:place], meshed[place], *plain[place + 1 :]]
            with pytest.raises(TypeError, match=f"^{name} {refused}"):
                additive_attention(*mixed)
        with pytest.raises(
            TypeError, match="^key must be a DTensor on the mesh of query, as query"
        ):
            additive_attention(meshed[0], *plain[1:])
        with pytest.raises(TypeError, match=f"^query {refused}"):
            prepare_keys(*plain[1:]).attend(meshed[0])
        every = [Replicate()]
        local = local_map(additive_attention, out_placements=every, in_placements=(every,) * 4)
        assert torch.equal(local(*meshed).to_local(), additive_attention(*plain))
    finally:
        distributed.destroy_process_group()
