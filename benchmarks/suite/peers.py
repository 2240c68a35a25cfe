"""Import the attention of other libraries without the rest of their packages.

SpeechBrain imports torchaudio, and OpenNMT-py imports many packages; one module of each is enough.
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
    """Return the module speechbrain.nnet.attention; raise ImportError without SpeechBrain."""
    there = "torchaudio" in sys.modules or importlib.util.find_spec("torchaudio")
    with _stand_ins({} if there else {"torchaudio": []}):
        return importlib.import_module("speechbrain.nnet.attention")


def opennmt() -> Any:
    """Return the module onmt.modules.global_attention; raise ImportError without OpenNMT-py."""
    found = importlib.util.find_spec("onmt")
    if found is None or found.origin is None:
        raise ImportError("No module named 'onmt'")
    root = Path(found.origin).parent
    folders = {"onmt": root, "onmt.modules": root / "modules", "onmt.utils": root / "utils"}
    with _stand_ins({name: [str(path)] for name, path in folders.items()}):
        return importlib.import_module("onmt.modules.global_attention")


def keras() -> Any:
    """Return Keras with torch as its backend; raise ImportError if that is impossible."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    module = importlib.import_module("keras")
    if module.backend.backend() != "torch":
        raise ImportError(f"keras runs on {module.backend.backend()}, not on torch")
    return module


def geometric() -> Any:
    """Return torch_geometric.nn; raise ImportError without PyTorch Geometric."""
    return importlib.import_module("torch_geometric.nn")


@contextmanager
def _stand_ins(packages: dict[str, list[str]]) -> Iterator[None]:
    """Provide empty packages with these folders during an import."""
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
