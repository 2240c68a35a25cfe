"""The code of README and of the pages runs: the blocks of a page one after another."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import SkipTest

import pytest
import torch
from sybil import Document, Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from torch import Tensor, nn

from attnkernels.interop import CONVENTIONS
from attnkernels.nn import AdditiveAttention, LocationSensitiveAttention
from attnkernels.nn.projections import Projections

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES: dict[str, Projections] = {  # of the sizes that docs/migrate.md and README load into
    "captioning": AdditiveAttention(512, 2048, 512, activation="relu"),
    "espnet-add": AdditiveAttention(320, 320, 256, scale=2.0),
    "gnmt": AdditiveAttention(1024, 1024, 1024, normalize=True, bias=False),
    "readme": AdditiveAttention(512, 1024, 256, normalize=True, bias=False),
    "tacotron2": LocationSensitiveAttention(1024, 512, 128, cumulative="both", bias=False),
    "tfa": AdditiveAttention(512, 512, 256, normalize=True, bias=False),
}


@pytest.fixture(autouse=True)
def undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in an empty folder, on one thread, and undo what blocks set."""
    monkeypatch.chdir(tmp_path)
    threads, environment = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(1)
    if find_spec("speechbrain") and not find_spec("torchaudio"):  # which it imports, for audio
        monkeypatch.setitem(sys.modules, "torchaudio", ModuleType("torchaudio"))
    yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page: Path) -> None:
    document = parsed(page)
    skipped = []
    for example in document.examples():
        try:
            example.evaluate()
        except SkipTest as reason:
            skipped.append(f"line {example.line}: {reason}")
    if skipped:
        pytest.skip("; ".join(skipped))


def test_a_wrong_block_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        for example in parsed(page).examples():
            example.evaluate()


def test_every_python_block_is_found() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        visible = [x for x in parsed(page).examples() if text.startswith("```python", x.start)]
        assert len(visible) == text.count("```python\n"), page


def parsed(page: Path) -> Document:
    """Return a page whose blocks know two helpers, `missing` and `example`."""
    document = Sybil([PythonCodeBlockParser(), SkipParser()]).parse(page)
    document.namespace.update(missing=lambda name: find_spec(name) is None, example=example)
    return document


def example(convention: str, prefix: str, module: str = "") -> tuple[nn.Module, nn.Module, Any]:
    """Return a model without attention, a module to load into, and a checkpoint for it."""
    rules, target = CONVENTIONS[convention], MODULES[module or convention]
    shapes = {name: tuple(x.shape) for name, x in target.named_parameters()}
    checkpoint: dict[str, Tensor] = {
        prefix + entry.names[0]: torch.randn(entry.shape(shapes[entry.target], target.num_heads))
        for entry in rules.entries
        if entry.target in shapes
    }
    model = nn.Module()
    model.att = nn.Module()
    return model, target, checkpoint
