"""Read what a run of an example leaves in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def record(out: Path) -> dict[str, Any]:
    """Return results.json without the seconds of the trainings."""
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    for model in found["models"].values():
        del model["seconds"]
    return found


def state(checkpoint: Path) -> dict[str, Tensor]:
    """Return the state of the model in a checkpoint."""
    return torch.load(checkpoint, weights_only=True)["parts"]["model"]
