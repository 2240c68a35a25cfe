"""The modules of interop_twins.py as their libraries call them: several steps of a decoder.

A `run` takes a module, a memory (B, M, E), decoder states (STEPS, B, D) and the lengths of the
memory, and gives what each call returned. Between steps it hands the module, and what the library
carries from step to step, to `reorder`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attnkernels.interop import replace_attention
from attnkernels.interop.core.live import KEPT
from attnkernels.testing import assert_within_budget
from helpers.interop_twins import Espnet, Fairseq, SpeechBrain, padding
from helpers.interop_twins_text import (
    AllenNlp,
    Captioning,
    FairseqMlp,
    Gnmt,
    JoeyNmt,
    Nvidia,
    OpenNmt,
    Torchaudio,
)
from helpers.nn_twins import check_twin

E, D, A = 6, 5, 9  # features of the memory, of the decoder's state and of the sum that scores
LENGTHS, MORE_LENGTHS, STEPS = (7, 1, 4), (3, 5), 4

Reorder = Callable[..., Any]  # (module, carried) -> carried


def keep(module: nn.Module, carried: Any = None) -> Any:
    return carried


def speechbrain(
    module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder
) -> list[Any]:
    module.reset()
    found, lengths = [], torch.tensor(lengths, dtype=memory.dtype)
    for state in states:
        found.append(module(memory, lengths, state))
        reorder(module)
    return found


def espnet(
    module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder
) -> list[Any]:
    module.reset()
    found, weights = [], None
    for i, state in enumerate((None, *states)):  # there is none yet at the first step
        frames = memory * (1 + i) if module.han_mode else memory  # of another encoder each time
        context, weights = module(frames, list(lengths), state, weights)
        found.append((context, weights))
        weights = reorder(module, weights)
    return found


def fairseq(
    module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder
) -> list[Any]:
    memory, padded = memory.transpose(0, 1), padding(lengths, memory.shape[1]).t()
    return [module(state, memory, x) for state in states for x in (padded, None)]


def fairseq_location(
    module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder
) -> list[Any]:
    module.clear_cache()
    found, padded = [], padding(lengths, memory.shape[1])
    seen = memory.new_zeros(memory.shape[0], 2, memory.shape[1])
    for state in (None, *states):
        found.append(module(memory, padded, state, seen))
        weights = found[-1][1]
        seen = reorder(module, torch.stack([weights, seen[:, 1] + weights], 1))
    return found


def opennmt(
    module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder
) -> list[Any]:
    lengths = torch.tensor(lengths)
    found = [module(state, memory, src_len=x) for state in states for x in (lengths, None)]
    return [*found, module(states.transpose(0, 1), memory, lengths)]


def gnmt(module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder) -> list[Any]:
    if not module.batch_first:
        memory = memory.transpose(0, 1)
    module.mask = None
    found = [module(states[0], memory)]
    module.set_mask(torch.tensor(lengths), memory)
    found += [module(state, memory) for state in states]
    return [*found, module(states.transpose(0, 1) if module.batch_first else states, memory)]


def joeynmt(
    module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder
) -> list[Any]:
    module.compute_proj_keys(memory)
    found, mask = [], ~padding(lengths, memory.shape[1]).unsqueeze(1)
    for state in states:
        found.append(module(query=state.unsqueeze(1), mask=mask, values=memory))
        reorder(module)
    return found


def allennlp(
    module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder
) -> list[Any]:
    mask = ~padding(lengths, memory.shape[1])
    return [module(state, memory, x) for state in states for x in (mask, None)]


def captioning(
    module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder
) -> list[Any]:
    return [module(memory, state) for state in states]


def tacotron2(
    module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder
) -> list[Any]:
    found, processed = [], module.memory_layer(memory)
    padded = padding(lengths, memory.shape[1])
    weights = total = memory.new_zeros(memory.shape[:2])
    for i, state in enumerate(states):
        both = torch.stack([weights, total], 1)
        found.append(module(state, memory, processed, both, padded if i else None))
        weights = found[-1][1]
        total = total + weights
    return found


class Case(NamedTuple):
    """A module, how it is called, and the names of what it caches, which a beam reorders."""

    make: Callable[[], nn.Module]
    run: Callable[..., list[Any]]
    source: str  # a part of how a report names it
    cached: tuple[str, ...] = ()
    sizes: tuple[int, int] = (E, D)


ESPNET = ("pre_compute_enc_h", "enc_h", "mask")
CASES = {
    "speechbrain": Case(
        lambda: SpeechBrain.ContentBasedAttention(E, D, A, 4, scaling=1.5),
        speechbrain,
        "SpeechBrain, Content",
        ("precomputed_enc_h", "mask"),
    ),
    "speechbrain-location": Case(
        lambda: SpeechBrain.LocationAwareAttention(E, D, A, 4, 3, 2),
        speechbrain,
        "SpeechBrain, Location",
        ("precomputed_enc_h", "mask", "prev_attn"),
    ),
    "espnet-add": Case(lambda: Espnet.AttAdd(E, D, A), espnet, "AttAdd", ESPNET),
    "espnet-add, han": Case(lambda: Espnet.AttAdd(E, D, A, han_mode=True), espnet, "AttAdd"),
    "espnet-loc": Case(lambda: Espnet.AttLoc(E, D, A, 3, 2), espnet, "AttLoc", ESPNET),
    "espnet-cov": Case(lambda: Espnet.AttCov(E, D, A), espnet, "AttCov", ESPNET),
    "espnet-heads": Case(
        lambda: Espnet.AttMultiHeadAdd(E, D, 2, 4, 3),
        espnet,
        "AttMultiHeadAdd",
        ("pre_compute_k", "pre_compute_v", "enc_h", "mask"),
    ),
    "espnet-heads, han": Case(
        lambda: Espnet.AttMultiHeadAdd(E, D, 2, 4, 3, han_mode=True), espnet, "AttMultiHeadAdd"
    ),
    "fairseq": Case(lambda: FairseqMlp.MLPAttention(D, E, A), fairseq, "MLPAttention"),
    "fairseq-location": Case(
        lambda: Fairseq.LocationAttention(A, E, D, 2, 3, 2),
        fairseq_location,
        "fairseq, LocationAttention",
        ("proj_enc_out",),
    ),
    "opennmt": Case(lambda: OpenNmt.GlobalAttention(E), opennmt, "GlobalAttention", sizes=(E, E)),
    "gnmt": Case(lambda: Gnmt.BahdanauAttention(D, E, A), gnmt, "GNMT"),
    "gnmt, normalised, batch first": Case(
        lambda: Gnmt.BahdanauAttention(D, E, A, normalize=True, batch_first=True), gnmt, "GNMT"
    ),
    "joeynmt": Case(lambda: JoeyNmt.BahdanauAttention(A, E, D), joeynmt, "JoeyNMT", ("proj_keys",)),
    "allennlp": Case(lambda: AllenNlp.AdditiveAttention(D, E), allennlp, "AllenNLP"),
    "allennlp, scores": Case(
        lambda: AllenNlp.AdditiveAttention(D, E, normalize=False), allennlp, "AllenNLP"
    ),
    "captioning": Case(lambda: Captioning.Attention(E, D, A), captioning, "captioning"),
    "tacotron2, NVIDIA": Case(lambda: Nvidia.Attention(D, E, A, 3, 5), tacotron2, "Tacotron 2"),
    "tacotron2, torchaudio": Case(
        lambda: Torchaudio._Attention(D, E, A, 3, 5), tacotron2, "Tacotron 2"
    ),
}


def batches(case: Case, dtype: torch.dtype, *, grad: bool = True) -> dict[str, Tensor]:
    """The leaves of two batches, the second of another size."""
    e, d = case.sizes
    sizes = {
        "memory": (len(LENGTHS), max(LENGTHS), e),
        "states": (STEPS, len(LENGTHS), d),
        "second memory": (len(MORE_LENGTHS), max(MORE_LENGTHS), e),
        "second states": (STEPS - 1, len(MORE_LENGTHS), d),
    }
    return {
        name: torch.randn(size, dtype=torch.float64).to(dtype).requires_grad_(grad)
        for name, size in sizes.items()
    }


def drive(case: Case, reorder: Reorder = keep) -> Callable[..., list[Any]]:
    """A function of a module and `batches` that runs both, one after the other."""

    def call(module: nn.Module, *inputs: Tensor) -> list[Any]:
        memory, states, more_memory, more_states = inputs
        return [
            *case.run(module, memory, states, LENGTHS, reorder),
            *case.run(module, more_memory, more_states, MORE_LENGTHS, reorder),
        ]

    return call


def tensors(found: Any) -> tuple[Tensor, ...]:
    """All tensors in tuples and lists, in order."""
    return (found,) if isinstance(found, Tensor) else tuple(x for y in found for x in tensors(y))


def swapped(case: Case, dtype: torch.dtype = torch.float32) -> Any:
    """A new module of the case, swapped."""
    module = case.make().to(dtype)
    report = replace_attention(module)
    assert list(report.swapped) == [""] and not report.left, str(report)
    assert case.source in report.swapped[""]
    return module


def plain(module: nn.Module) -> Any:
    """The module of the library with the parameters of the one that is swapped."""
    _, own = type(module).__bases__
    twin: Any = object.__new__(own)
    twin.__dict__.update({name: x for name, x in vars(module).items() if name != KEPT})
    return twin


def check(case: Case, module: nn.Module, reorder: Any = None, **options: Any) -> None:
    """Results of all steps and gradients of everything are within the budget of the library's."""
    run = drive(case, *[reorder] * (reorder is not None))
    check_twin(
        module,
        lambda module, *inputs: tensors(run(plain(module), *inputs)),
        batches(case, next(module.parameters()).dtype),
        call=lambda module, *inputs: tensors(run(module, *inputs)),
        **options,
    )


def same(found: Any, wanted: Any) -> None:
    """The same tree of tuples, lists and tensors, but for roundings."""
    assert type(found) is type(wanted)
    if isinstance(wanted, (tuple, list)):
        assert len(found) == len(wanted)
        for x, y in zip(found, wanted, strict=True):
            same(x, y)
    elif isinstance(wanted, Tensor) and wanted.is_floating_point():
        assert found.requires_grad == wanted.requires_grad
        assert_within_budget(found, wanted, wanted, magnitude=1 + wanted.abs().max().item())
    elif isinstance(wanted, Tensor):
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    else:
        assert found == wanted


def select(x: Any) -> Any:
    """The entries of a batch as a beam might take them, some twice."""
    if isinstance(x, (list, tuple)):
        return type(x)(map(select, x))
    return x if x is None else x.index_select(0, torch.tensor([2, 0, 0])[-x.shape[0] :])
