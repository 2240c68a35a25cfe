"""Every module trained in two processes: by DDP, by FSDP2, and from a distributed checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from attnkernels.models import (
    ConvEncoder,
    PointerNetwork,
    RecurrentAttentionModel,
    RNNsearch,
    Seq2Seq,
    ShowAttendTell,
)
from attnkernels.nn import (
    AdditiveAttention,
    AttentionPooling,
    AttentionRNN,
    CoverageAttention,
    HardAttention,
    LocationSensitiveAttention,
    MonotonicAttention,
    PointerHead,
    beam_search,
)

from . import ranks

B, N, M, D, RATE, STEPS = 4, 3, 5, 6, 0.05, 3
LENGTHS = torch.tensor([5, 2, 3, 4])
SIZES = (D, D, 8)
TOKENS = {"embedding_dim": D, "hidden_dim": D, "maxout_dim": 4}


class Case(NamedTuple):
    """A module, its inputs for the whole batch, and the parts that are sharded by themselves."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    apart: tuple[str, ...] = ()
    search: str = ""


def _pairs() -> dict[str, Tensor]:
    return {"query": torch.randn(B, N, D), "key": torch.randn(B, M, D), "key_lengths": LENGTHS}


def _rows() -> dict[str, Tensor]:
    return {"key": torch.randn(B, M, D), "key_lengths": LENGTHS}


def _decoded() -> dict[str, Tensor]:
    memory = {"memory": torch.randn(B, M, D), "key_lengths": LENGTHS}
    return {"inputs": torch.randn(B, N, D), **memory}


def _translated() -> dict[str, Tensor]:
    source, target = torch.randint(1, 9, (B, M)), torch.randint(3, 9, (B, N))
    return {"source": source, "source_lengths": LENGTHS, "target": target}


def _pointed() -> dict[str, Tensor]:
    target = torch.tensor([[1, 2, 0], [2, 1, 0], [3, 1, 2], [4, 3, 1]])
    return {"source": torch.randn(B, M, 2), "source_lengths": LENGTHS, "target": target}


def _pictures() -> dict[str, Tensor]:
    return {"images": torch.randn(B, 1, 16, 16)}


def _captioned() -> dict[str, Tensor]:
    return _pictures() | {"tokens": torch.randint(1, 7, (B, N))}


def _rnn(**options: Any) -> AttentionRNN:
    return AttentionRNN(nn.GRUCell(2 * D, D), AdditiveAttention(*SIZES, **options))


class Embedded(nn.Module):
    """A decoder whose inputs are learned and whose memory is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(9, D), _rnn()

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        return self.rnn(self.embedding(tokens), memory)[0]


def _words() -> dict[str, Tensor]:
    return {"tokens": torch.randint(0, 9, (B, N)), "memory": torch.randn(B, M, D)}


def _captions(attention: Any) -> ShowAttendTell:
    sizes = {"annotation_dim": D, "embed_dim": D, "hidden_dim": D, "attention_dim": 4}
    return ShowAttendTell(ConvEncoder(1, D), 7, begin=1, end=2, attention=attention, **sizes)


CASES = {
    "additive": Case(lambda: AdditiveAttention(*SIZES, num_heads=2, normalize=True), _pairs),
    "pooling": Case(lambda: AttentionPooling(D, 8, num_heads=2), _rows),
    "coverage": Case(lambda: CoverageAttention(*SIZES, normalize=True), _pairs),
    "location": Case(
        lambda: LocationSensitiveAttention(*SIZES, normalize=True, channels=2, kernel_size=3),
        _pairs,
    ),
    "many channels": Case(
        lambda: LocationSensitiveAttention(*SIZES, channels=4, kernel_size=3), _pairs
    ),
    "moving": Case(lambda: MonotonicAttention(*SIZES, evaluation="expected"), _pairs),
    "hard": Case(lambda: HardAttention(*SIZES, evaluation="expected", normalize=True), _pairs),
    "pointer": Case(lambda: PointerHead(*SIZES, normalize=True), _pairs),
    "rnn": Case(lambda: _rnn(normalize=True), _decoded, ("attention", "cell")),
    "rnn with heads": Case(lambda: _rnn(num_heads=2), _decoded, ("attention",)),
    "rnn, not deferred": Case(
        lambda: AttentionRNN(nn.GRUCell(12, 6), AdditiveAttention(*SIZES), defer_gradients=False),
        _decoded,
        ("attention",),
    ),
    "rnn of a frozen memory": Case(lambda: Embedded(), _words, ("rnn",)),
    "rnnsearch": Case(
        lambda: RNNsearch(9, 9, encoder_dim=3, align_dim=4, **TOKENS),
        _translated,
        ("decoder.attention", "decoder", "encoder"),
        "beam_search",
    ),
    "seq2seq": Case(
        lambda: Seq2Seq(9, 9, **TOKENS), _translated, ("encoder", "readout"), "greedy_search"
    ),
    "pointers": Case(
        lambda: PointerNetwork(2, hidden_dim=D), _pointed, ("head", "encoder"), "beam_search"
    ),
    "glimpses": Case(
        lambda: RecurrentAttentionModel(3, size=4, glimpses=3, features=D, hidden=D), _pictures
    ),
    "encoder": Case(lambda: ConvEncoder(1, D), _pictures),
    "captions": Case(
        lambda: _captions("soft"),
        _captioned,
        ("encoder", "decoder.attention", "decoder"),
        "caption",
    ),
    "hard captions": Case(lambda: _captions("hard"), _captioned, ("encoder", "decoder"), "caption"),
}


def made(name: str, seed: int = 0) -> nn.Module:
    """Return the module of a case in eval mode: batch normalisation and draws depend on ranks."""
    torch.manual_seed(seed)
    return CASES[name].make().eval()


def given(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(1)
    found = CASES[name].inputs()
    return {each: x.to(dtype) if x.is_floating_point() else x for each, x in found.items()}


def train(module: nn.Module, inputs: dict[str, Tensor]) -> dict[str, float]:
    """Take the steps of SGD; return the largest sum of gradients' sizes, by parameter."""
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    sizes: dict[str, float] = dict.fromkeys(dict(module.named_parameters()), 0.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(module(**inputs)).backward()
        for name, parameter in module.named_parameters():
            if type(parameter.grad) is Tensor:
                sizes[name] += parameter.grad.abs().max().item()
        optimizer.step()
    return sizes


def loss(results: Any) -> Tensor:
    """Return a loss of all finite results, a mean over the batch."""
    if isinstance(results, (tuple, list)):
        return sum((loss(x) for x in results if x is not None), torch.zeros(()))
    if not results.is_floating_point():
        return torch.zeros(())
    return torch.where(results.isfinite(), results, 0.0).square().sum() / len(results)


def searched(name: str, module: nn.Module) -> Tensor:
    """Return the tokens that a search with the module finds."""
    inputs = given(name)
    if isinstance(module, AttentionRNN):
        maps = {"embed": _embed, "readout": lambda output, context: output + context}
        lengths = inputs["key_lengths"]
        tokens = {"start": 0, "eos": 1, "max_length": 4}
        return beam_search(module, inputs["memory"], lengths, **maps, **tokens).tokens
    method = CASES[name].search
    register_fsdp_forward_method(module, method)
    target = [each for each in inputs if each not in ("target", "tokens")]
    return getattr(module, method)(*(inputs[each] for each in target), max_length=4).tokens


def _embed(tokens: Tensor) -> Tensor:
    return torch.eye(D)[tokens]


def shard(name: str, module: nn.Module, apart: bool) -> nn.Module:
    for part in CASES[name].apart if apart else ():
        fully_shard(module.get_submodule(part))
    return fully_shard(module)


def whole(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters, gathered if they are sharded."""
    full = {name: x.detach() for name, x in module.named_parameters()}
    return {
        name: (x.full_tensor() if hasattr(x, "full_tensor") else x).clone()
        for name, x in full.items()
    }


def _ways(name: str, rank: int, folder: Path) -> dict[str, Any]:
    """Return what each way of training gave."""
    inputs = {each: x.chunk(ranks.RANKS)[rank] for each, x in given(name).items()}
    found: dict[str, Any] = {}
    wrapped = DistributedDataParallel(made(name))
    train(wrapped, inputs)
    found["DDP"] = whole(wrapped.module)
    for apart in (False, True) if CASES[name].apart else (False,):
        module = shard(name, made(name), apart)
        if CASES[name].search or isinstance(module, AttentionRNN):
            found["search, apart" if apart else "search"] = searched(name, module)
            module.reshard()  # the outermost module stays whole, for a backward
        train(module, inputs)
        found["FSDP2, apart" if apart else "FSDP2"] = whole(module)
    path = folder / name.replace(" ", "-")
    dcp.save({"model": get_model_state_dict(module)}, checkpoint_id=path)
    other = shard(name, made(name, seed=2), False)
    state = {"model": get_model_state_dict(other)}
    dcp.load(state, checkpoint_id=path)
    set_model_state_dict(other, state["model"])
    found["checkpoint"] = all(torch.equal(x, whole(other)[n]) for n, x in whole(module).items())
    return found


def worker(rank: int, folder: Path) -> None:
    """Run all cases as one of the processes."""
    ranks.run(rank, folder, CASES, lambda name: _ways(name, rank, folder))
