"""Import the attention of other libraries without the rest of their packages.

One module of each is enough. Their packages import others that may be missing, or libraries that
are compiled for another release of PyTorch.
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
    with _stand_ins({"torchaudio": []}):
        return importlib.import_module("speechbrain.nnet.attention")


def torchaudio() -> Any:
    """Return the module torchaudio.models.tacotron2; raise ImportError without torchaudio."""
    root = _folder("torchaudio")
    with _stand_ins({"torchaudio": [str(root)], "torchaudio.models": [str(root / "models")]}):
        return importlib.import_module("torchaudio.models.tacotron2")


def espnet() -> Any:
    """Return the module of ESPnet's attentions for RNNs; raise ImportError without ESPnet."""
    return importlib.import_module("espnet.nets.pytorch_backend.rnn.attentions")


def opennmt() -> Any:
    """Return the module onmt.modules.global_attention; raise ImportError without OpenNMT-py."""
    root = _folder("onmt")
    folders = {"onmt": root, "onmt.modules": root / "modules", "onmt.utils": root / "utils"}
    with _stand_ins({name: [str(path)] for name, path in folders.items()}):
        return importlib.import_module("onmt.modules.global_attention")


def dgl() -> Any:
    """Return DGL, without the samplers of its later releases; raise ImportError without it."""
    with _stand_ins({"dgl.graphbolt": []}):
        return importlib.import_module("dgl")


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


def _folder(name: str) -> Path:
    """Return the folder of a package, which is not imported; raise ImportError without it."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ImportError(f"No module named {name!r}")
    return Path(found.origin).parent


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
