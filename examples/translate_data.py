"""Read real sentence pairs from the message catalogues that ship inside Python packages.

    python -m examples.translate_data      fetch the packages into build/catalogues

A program in several languages keeps its messages with their translations in gettext catalogues.
Those of large free programs hold tens of thousands of short English sentences and what their
translators made of them. They are fetched, not redistributed.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from attnkernels.extras import needs
from examples.batches import BEGIN, END, PADDING

with needs("examples"):
    from polib import mofile, pofile
    from rapidfuzz import fuzz, process
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

PACKAGES = {
    "apache-superset": "6.1.0",
    "ckan": "2.12.0",
    "Django": "5.2.19",
    "djangorestframework": "3.18.3",
    "gramps": "6.0.8",
    "horizon": "27.0.0",
    "jupyterlab-language-pack-de-DE": "4.5.post3",
    "jupyterlab-language-pack-fr-FR": "4.5.post3",
    "jupyterlab-language-pack-ja-JP": "4.5.post3",
    "plone.app.locales": "7.0.4",
    "Sphinx": "9.0.4",
    "spyder": "6.1.8",
    "wagtail": "8.0.1",
    "Weblate": "5.14.3",
}
LANGUAGES = {"fr": "French", "de": "German", "ja": "Japanese"}
COUNTRIES = {"fr": "FR", "de": "DE", "ja": "JP"}
FOLDER = Path("build/catalogues")
WORDS = 3, 20  # of a source
HELD_OUT = 1000  # sources, of each ten thousand
ALIKE = 85.0  # a training source as similar as this, in percent, to one held out is left out
UNKNOWN = 3

Pairs = dict[str, str]  # a translation of each source


@dataclass(frozen=True)
class Corpus:
    """The pairs of one language: training, validation and test."""

    train: Pairs
    validation: Pairs
    test: Pairs


def fetch(folder: Path) -> None:
    """Download the packages that `folder` lacks, without their dependencies.

    Raises:
        RuntimeError: pip could not download one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [f"{name}=={PACKAGES[name]}" for name in PACKAGES if not _file(folder, name)]
    if not missing:
        return
    print(f"Downloading {len(missing)} packages with message catalogues into {folder}", flush=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*pip, "-d", str(folder), *missing], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip could not download {' '.join(missing)}:\n{done.stderr}")


def load(folder: Path, language: str) -> Pairs:
    """Return the sentence pairs of all catalogues, in the order of the packages.

    A source that several packages translate keeps its first translation.
    """
    pairs: Pairs = {}
    for name in PACKAGES:
        path = _file(folder, name)
        assert path is not None, f"{name} was not fetched"
        for source, target in _messages(path, language):
            source, target = cleaned(source), cleaned(target)
            if suits(source, target):
                pairs.setdefault(source, target)
    return pairs


def read_tsv(path: Path) -> Pairs:
    """Return the pairs of a file with one per line, source and translation between a tab.

    Raises:
        ValueError: a line has another number of fields, or no line suits.
    """
    pairs: Pairs = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) != 2:
            raise ValueError(
                f"{path} must have a source, a tab and a translation per line, got "
                f"{len(fields)} fields in line {number}"
            )
        source, target = map(cleaned, fields)
        if suits(source, target):
            pairs.setdefault(source, target)
    if not pairs:
        raise ValueError(f"{path} must have sources of {WORDS[0]} to {WORDS[1]} words, got none")
    return pairs


def cleaned(message: str) -> str:
    """Return a message without the marks of keyboard shortcuts, spaces as single ones."""
    message = re.sub(r"[&_](?=\w)", "", message) if _MNEMONIC.search(message) else message
    return " ".join(message.split())


def suits(source: str, target: str) -> bool:
    """Return True for a sentence of words that was translated, without markup."""
    low, high = WORDS
    return (
        low <= len(source.split()) <= high
        and bool(target)
        and source != target
        and not any(mark in text for text in (source, target) for mark in "<>{}|\\`")
        and len(re.findall(r"[^\W\d_]", source)) * 2 > len(source)
    )


def split(pairs: Pairs, validation: int, train: int | None = None) -> Corpus:
    """Hold sources out by their words, so that those of several languages are the same.

    Sources that differ in case, digits or punctuation alone stay together, and a training source
    that resembles one held out is left out.

    Args:
        pairs: all pairs.
        validation: number of held-out pairs for validation; the others are the test.
        train: number of training pairs; None takes all.
    """
    held = {source for source in pairs if crc32(_words(source).encode()) % 10_000 < HELD_OUT}
    rest = [source for source in pairs if source not in held]
    keys = [_words(source) for source in held]
    near = process.cdist(
        [_words(source) for source in rest], keys, scorer=fuzz.ratio, score_cutoff=ALIKE, workers=-1
    ).max(1)
    rest = [source for source, most in zip(rest, near, strict=True) if most < ALIKE]
    shuffled = sorted(held, key=lambda source: crc32(source.encode()))
    parts = rest[:train], shuffled[:validation], shuffled[validation:]
    return Corpus(*({source: pairs[source] for source in part} for part in parts))


class Pieces:
    """Subwords of one language, learnt by SentencePiece (Kudo and Richardson, 1808.06226).

    Args:
        texts: the sentences to learn from.
        size: the largest number of pieces.
    """

    def __init__(self, texts: Sequence[str], size: int) -> None:
        model = io.BytesIO()
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=0.9995,
            pad_id=PADDING,
            bos_id=BEGIN,
            eos_id=END,
            unk_id=UNKNOWN,
            num_threads=1,  # with more, the pieces depend on their order
            minloglevel=2,
        )
        self.processor = SentencePieceProcessor(model_proto=model.getvalue())

    def __len__(self) -> int:
        return self.processor.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without an end."""
        return self.processor.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens up to the end."""
        return self.processor.decode(self.until_end(tokens))

    def labels(self, tokens: Sequence[int]) -> list[str]:
        """Return the pieces of tokens up to the end; "▁" begins a word."""
        return [self.processor.id_to_piece(token) for token in self.until_end(tokens)]

    @staticmethod
    def until_end(tokens: Sequence[int]) -> list[int]:
        """Return the tokens before the end and the padding."""
        ends = [at for at, token in enumerate(tokens) if token in (PADDING, END)]
        return list(tokens[: ends[0] if ends else None])


def _file(folder: Path, name: str) -> Path | None:
    wheel = f"{re.sub(r'[-_.]+', '_', name)}-{PACKAGES[name]}-".lower()
    return next(
        (path for path in folder.glob("*.whl") if path.name.lower().startswith(wheel)), None
    )


def _messages(wheel: Path, language: str) -> Iterator[tuple[str, str]]:
    """Yield the messages of a package with their translations, except uncertain ones."""
    folders = {language, f"{language}_{COUNTRIES[language]}"}
    with zipfile.ZipFile(wheel) as archive:
        names = {
            name for name in archive.namelist() if folders & {*Path(name).parts, Path(name).stem}
        }
        for name in sorted(names):
            kind = Path(name).suffix
            if kind == ".po":
                catalogue = pofile(archive.read(name).decode())
            elif kind == ".mo" and f"{name[:-3]}.po" not in names:
                catalogue = mofile(archive.read(name))
            else:
                continue
            for message in catalogue:
                if not message.obsolete and "fuzzy" not in message.flags:
                    yield message.msgid, message.msgstr


def _words(source: str) -> str:
    """Return the letters of a source, without case, digits and punctuation."""
    return " ".join(re.findall(r"[^\W\d_]+", source.lower()))


_MNEMONIC = re.compile(r"(?:^|\s)[&_]\w|\w[&_]\w")


if __name__ == "__main__":
    fetch(FOLDER)
