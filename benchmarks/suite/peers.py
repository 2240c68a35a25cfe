"""Attention of other libraries, imported without what their packages import beside it.

SpeechBrain imports torchaudio, and OpenNMT-py imports much else: both are here for one module each.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any


def speechbrain() -> Any:
    """The module speechbrain.nnet.attention. Raises ImportError where there is no SpeechBrain."""
    there = "torchaudio" in sys.modules or importlib.util.find_spec("torchaudio")
    with _stand_ins({} if there else {"torchaudio": []}):
        return importlib.import_module("speechbrain.nnet.attention")


def opennmt() -> Any:
    """The module onmt.modules.global_attention. Raises ImportError where there is no OpenNMT-py."""
    found = importlib.util.find_spec("onmt")
    if found is None or found.origin is None:
        raise ImportError("No module named 'onmt'")
    root = Path(found.origin).parent
    folders = {"onmt": root, "onmt.modules": root / "modules", "onmt.utils": root / "utils"}
    with _stand_ins({name: [str(path)] for name, path in folders.items()}):
        return importlib.import_module("onmt.modules.global_attention")


def keras() -> Any:
    """Keras, with torch as its backend. Raises ImportError where that is not to be had."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    module = importlib.import_module("keras")
    if module.backend.backend() != "torch":
        raise ImportError(f"keras runs on {module.backend.backend()}, not on torch")
    return module


def geometric() -> Any:
    """torch_geometric.nn. Raises ImportError where there is no PyTorch Geometric."""
    return importlib.import_module("torch_geometric.nn")


@contextmanager
def _stand_ins(packages: dict[str, list[str]]) -> Iterator[None]:
    """Empty packages with these folders, for the time of an import."""
    made = {}
    for name, path in packages.items():
        if name not in sys.modules:
            made[name] = sys.modules[name] = ModuleType(name)
            made[name].__path__ = path
    try:
        yield
    finally:
        for name, module in made.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
