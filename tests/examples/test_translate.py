"""The translation example: its catalogues, its split, its scores, and a run that is interrupted."""

from __future__ import annotations

import random
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.examples import record

pytest.importorskip("polib")
pytest.importorskip("sacrebleu")
pytest.importorskip("sentencepiece")

import polib

from examples import translate
from examples import translate_data as data
from examples.batches import END, Batches
from examples.translators import multiplies_bfloat16

WORDS = (
    "file key memory window graph query value weight token sentence open close read write copy "
    "move delete find send show large small green early narrow public empty secret"
).split()


def sentences() -> dict[str, str]:
    """Return 400 pairs of random words whose translations have them in the opposite order."""
    draw, pairs = random.Random(0), {}
    for _ in range(400):
        words = draw.sample(WORDS, draw.randint(4, 8))
        pairs[" ".join(words)] = " ".join(f"{word}en" for word in reversed(words))
    return pairs


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> None:
    stem = f"{name.replace('-', '_').replace('.', '_')}-{data.PACKAGES[name]}-py3-none-any.whl"
    with zipfile.ZipFile(folder / stem, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)


def catalogue(messages: dict[str, str], **flags: Any) -> polib.POFile:
    made = polib.POFile()
    made.metadata = {"Content-Type": "text/plain; charset=utf-8"}
    for source, target in messages.items():
        made.append(polib.POEntry(msgid=source, msgstr=target, **flags))
    return made


def test_catalogues_of_packages(tmp_path: Path) -> None:
    first = {"Open the &file now": "Ouvrir  le\nfichier", "Open it": "Ouvrir", "A b c": ""}
    unsure = catalogue({"Close the file now": "Fermer"}, flags=["fuzzy"])
    later = {"Open the file now": "Another", "Delete all the files?": "Supprimer ?"}
    for name in data.PACKAGES:
        wheel(tmp_path, name, {})
    po, mo = catalogue(first), catalogue(later)
    wheel(
        tmp_path,
        "Django",
        {
            "django/locale/fr/LC_MESSAGES/a.po": str(po).encode(),
            "django/locale/fr/LC_MESSAGES/a.mo": catalogue({"Of the binary": "x"}).to_binary(),
            "django/locale/fr/LC_MESSAGES/b.po": str(unsure).encode(),
            "django/locale/de/LC_MESSAGES/a.po": str(catalogue({"Yes or no": "Ja"})).encode(),
        },
    )
    wheel(tmp_path, "gramps", {"locale/fr_FR/LC_MESSAGES/gramps.mo": mo.to_binary()})
    data.fetch(tmp_path)  # everything is there
    assert data.load(tmp_path, "fr") == {
        "Open the file now": "Ouvrir le fichier",
        "Delete all the files?": "Supprimer ?",
    }
    assert data.load(tmp_path, "de") == {"Yes or no": "Ja"}


def test_files_of_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("One two three\tun deux trois\nToo short\tx\n", encoding="utf-8")
    assert data.read_tsv(path) == {"One two three": "un deux trois"}
    path.write_text("One two three\n", encoding="utf-8")
    with pytest.raises(ValueError, match="got 1 fields in line 1"):
        data.read_tsv(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="sources of 3 to 20 words, got none"):
        data.read_tsv(path)


def test_what_is_held_out_resembles_nothing_that_is_learnt() -> None:
    one = next(iter(sentences()))
    other = one.upper() + "!"
    pairs = sentences() | {other: "x"}
    found = data.split(pairs, 5)
    assert len(found.validation) == 5 and found.test and found.train
    held = {*found.validation, *found.test}
    assert not held & set(found.train)
    assert len({one, other} & held) in (0, 2)
    some = dict(list(pairs.items())[::2])  # another language, which has fewer of the sources
    again = data.split(some, 5)
    assert {*again.validation, *again.test} == held & set(some)


def test_pieces_begin_and_end() -> None:
    pieces = data.Pieces(list(sentences().values()), 60)
    tokens = pieces.encode("keyen fileen openen")
    assert min(tokens) > data.UNKNOWN
    assert pieces.decode([*tokens, END, END, 0]) == "keyen fileen openen"
    assert "".join(pieces.labels([*tokens, END])) == "▁keyen▁fileen▁openen"


def test_scores_of_a_perfect_translation(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = data.Corpus({}, {}, {"one two three": "un deux trois quatre", "a b c d e f": "x y z"})
    each = translate.Task("fr", corpus, None, None)  # type: ignore[arg-type]
    monkeypatch.setattr(translate, "translated", lambda model, each, texts: each.corpus.test)
    found = translate.scores(None, each)
    assert found["bleu"] == pytest.approx(100)
    assert found["chrf"] == {"all": 100, "3-5": 100, "6-9": 100, "10+": 0}


def test_interrupted_and_resumed_ends_as_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{x}\t{y}\n" for x, y in sentences().items()), encoding="utf-8")
    command = ["--tiny", "--pairs", str(pairs), "--out"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert translate.main([*command, str(whole)]) == 0
    wanted = record(whole)
    names = [f"pairs {name} 0" for name in translate.MODELS]
    assert list(wanted["models"]) == names
    assert 0 <= wanted["models"][names[-1]]["forward_share"] <= 1
    pictures = sorted(path.name for path in whole.glob("*.png"))
    assert pictures == ["alignment_pairs_0.png", "map_pairs.png"]
    assert len((whole / "table.md").read_text(encoding="utf-8").splitlines()) == 2 + len(names)

    taken, batch = [], Batches.__call__

    def interrupting(batches: Batches, step: int) -> Any:
        taken.append(step)
        if len(taken) == 10:  # in the middle of the second model
            signal.raise_signal(signal.SIGINT)
        return batch(batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__call__", interrupting)
        with pytest.raises(SystemExit) as stopped:
            translate.main([*command, str(parts)])
    assert stopped.value.code == 130 and not (parts / "results.json").exists()
    assert translate.main([*command, str(parts), "--resume"]) == 0
    assert record(parts)["models"] == wanted["models"]

    one = names[-1]
    assert translate.main([*command, str(parts), "--resume", "--models", "RNNsearch"]) == 0
    assert record(parts)["models"] == {one: wanted["models"][one]}


def test_bad_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        translate.main(["--tiny", "--seeds", "0"])
    assert stopped.value.code == 2
    assert "--seeds is 0; it must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("known", [{}, {"avx2": True}, {"avx2": True, "avx512_bf16": True}])
def test_bfloat16_is_for_processors_that_multiply_it(
    known: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert multiplies_bfloat16("cpu") == ("avx512_bf16" in known)
    assert multiplies_bfloat16("cuda")


def test_batches_of_tokens_keep_their_pairs() -> None:
    batches = Batches([[3], [3, 4], [5, 6, 7]], [[2], [4, 2], [6, 7, 2]], 2, 0, "cpu")
    found = []
    for step in range(batches.number):
        source, lengths, target = batches(step)
        for row, length, tokens in zip(source, lengths, target, strict=True):
            found.append((row[:length].tolist(), tokens[tokens > 0].tolist()))
    assert sorted(found) == [([3], [2]), ([3, 4], [4, 2]), ([5, 6, 7], [6, 7, 2])]
    assert torch.equal(batches(0)[0], batches(0)[0])
