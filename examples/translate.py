"""Translate English with a fixed vector and with attention: does the order of the words matter?

Sutskever et al. (1409.3215) read the source from its end, so that the first words of a French
translation are near the words they come from. The first word of a Japanese translation may be the
last of the English sentence. Four models of similar size tell:

    fixed vector   the decoder sees the encoder's last state          Cho et al., 1406.1078
    reversed       the same, with the sentence read from its end      Sutskever et al., 1409.3215
    doubled        the same, with the sentence read twice             Zaremba, Sutskever, 1410.4615
    RNNsearch      the decoder attends to the state of every piece    Bahdanau et al., 1409.0473

    python -m examples.translate                            French and Japanese, one seed
    python -m examples.translate --languages fr de ja --seeds 3
    python -m examples.translate --pairs FILE.tsv           a source, a tab and a translation a line

The sentences are messages of free programs: see `examples.translate_data`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from attnkernels.extras import needs
from attnkernels.models.rnnsearch import RNNsearch
from examples import translate_data as data
from examples import translators
from examples.batches import END, Batches, padded
from examples.options import parser
from examples.results import write
from examples.side_by_side import side_by_side
from examples.training import Watch, interruptible
from examples.translators import MODELS, forward_share, learnt, make

with needs("examples"):
    import matplotlib
    from matplotlib.figure import Figure
    from sacrebleu import corpus_bleu, corpus_chrf

    from attnkernels.viz import plot_alignment, plot_embeddings

    with matplotlib.rc_context():  # the import also makes its font the only one
        import matplotlib_fontja  # noqa: F401 - a font with Japanese letters

LENGTHS = {"all": (0, 99), "3-5": (3, 5), "6-9": (6, 9), "10+": (10, 99)}  # words of a source
# The part of --epochs that takes each model as long as the first, on a processor.
EQUAL_TIME = {"fixed vector": 1.0, "reversed": 1.0, "doubled": 0.83, "RNNsearch": 0.73}
MAX_LENGTH = 60  # pieces of a translation, including the end
FILE = "pairs"  # the language of --pairs


@dataclass(frozen=True)
class Size:
    """The settings: data, sizes of the models, and duration of the training."""

    train: int | None = None  # pairs; None means all that are not held out
    validation: int = 200
    test: int | None = None
    pieces: int = 4000
    batch: int = 64
    epochs: int = 22  # of the fixed vector; see EQUAL_TIME
    rate: float = 2e-3  # the maximum; it rises over a tenth of the steps, then decays as a cosine
    embedding_dim: int = 192
    hidden_dim: int = 384  # of the decoder and of the unidirectional encoder
    encoder_dim: int = 224  # per direction of the bidirectional encoder, for as many parameters
    dropout: float = 0.3
    smoothing: float = 0.1
    pictures: int = 4


FULL = Size(epochs=30, embedding_dim=256, hidden_dim=640, encoder_dim=384)
TINY = Size(
    train=200,
    validation=5,
    test=20,
    pieces=500,
    batch=32,
    epochs=1,
    embedding_dim=8,
    hidden_dim=16,
    encoder_dim=10,
    pictures=1,
)


@dataclass(frozen=True)
class Task:
    """A language, with its corpus and its pieces."""

    language: str
    corpus: data.Corpus
    source: data.Pieces
    target: data.Pieces

    def batches(self, size: Size, seed: int, device: str) -> Batches:
        """Return the batches of the training pairs."""
        pairs = self.corpus.train.items()
        source = [self.source.encode(text) for text, _ in pairs]
        target = [[*self.target.encode(text)[: MAX_LENGTH - 1], END] for _, text in pairs]
        return Batches(source, target, size.batch, seed, device)


@interruptible
def main(arguments: list[str] | None = None) -> int:
    """Train the models of every language and seed, translate, and write the results."""
    options = parser("translate", "Translation: a fixed vector against attention.")
    add = options.add_argument
    names = list(data.LANGUAGES)
    add("--languages", nargs="+", choices=names, default=["fr", "ja"], help="default: fr ja")
    models = list(MODELS)
    add("--models", nargs="+", choices=models, default=models, help="default: all of %(choices)s")
    add("--seeds", type=int, default=1, help="trainings of each model, from --seed on (default: 1)")
    add(
        "--epochs",
        type=int,
        help="of the fixed vector; the others train as long (default: that of the size)",
    )
    add(
        "--float32",
        action="store_true",
        help="train without autocast to bfloat16, which a processor needs instructions for",
    )
    add("--pairs", type=Path, help="a file of pairs instead: source, tab, translation")
    add("--packages", type=Path, default=data.FOLDER, help="default: %(default)s")
    given = options.parse_args(arguments)
    asked = dict(vars(given))
    size = FULL if given.full else TINY if given.tiny else Size()
    given.epochs = size.epochs if given.epochs is None else given.epochs
    for name in ("seeds", "epochs"):
        if getattr(given, name) < 1:
            options.error(f"--{name} is {getattr(given, name)}; it must be at least 1")
    if given.pairs is None:
        data.fetch(given.packages)
    else:
        given.languages = [FILE]
    tasks = {language: task(language, size, given) for language in given.languages}
    seeds = range(given.seed, given.seed + given.seeds)
    runs = [(language, name, seed) for language in tasks for name in given.models for seed in seeds]
    if not given.resume:
        for run in runs:  # so that a later --resume does not mistake them for this run's
            _checkpoint(given, *run).unlink(missing_ok=True)

    if given.device == "cpu" and torch.get_num_threads() > 1 and not given.tiny:
        longest_first = sorted(runs, key=lambda run: list(MODELS).index(run[1]), reverse=True)
        side_by_side({" ".join(map(str, run)): partial(job, *run, size, given)
                      for run in longest_first}, processes=2)  # fmt: skip
        given.resume = True  # from what they left

    record: dict[str, Any] = {}
    figures: dict[str, Figure] = {}
    for language, name, seed in runs:
        model, seconds = fit(language, name, seed, tasks[language], size, given)
        found: dict[str, Any] = scores(model.eval(), tasks[language])
        found |= {"parameters": sum(x.numel() for x in learnt(model)), "seconds": seconds}
        if isinstance(model, RNNsearch):
            every = aligned(model, tasks[language], list(tasks[language].corpus.test)).values()
            found["forward_share"] = forward_share(weights for *_, weights in every)
        record[f"{language} {name} {seed}"] = found
        if seed == given.seed:
            figures |= pictures(model, name, tasks[language], size, seed)
    rows = [_row(language, name, record, seeds) for language in tasks for name in given.models]
    spans = [f"chrF {span}" for span in LENGTHS]
    write(
        given.out,
        options=asked,
        columns=["language", "model", "parameters", "seconds", *spans, "BLEU", "forward, %"],
        keys=2,
        rows=rows,
        figures=figures,
        record={
            "size": asdict(size) | {"epochs": given.epochs},
            "packages": data.PACKAGES if given.pairs is None else {},
            "pairs": {
                language: {part: len(pairs) for part, pairs in vars(each.corpus).items()}
                for language, each in tasks.items()
            },
            "threads": torch.get_num_threads(),
            "models": record,
        },
    )
    return 0


def task(language: str, size: Size, given: Any) -> Task:
    """Load the pairs of a language, split them, and learn their pieces from the training pairs."""
    pairs = data.read_tsv(given.pairs) if given.pairs else data.load(given.packages, language)
    corpus = data.split(pairs, size.validation, size.train)
    test = dict(list(corpus.test.items())[: size.test])
    corpus = data.Corpus(corpus.train, corpus.validation, test)
    texts = list(corpus.train), list(corpus.train.values())
    return Task(language, corpus, *(data.Pieces(each, size.pieces) for each in texts))


def job(language: str, name: str, seed: int, size: Size, given: Any, watch: Watch) -> None:
    """Run `fit` in its own process."""
    fit(language, name, seed, task(language, size, given), size, given, watch)


def fit(
    language: str,
    name: str,
    seed: int,
    each: Task,
    size: Size,
    given: Any,
    watch: Watch | None = None,
) -> tuple[Any, float]:
    """Train a model; return it and the seconds."""
    torch.manual_seed(seed)
    batches = each.batches(size, seed, given.device)
    model = make(name, (len(each.source), len(each.target)), size).to(given.device)
    checkpoint = _checkpoint(given, language, name, seed)
    seconds = translators.fit(
        checkpoint.stem,
        model,
        batches,
        max(1, round(given.epochs * EQUAL_TIME[name] * batches.number)),
        size,
        narrow=not given.float32,
        checkpoint=checkpoint,
        seed=seed,
        resume=given.resume,
        watch=watch,
    )
    return model, seconds


def scores(model: Any, each: Task) -> dict[str, Any]:
    """Return chrF (Popovic, 2015) by the words of the source, and BLEU, both of sacreBLEU.

    BLEU counts words by the tokenizer 13a, and characters in Japanese.
    """
    found = translated(model, each, list(each.corpus.test))
    chrf = {}
    for span, (low, high) in LENGTHS.items():
        some = [source for source in found if low <= len(source.split()) <= high]
        ours, theirs = [found[x] for x in some], [each.corpus.test[x] for x in some]
        chrf[span] = corpus_chrf(ours, [theirs]).score if some else 0.0
    tokenizer = "char" if each.language == "ja" else "13a"
    bleu = corpus_bleu(
        list(found.values()), [[each.corpus.test[x] for x in found]], tokenize=tokenizer
    )
    return {"chrf": chrf, "bleu": bleu.score}


def chunks(model: nn.Module, each: Task, texts: list[str]) -> Iterator[tuple[list[str], Any, Any]]:
    """Yield texts and their tokens, some hundred of similar lengths at a time."""
    device = next(model.parameters()).device
    texts = sorted(texts, key=len)
    for at in range(0, len(texts), 200):
        some = texts[at : at + 200]
        source, lengths = padded([each.source.encode(text) for text in some])
        yield some, source.to(device), lengths.to(device)


@torch.no_grad()
def translated(model: Any, each: Task, texts: list[str]) -> dict[str, str]:
    """Return the translation of each text, by a greedy search."""
    found: dict[str, str] = {}
    for some, source, lengths in chunks(model, each, texts):
        best = model.greedy_search(source, lengths, max_length=MAX_LENGTH).tokens[:, 0].tolist()
        found |= {text: each.target.decode(x) for text, x in zip(some, best, strict=True)}
    return found


@torch.no_grad()
def aligned(
    model: RNNsearch, each: Task, texts: list[str]
) -> dict[str, tuple[list[str], list[str], Tensor]]:
    """Return the pieces of each translation and of its source, and the weights between them."""
    found = {}
    for some, source, lengths in chunks(model, each, texts):
        best = model.greedy_search(source, lengths, max_length=MAX_LENGTH, return_alignments=True)
        assert best.alignments is not None
        rows = zip(some, source.tolist(), best.tokens[:, 0].tolist(), best.alignments.cpu(),
                   strict=True)  # fmt: skip
        for text, words, tokens, weights in rows:
            ours, theirs = each.target.labels(tokens), each.source.labels(words)
            found[text] = ours, theirs, weights[0, : len(ours), : len(theirs)]
    return found


def pictures(model: Any, name: str, each: Task, size: Size, seed: int) -> dict[str, Figure]:
    """Draw the alignments of RNNsearch, or a map of the fixed vectors."""
    texts = [text for text in each.corpus.test if 6 <= len(text.split()) <= 12]
    if isinstance(model, RNNsearch):
        shown = aligned(model, each, texts[: size.pictures])
        return {
            f"alignment_{each.language}_{number}": plot_alignment(weights, ours, theirs, title=text)
            for number, (text, (ours, theirs, weights)) in enumerate(shown.items())
            if ours
        }
    if name != "fixed vector":
        return {}
    chosen = list(each.corpus.test)[:60]
    source, lengths = padded([each.source.encode(text) for text in chosen])
    with torch.no_grad():
        vectors = model.sentence_embeddings(source, lengths).cpu()
    groups = [f"{len(text.split()) // 5 * 5}+ words" for text in chosen]
    figure = plot_embeddings(vectors, chosen, method="tsne", groups=groups, seed=seed)
    return {f"map_{each.language}": figure}


def _checkpoint(given: Any, language: str, name: str, seed: int) -> Path:
    return given.out / f"{language}_{name.replace(' ', '_')}_{seed}.pt"


def _row(language: str, name: str, record: dict[str, Any], seeds: range) -> list[str]:
    every = [record[f"{language} {name} {seed}"] for seed in seeds]

    def spread(values: list[float], digits: int = 1) -> str:
        text = f"{mean(values):.{digits}f}"
        return text + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")

    head = [data.LANGUAGES.get(language, language), name, f"{every[0]['parameters']:,}"]
    head.append(spread([x["seconds"] for x in every], 0))
    chrf = [spread([x["chrf"][span] for x in every]) for span in LENGTHS]
    moves = [100 * x["forward_share"] for x in every if "forward_share" in x]
    return [*head, *chrf, spread([x["bleu"] for x in every]), spread(moves) if moves else "–"]


if __name__ == "__main__":
    sys.exit(main())
