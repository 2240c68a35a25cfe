"""Translate spelling to pronunciation with a fixed vector and with attention, on 126,000 words.

Four models of similar size see the same batches in the same order at the same learning rates:

    fixed vector   the decoder sees the encoder's last state          Cho et al., 1406.1078
    reversed       the same, with the word read from its end          Sutskever et al., 1409.3215
    doubled        the same, with the word read twice                 Zaremba, Sutskever, 1410.4615
    RNNsearch      the decoder attends to the state of every letter   Bahdanau et al., 1409.0473

    python -m examples.g2p

On a CPU with two or more threads, two of them train at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnkernels.extras import needs
from attnkernels.functional.checks import PRECISIONS
from attnkernels.models.rnnsearch import RNNsearch
from attnkernels.models.seq2seq import Seq2Seq
from examples import g2p_data as data
from examples import translators
from examples.options import parser
from examples.results import write
from examples.side_by_side import side_by_side
from examples.training import Watch, interruptible
from examples.translators import MODELS, forward_share, learnt, make

with needs("examples"):
    from matplotlib.figure import Figure
    from rapidfuzz.distance import Levenshtein

    from attnkernels.viz import plot_alignment, plot_embeddings

BEAMS = 5
MAX_LENGTH = 40  # phonemes, including the end; no word of the dictionary has that many
LENGTHS = {"all": (1, 99), "1-5": (1, 5), "6-9": (6, 9), "10+": (10, 99)}  # letters
ENDINGS = "enrsty"  # of the words on the map: the most common last letters


@dataclass(frozen=True)
class Size:
    """The settings: training data, sizes of the models, and duration of the training."""

    train: int | None = None  # words; None means all that are not held out
    held_out: int = 3000
    validation: int = 1000
    batch: int = 128
    epochs: int = 12
    rate: float = 3e-3  # the maximum; it rises over a tenth of the steps, then decays as a cosine
    embedding_dim: int = 64
    hidden_dim: int = 192  # of the decoder and of the unidirectional encoder
    encoder_dim: int = 112  # per direction of the bidirectional encoder, for as many parameters
    dropout: float = 0.1
    smoothing: float = 0.0
    pictures: int = 8


FULL = Size(
    epochs=30,
    rate=1e-3,
    embedding_dim=128,
    hidden_dim=512,
    encoder_dim=304,
    dropout=0.3,
    smoothing=0.1,
)
TINY = Size(
    train=600,
    held_out=80,
    validation=20,
    batch=32,
    epochs=1,
    embedding_dim=8,
    hidden_dim=16,
    encoder_dim=10,
    pictures=2,
)


@interruptible
def main(arguments: list[str] | None = None) -> int:
    """Train the four models, decode the held-out words, and write the results."""
    options = parser("g2p", "Spelling to pronunciation: a fixed vector against attention.")
    options.add_argument("--epochs", type=int, help="of every model (default: that of the size)")
    options.add_argument(
        "--float32",
        action="store_true",
        help="train without autocast to bfloat16, which a processor needs instructions for",
    )
    options.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="exact",
        help="of RNNsearch's attention; on a CPU fast takes --backend reference",
    )
    options.add_argument("--backend", help="of RNNsearch's attention (default: the fastest)")
    given = options.parse_args(arguments)
    asked = dict(vars(given))
    size = FULL if given.full else TINY if given.tiny else Size()
    epochs = size.epochs if given.epochs is None else given.epochs
    if epochs < 1:
        options.error(f"--epochs is {epochs}; it must be at least 1")
    words = data.load(
        given.seed, held_out=size.held_out, validation=size.validation, train=size.train
    )
    batches = data.Batches(words.train, size.batch, given.seed, given.device)
    if not given.resume:
        for name in MODELS:  # so that a later --resume does not mistake them for this run's
            _checkpoint(given, name).unlink(missing_ok=True)

    if given.device == "cpu" and torch.get_num_threads() > 1 and not given.tiny:
        jobs = {name: partial(job, name, size, epochs, given) for name in reversed(MODELS)}
        side_by_side(jobs, processes=2)
        given.resume = True  # from what they left

    models: dict[str, Any] = {}
    rows, record = [], {}
    for name in MODELS:
        models[name], seconds = fit(name, batches, epochs * batches.number, size, given)
        model = models[name]
        found = {
            "parameters": sum(x.numel() for x in learnt(model)),
            "seconds": seconds,
            "validation": errors(model.eval(), words.validation, 1),
            "greedy": errors(model, words.test, 1),
            f"{BEAMS} beams": errors(model, words.test, BEAMS),
        }
        record[name] = found
        rows += [_row(name, search, found) for search in ("greedy", f"{BEAMS} beams")]

    shown = [word for word in words.test if word.isalpha() and 8 <= len(word) <= 14]
    figures = alignments(models["RNNsearch"], shown[: size.pictures])
    figures |= maps(models["fixed vector"], list(words.test), given.seed)
    kinds = [f"{kind} {span}" for kind in ("phonemes", "words") for span in LENGTHS]
    write(
        given.out,
        options=asked,
        columns=["model", "search", "parameters", "seconds", *(f"{x}, %" for x in kinds)],
        keys=2,
        rows=rows,
        figures=figures,
        record={
            "size": asdict(size) | {"epochs": epochs},
            "steps": epochs * batches.number,
            "words": {name: len(part) for name, part in vars(words).items()},
            "threads": torch.get_num_threads(),
            "models": record,
            "forward_share": forward_share(
                weights for _, weights in aligned(models["RNNsearch"], list(words.test)).values()
            ),
        },
    )
    return 0


def job(name: str, size: Size, epochs: int, given: Any, watch: Watch) -> None:
    """Run `fit` in its own process."""
    words = data.load(
        given.seed, held_out=size.held_out, validation=size.validation, train=size.train
    )
    batches = data.Batches(words.train, size.batch, given.seed, given.device)
    fit(name, batches, epochs * batches.number, size, given, watch)


def fit(
    name: str,
    batches: data.Batches,
    steps: int,
    size: Size,
    given: Any,
    watch: Watch | None = None,
) -> tuple[Any, float]:
    """Train a model, with products in bfloat16 by default; return it and the seconds."""
    torch.manual_seed(given.seed)
    tokens = len(data.LETTERS), len(data.PHONEMES)
    attention = {"precision": given.precision, "backend": given.backend}
    model = make(name, tokens, size, **attention).to(given.device)
    seconds = translators.fit(
        name,
        model,
        batches,
        steps,
        size,
        narrow=not given.float32,
        checkpoint=_checkpoint(given, name),
        seed=given.seed,
        resume=given.resume,
        watch=watch,
    )
    return model, seconds


def errors(model: Any, words: dict[str, data.Pronunciations], beams: int) -> dict[str, Any]:
    """Return the phoneme and word error rates in percent, by the number of letters.

    Each word is compared with the nearest of its pronunciations, in edits per phoneme; edits and
    phonemes are then summed over the words.
    """
    counts = {span: [0, 0, 0, 0] for span in LENGTHS}  # edits, phonemes, wrong words, words
    for word, found in decoded(model, list(words), beams).items():
        pairs = [(Levenshtein.distance(found, each), len(each)) for each in words[word]]
        edits, phonemes = min(pairs, key=lambda pair: pair[0] / pair[1])
        for span, (low, high) in LENGTHS.items():
            if low <= len(word) <= high:
                each = edits, phonemes, int(edits > 0), 1
                counts[span] = [x + y for x, y in zip(counts[span], each, strict=True)]
    return {
        "phonemes": {span: 100 * x[0] / max(x[1], 1) for span, x in counts.items()},
        "words": {span: 100 * x[2] / max(x[3], 1) for span, x in counts.items()},
    }


def decoded(model: Any, words: list[str], beams: int) -> dict[str, tuple[str, ...]]:
    """Return a model's pronunciations of words."""
    pronunciations: dict[str, tuple[str, ...]] = {}
    for some, source, lengths in chunks(model, words):
        if beams == 1:
            found = model.greedy_search(source, lengths, max_length=MAX_LENGTH)
        else:
            found = model.beam_search(source, lengths, max_length=MAX_LENGTH, beams=beams)
        best = found.tokens[:, 0].tolist()
        pronunciations |= {word: data.spoken(x) for word, x in zip(some, best, strict=True)}
    return pronunciations


def chunks(model: nn.Module, words: list[str]) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    """Yield words and their tokens, a few hundred of similar lengths at a time."""
    device = next(model.parameters()).device
    words = sorted(words, key=len)
    for at in range(0, len(words), 250):
        source, lengths = data.letters(words[at : at + 250])
        yield words[at : at + 250], source.to(device), lengths.to(device)


@torch.no_grad()
def aligned(model: RNNsearch, words: list[str]) -> dict[str, tuple[tuple[str, ...], Tensor]]:
    """Return the phonemes of each word and their weights (phonemes, letters)."""
    found = {}
    for some, source, lengths in chunks(model, words):
        tokens = model.greedy_search(source, lengths, max_length=MAX_LENGTH).tokens[:, 0]
        _, weights = model(source, lengths, tokens, return_weights=True)
        for word, row, each in zip(some, tokens.tolist(), weights.cpu(), strict=True):
            phones = data.spoken(row)
            found[word] = phones, each[: len(phones), : len(word)]
    return found


def alignments(model: RNNsearch, words: list[str]) -> dict[str, Figure]:
    """Draw one figure per word: the letters that each phoneme attended to."""
    return {
        f"alignment_{word}": plot_alignment(weights, phones, list(word), title=word)
        for word, (phones, weights) in aligned(model, words).items()
        if phones
    }


@torch.no_grad()
def maps(model: Seq2Seq, words: list[str], seed: int) -> dict[str, Figure]:
    """Draw the vectors of a hundred held-out words of 4 to 8 letters, coloured by the last one."""
    chosen = [word for word in words if word[-1] in ENDINGS and 4 <= len(word) <= 8][:100]
    source, lengths = data.letters(chosen)
    device = next(model.parameters()).device
    vectors = model.sentence_embeddings(source.to(device), lengths.to(device)).cpu()
    groups = [f"-{word[-1]}" for word in chosen]
    return {
        f"map_{method}": plot_embeddings(vectors, chosen, method=method, groups=groups, seed=seed)
        for method in ("pca", "tsne")
    }


def _checkpoint(given: Any, name: str) -> Any:
    return given.out / f"{name.replace(' ', '_')}.pt"


def _row(name: str, search: str, found: dict[str, Any]) -> list[str]:
    percent = [x for kind in ("phonemes", "words") for x in found[search][kind].values()]
    head = [name, search, f"{found['parameters']:,}", f"{found['seconds']:.0f}"]
    return [*head, *(f"{x:.1f}" for x in percent)]


if __name__ == "__main__":
    sys.exit(main())
