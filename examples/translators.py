"""The models of attention's founding story, and how the examples train them.

fixed vector   the decoder sees the encoder's last state          Cho et al., 1406.1078
reversed       the same, with the source read from its end        Sutskever et al., 1409.3215
doubled        the same, with the source read twice               Zaremba, Sutskever, 1410.4615
RNNsearch      the decoder attends to the state of every token    Bahdanau et al., 1409.0473
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attnkernels.models.rnnsearch import RNNsearch
from attnkernels.models.seq2seq import Seq2Seq
from examples.batches import BEGIN, END, PADDING, Batches
from examples.training import descend, train

MODELS: dict[str, dict[str, bool] | None] = {
    "fixed vector": {},
    "reversed": {"reverse_source": True},
    "doubled": {"repeat_source": True},
    "RNNsearch": None,
}


class Size(Protocol):
    """The settings of the models and of their training.

    Attributes:
        rate: the maximum; it rises over a tenth of the steps, then decays as a cosine.
        embedding_dim, dropout, smoothing: of every model, and of its loss.
        hidden_dim: of the decoder and of the unidirectional encoder.
        encoder_dim: per direction of the bidirectional encoder, for as many parameters.
    """

    @property
    def rate(self) -> float: ...
    @property
    def embedding_dim(self) -> int: ...
    @property
    def hidden_dim(self) -> int: ...
    @property
    def encoder_dim(self) -> int: ...
    @property
    def dropout(self) -> float: ...
    @property
    def smoothing(self) -> float: ...


def make(name: str, tokens: tuple[int, int], size: Size, **attention: Any) -> Seq2Seq | RNNsearch:
    """Make one of the models, all of which have about as many parameters.

    `attention` are options of `RNNsearch`, such as its precision.
    """
    half = size.hidden_dim // 2
    sizes: dict[str, Any] = {
        "embedding_dim": size.embedding_dim,
        "hidden_dim": size.hidden_dim,
        "maxout_dim": half,
        "dropout": size.dropout,
        "begin": BEGIN,
        "end": END,
    }
    order = MODELS[name]
    if order is None:
        sizes |= {"encoder_dim": size.encoder_dim, "align_dim": half}
        return RNNsearch(*tokens, **sizes, **attention)
    return Seq2Seq(*tokens, **sizes, **order)


def fit(
    label: str,
    model: Any,
    batches: Batches,
    steps: int,
    size: Size,
    *,
    narrow: bool = False,
    **options: Any,
) -> float:
    """Train a model with Adam and a warm-up and cosine schedule; return the seconds.

    Args:
        label, steps, options: as in `examples.training.train`.
        narrow: products in bfloat16 where `multiplies_bfloat16`. Parameters and loss are float32.
    """
    optimizer = torch.optim.Adam(learnt(model), size.rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, size.rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    parts = {"model": model.train(), "optimizer": optimizer, "schedule": schedule}
    loss_of = nn.CrossEntropyLoss(ignore_index=PADDING, label_smoothing=size.smoothing)
    kind = torch.device(batches.device).type
    narrow = narrow and multiplies_bfloat16(kind)

    def step(number: int) -> float:
        source, lengths, target = batches(number)
        with torch.autocast(kind, torch.bfloat16, enabled=narrow):
            logits = model(source, lengths, target)
        loss = loss_of(logits.float().flatten(0, 1), target.flatten())
        return descend(loss, **parts, largest=1.0)

    return train(label, step, steps, parts, **options)


def multiplies_bfloat16(kind: str) -> bool:
    """Return True for a GPU, and for a processor with instructions for products in bfloat16.

    They halve the time of a training; without them, bfloat16 takes ten times as long.
    """
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return kind != "cpu" or any(known.get(x) for x in ("avx512_bf16", "amx_bf16", "bf16"))


def learnt(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters."""
    return [x for x in model.parameters() if x.requires_grad]


def forward_share(weights: Iterable[Tensor]) -> float:
    """Return how often the most attended token does not move left from one step to the next.

    The weights are (steps, tokens) of each output.
    """
    moves = [each.argmax(-1).diff() for each in weights if len(each)]
    return (torch.cat(moves) >= 0).double().mean().item()
