"""Draw the pictures of the tutorial by running its own code, so that text and pictures agree."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import torch
from mkdocs.structure.files import File, Files

TUTORIAL = Path(__file__).resolve().parents[1] / "tutorial.md"
DRAWN = Path(__file__).resolve().parents[2] / "build" / "tutorial"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add what the tutorial's blocks save as files of the site."""
    for path in sorted(draw().glob("*.png")):
        files.append(File.generated(config, f"tutorial/{path.name}", abs_src_path=str(path)))
    return files


def draw() -> Path:
    """Run the blocks if they have changed since the last time; return the folder of pictures."""
    code = "\n".join(BLOCK.findall(TUTORIAL.read_text(encoding="utf-8")))
    folder = DRAWN / hashlib.sha256(code.encode()).hexdigest()[:16]
    if not folder.is_dir():
        unfinished = folder.with_suffix(".part")
        unfinished.mkdir(parents=True, exist_ok=True)
        before = Path.cwd()
        os.chdir(unfinished)
        torch.set_num_threads(1)  # the tutorial's model is too small for more threads
        try:
            exec(compile(code, str(TUTORIAL), "exec"), {"__name__": "tutorial"})
        finally:
            os.chdir(before)
        unfinished.rename(folder)
    return folder
