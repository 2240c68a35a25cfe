"""Define the options that all examples share."""

from __future__ import annotations

import argparse
from pathlib import Path

from attnkernels.measure.files import folder
from attnkernels.measure.options import seed
from attnkernels.measure.wording import tolerate_any_encoding


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the shared options; an example adds its own."""
    tolerate_any_encoding()
    made = argparse.ArgumentParser(prog=f"python -m examples.{name}", description=description)
    add = made.add_argument
    add("--out", type=folder, default=Path("build/examples") / name, help="default: %(default)s")
    add("--seed", type=seed, default=0, help="of everything random (default: %(default)s)")
    add("--device", default="cpu", help="default: %(default)s")
    add("--resume", action="store_true", help="continue from the checkpoints in --out")
    size = made.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="the size for a GPU")
    size.add_argument("--tiny", action="store_true", help="a tiny size, to check that it runs")
    return made
