"""The Triton kernels compile for every target without a GPU, to the expected code.

Each combination of options is compiled, which takes longer than everything else. Options are
therefore combined, sizes are few, and `make sass` compiles what is shipped for the other targets.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F16, cumulative, make, normal, sliced, transposed

pytest.importorskip("triton", reason="the package triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    reason = "TRITON_INTERPRET=1 interprets kernels: there is nothing to compile"
    pytest.skip(reason, allow_module_level=True)

from attnkernels.backends.triton.host import configs
from tools.sass import aot
from tools.sass import run as sass

TARGETS = ("sm_90", "gfx942")  # one per compiler: the others differ in their code generator
TILED = {"prepare_kernel", "forward_kernel", "gradient_kernel", "value_kernel", "sweep_kernel"}
STEP = {"step_kernel", "step_gradient_kernel", "step_sweep_kernel"}
ROWS = {"tiles": (33, TILED), "step": (1, STEP)}


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[sass.Row]]:
    return sass.rows_of(list(TARGETS))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_shipped_is_as_it_should_be(
    target: str, shipped: dict[str, list[sass.Row]]
) -> None:
    made = sass.checks(target, shipped[target])
    wrong = [f"{check.sentence}: {failure}" for check in made for failure in check.failures]
    assert not wrong, "\n".join(wrong)


def seeded() -> dict[str, Any]:
    return {"seed": torch.tensor(1), "dropout_p": 0.25}


def bool_mask(n: int) -> tuple[Any, dict[str, Any]]:
    """Every way to exclude pairs, and the weights; sigmoid, with d not a multiple of 4."""
    inputs = make((2, n, 40, 30, 7), grad=False)
    mask = torch.ones(2, n, 40, dtype=torch.bool)
    options = {"window_right": 0, "return_weights": True, "activation": "sigmoid"}
    bounds = {"key_starts": torch.tensor([1, 0]), "key_lengths": torch.tensor([3, 40])}
    return inputs, {"attn_mask": mask, **bounds, **seeded(), **options}


def float_mask(n: int) -> tuple[Any, dict[str, Any]]:
    """A float mask and its gradient, leading dimensions that broadcast, strides; relu, bfloat16."""
    inputs = (
        sliced(normal(2, 3, n, 30, dtype=BF16, grad=False)),
        transposed(normal(2, 1, 40, 30, dtype=BF16, grad=False)).expand(2, 3, 40, 30),
        sliced(normal(3, 40, 7, dtype=BF16, grad=False)),
        normal(3, 60, dtype=BF16, grad=False)[:, ::2],
    )
    return inputs, {"attn_mask": normal(3, 1, 40, grad=False), "activation": "relu"}


def lse_only(n: int) -> tuple[Any, dict[str, Any]]:
    """A gradient of lse alone; leaky relu in float16."""
    inputs = make((2, n, 40, 33, 7), F16, grad=False)
    return inputs, {"of_context": False, "activation": "leaky_relu"}


@pytest.mark.slow
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("build", [bool_mask, float_mask, lse_only])
@pytest.mark.parametrize("target", TARGETS)
def test_options_compile(
    target: str, build: Callable[[int], tuple[Any, dict[str, Any]]], rows: str
) -> None:
    n, kernels = ROWS[rows]
    inputs, options = build(n)
    with aot.compiling_for(target) as launches:
        aot.attention(*inputs, **options)
    names = {launch.name for launch in launches}
    assert kernels - {"value_kernel"} <= names
    assert ("weights_kernel" in names) == options.get("return_weights", False)
    assert ("value_kernel" in names) == (rows == "tiles" and build is not lse_only)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_packed_sequences_compile(target: str) -> None:
    query, key, value, weight = (x.squeeze(0) for x in make((1, 70, 70, 30, 7), BF16, grad=False))
    ends = cumulative([33, 0, 37])
    packed = {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "window_right": 0, **seeded()}
    with aot.compiling_for(target) as launches:
        aot.attention(query, key, value, weight, **packed)
        aot.tangents(query, key, value, weight, **packed)
    assert {*TILED, "jvp_kernel"} <= {launch.name for launch in launches}


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_sines_compile(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every mask, or packed, for a GPU that has them. Multiply-adds are one instruction."""
    monkeypatch.setattr(configs, "SINE_COSTS", dict.fromkeys(configs.SINE_COSTS, 0.0))
    monkeypatch.setattr(aot, "PROCESSORS", 1)
    inputs, options = bool_mask(133)
    if packed:
        inputs = tuple(x.squeeze(0) for x in make((1, 70, 70, 30, 7), BF16, grad=False))
        ends = cumulative([33, 0, 37])
        options = {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "window_right": 0, **seeded()}
    with aot.compiling_for("sm_90") as launches:
        aot.attention(*inputs, precision="fast", **options)
    names = {launch.name for launch in launches}
    assert {"forward_kernel", "gradient_kernel", "sine_sweep_kernel", "value_kernel"} <= names
    assert "sweep_kernel" not in names
    assert all(launch.compiled.metadata.enable_fp_fusion for launch in launches)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_windows_compile(target: str) -> None:
    """Some of many keys, for which the backward goes through runs of tiles, and for a step."""
    window = {"window_left": 20, "window_right": 7, **seeded()}
    with aot.compiling_for(target) as launches:
        aot.attention(*make((1, 300, 300, 30, 7), grad=False), **window)
        aot.tangents(*make((1, 300, 300, 30, 7), grad=False), **window)
        aot.attention(*make((1, 2, 300, 30, 7), grad=False), **window)
    runs = [each.arguments["run"] for each in launches if each.name == "sweep_kernel"]
    assert runs and None not in runs
    assert {*TILED, *STEP, "jvp_kernel"} <= {launch.name for launch in launches}


@pytest.mark.slow
@pytest.mark.parametrize("build", [bool_mask, float_mask])
@pytest.mark.parametrize("target", TARGETS)
def test_tangents_compile(target: str, build: Callable[[int], tuple[Any, dict[str, Any]]]) -> None:
    inputs, options = build(33)
    with aot.compiling_for(target) as launches:
        aot.tangents(*inputs, **options)
    names = {launch.name for launch in launches}
    assert {"prepare_kernel", "jvp_kernel", "combine_jvp_kernel"} <= names
    assert ("weights_jvp_kernel" in names) == options.get("return_weights", False)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_scores_compile(target: str) -> None:
    query, key, _, weight = make((2, 33, 40, 30, 7), F16, grad=False)
    with aot.compiling_for(target) as launches:
        aot.scores(query, key, weight, "leaky_relu")
    wanted = {"prepare_kernel", "scores_kernel", "sweep_kernel", "scores_jvp_kernel"}
    assert wanted <= {each.name for each in launches}


def graph_options() -> dict[str, Any]:
    return {"edge_bias": normal(2, 90, grad=False, dtype=F16), **seeded()}


EDGES: dict[str, Callable[[], None]] = {
    "odd widths, a bias, dropout": lambda: aot.over_edges(
        *make((2, 30, 40, 7, 5), F16, grad=False), 90, activation="sigmoid", **graph_options()
    ),
    "strides, edge_key, weights": lambda: aot.over_edges(
        sliced(normal(2, 3, 30, 40, dtype=BF16, grad=False)),
        transposed(normal(2, 3, 40, 40, dtype=BF16, grad=False)),
        None,
        normal(2, 3, 80, dtype=BF16, grad=False)[..., ::2],
        90,
        edge_key=normal(2, 3, 90, 40, dtype=BF16, grad=False),
        activation="relu",
        return_weights=True,
    ),
    "one channel, no leading dimension": lambda: aot.over_edges(
        *(x.squeeze(0) for x in make((1, 30, 40, 1, 1), grad=False)[:3]), torch.ones(1), 90
    ),
    "rows longer than a block": lambda: aot.over_edges(
        *make((1, 30, 40, 1100, 1030), BF16, grad=False), 90, activation="leaky_relu"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", EDGES)
@pytest.mark.parametrize("target", TARGETS)
def test_edges_compile(target: str, call: str) -> None:
    with aot.compiling_for(target) as launches:
        EDGES[call]()
    names = {each.name for each in launches}
    assert {f"edge_{name}_kernel" for name in ("forward", "target", "source")} <= names
    assert ("edge_delta_kernel" in names) == ("strides" in call)


def test_a_process_compiles_for_one_target_after_another() -> None:
    """Triton keys compiled kernels by device: each target must have its own."""
    inputs = make((1, 1, 8, 16, 16), grad=False)
    kinds = []
    for target in ("sm_90", "gfx942", "sm_90"):
        with aot.compiling_for(target) as launches:
            aot.attention(*inputs)
        kinds.append({"cubin" in launch.compiled.asm for launch in launches})
    assert kinds == [{True}, {False}, {True}]
