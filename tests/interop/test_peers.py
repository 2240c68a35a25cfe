"""ESPnet and torchaudio: their own modules swapped, in the cases of their copies.

Each is skipped if its library is not installed.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F32, F64
from helpers.interop_peers import installed
from helpers.interop_swap import (
    A,
    D,
    E,
    SwapCase,
    assert_rounded,
    batches,
    check,
    drive,
    keep,
    plain,
    reselect,
    same,
    swapped,
    tensors,
)
from helpers.nn_twins import check_twin
from interop.libraries import SWAPS, espnet
from torch import nn

from attnkernels.interop import load_state_dict_from, replace_attention, restore_attention
from attnkernels.interop.core.live import KEPT
from attnkernels.nn import AdditiveAttention
from benchmarks.suite import peers

MAKE: dict[str, Callable[[], nn.Module]] = {
    "espnet-add": lambda: installed(peers.espnet).AttAdd(E, D, A),
    "espnet-add, han": lambda: installed(peers.espnet).AttAdd(E, D, A, han_mode=True),
    "espnet-loc": lambda: installed(peers.espnet).AttLoc(E, D, A, 3, 2),
    "espnet-cov": lambda: installed(peers.espnet).AttCov(E, D, A),
    "espnet-heads": lambda: installed(peers.espnet).AttMultiHeadAdd(E, D, 2, 4, 3),
    "tacotron2, torchaudio": lambda: installed(peers.torchaudio)._Attention(D, E, A, 3, 5),
}
CASES = pytest.mark.parametrize("name", MAKE)


def case_of(name: str) -> SwapCase:
    return SWAPS[name]._replace(make=MAKE[name])


@pytest.mark.parametrize("name", sorted(MAKE.keys() - {"espnet-cov"}))
@pytest.mark.parametrize("dtype", [F32, F64])
def test_results_and_gradients(name: str, dtype: torch.dtype) -> None:
    case = case_of(name)
    check(case, swapped(case, dtype))
    if case.cached:
        check(case, swapped(case, dtype), reselect(case))


def test_coverage_of_espnet() -> None:
    """Its weights before the first step are in float32, so the copy computes in float64."""
    case = case_of("espnet-cov")
    module = swapped(case)
    shared = ("mlp_enc", "mlp_dec", "wvec", "gvec")

    def formula(module: Any, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        own = plain(module)
        if inputs[0].dtype is F64:
            own = espnet.AttCov(E, D, A)
            vars(own)["_modules"] = {name: getattr(module, name) for name in shared}
        return tensors(drive(case)(own, *inputs))

    check_twin(module, formula, batches(case, F32), call=lambda m, *x: tensors(drive(case)(m, *x)))


@CASES
def test_attributes_and_copies(name: str) -> None:
    case = case_of(name)
    module, inputs = swapped(case), batches(case, F32, grad=False).values()
    original = plain(module)
    with torch.no_grad():
        same(drive(case)(module, *inputs), drive(case)(original, *inputs))
        assert set(vars(module)) - {KEPT} == set(vars(original))
        same(*([getattr(x, each) for each in case.cached] for x in (module, original)))
        copies = [copy.deepcopy(module)]
        if name.startswith("espnet"):  # pickle imports all of torchaudio
            copies.append(pickle.loads(pickle.dumps(module)))
        for twin in copies:
            same(drive(case)(twin, *inputs), drive(case)(module, *inputs))
    restore_attention(module)
    assert type(module) is type(original)


@CASES
def test_autocast(name: str) -> None:
    case = case_of(name)
    with torch.autocast("cpu", dtype=BF16):
        module = swapped(case)
        inputs = batches(case, F32, grad=False).values()
        found, wanted = (tensors(drive(case)(x, *inputs)) for x in (module, plain(module)))
    exact = tensors(drive(case)(plain(module), *inputs))  # in float32: AttCov has no float64
    assert_rounded(found, wanted, exact)


@CASES
def test_a_sequence_of_length_0(name: str) -> None:
    case = case_of(name)
    module, inputs = swapped(case), batches(case, F32)
    memory, states = inputs["memory"], inputs["states"]
    found = tensors(case.run(module, memory, states, (memory.shape[1], 0, 4), keep))
    assert all(x.isfinite().all() for x in found)
    sum(x.square().sum() for x in found).backward()
    grads = [x.grad for x in (memory, states, *module.parameters()) if x.grad is not None]
    assert grads and all(x.isfinite().all() for x in grads)


def test_the_tables_names_are_those_of_espnet() -> None:
    module = MAKE["espnet-add"]()
    ours = AdditiveAttention(D, E, A, scale=2.0)
    load_state_dict_from(ours, module.state_dict(), convention="espnet-add")
    memory, query = torch.randn(2, 6, E), torch.randn(2, D)
    _, weights = ours(query, memory, key_lengths=torch.tensor([6, 2]), return_weights=True)
    torch.testing.assert_close(weights, module(memory, [6, 2], query, None)[1])


def test_a_whole_tacotron_2() -> None:
    """The weights of every step, and the gradient of every parameter."""
    model: Any = installed(peers.torchaudio).Tacotron2(
        n_symbol=9,
        symbol_embedding_dim=8,
        n_mels=4,
        encoder_embedding_dim=8,
        encoder_n_convolution=1,
        attention_rnn_dim=16,
        attention_hidden_dim=8,
        attention_location_n_filter=3,
        attention_location_kernel_size=5,
        decoder_rnn_dim=16,
        prenet_dim=8,
        postnet_n_convolution=2,
        postnet_embedding_dim=8,
    )
    model.double()
    tokens, lengths = torch.randint(9, (2, 7)), torch.tensor([7, 4], dtype=torch.int32)
    spectrogram, frames = torch.randn(2, 4, 5).double(), torch.tensor([5, 3], dtype=torch.int32)
    results: list[Any] = []
    for swap in (False, True):
        if swap:
            assert list(replace_attention(model).swapped) == ["decoder.attention_layer"]
        torch.manual_seed(0)  # dropout of other layers
        model.zero_grad()
        outputs = model(tokens, lengths, spectrogram, frames)
        sum(x.square().sum() for x in outputs).backward()
        results.append((outputs, {n: x.grad for n, x in model.named_parameters()}))
    torch.testing.assert_close(results[1], results[0])
