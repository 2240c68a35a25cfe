"""Write the files that a command is asked for.

A regular file is replaced at once, so a reader never sees half of it. A symbolic link is followed.
A device or a pipe is written to and never replaced; "-" is standard output.
"""

from __future__ import annotations

import argparse
import io
import os
import secrets
import shutil
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NO_FILE = ("", "none")
STANDARD_INPUT, STANDARD_OUTPUT = Path("/dev/stdin"), Path("/dev/stdout")
PATIENCE = 1.0  # seconds of waiting before a line says so
NOT_OFFERED = {"pgf", "raw", "rgba"}  # pgf needs LaTeX, the others are bare pixels


def output(text: str) -> Path | None:
    """Return the path that an option names, or None for "" and "none" (type of an argument)."""
    if text in NO_FILE:
        return None
    if text == "-":
        return STANDARD_OUTPUT
    if text.endswith(os.sep):
        raise argparse.ArgumentTypeError(f"{text} is a folder; it must be a file")
    return Path(text)


def folder(text: str) -> Path:
    """Return a folder that takes files, or can be made (type of an argument)."""
    path = Path(text)
    try:
        _try(path / "file")
    except (OSError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(f"cannot write to {text}: {_reason(error)}") from None
    return path


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on standard error, once, that the command waits for `what`, if the block takes long."""
    line = f"Waiting for {what}; Ctrl-C ends it."
    timer = threading.Timer(PATIENCE, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_stream(path: Path) -> bool:
    """Return True if `path` is a device, a pipe, or what this process prints to."""
    try:
        found = path.stat()
    except OSError:
        return False
    regular = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
    return not regular or _descriptor(found) is not None


def write(path: Path, content: str | bytes) -> None:
    """Write `content`, text as UTF-8, and make the folder if it is missing.

    Raises:
        OSError: the file cannot be written. A regular file then keeps its old content.
    """
    data = content.encode() if isinstance(content, str) else content
    if is_stream(path):
        descriptor = _descriptor(path.stat())
        sys.stdout.flush()
        closes = descriptor is None
        opened = path if descriptor is None else descriptor
        with waiting(f"{path} to be read"), open(opened, "wb", closefd=closes) as stream:
            stream.write(data)
        return
    path = path.resolve()  # replace the target of a link, not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _unused(path.parent)
    try:
        with partial.open("xb") as file:
            file.write(data)
        if path.exists():
            shutil.copymode(path, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_figure(path: Path, figure: Any, **options: Any) -> None:
    """Write a matplotlib figure in the format of the suffix; without one, as PNG."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:] or "png", **options)
    write(path, drawn.getvalue())


def check(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None] = {}) -> None:
    """Check that every output can be written and is neither another output nor an input.

    Both map the name of an option to its path, or to None if there is no file.

    Raises:
        ValueError: one cannot be written; the sentence names the option.
    """
    known = {name: path for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        try:
            _try(path)
            other = next((name for name, each in known.items() if _same(path, each)), None)
        except (OSError, RuntimeError) as error:  # resolve() raises RuntimeError for a loop
            raise ValueError(f"cannot write {name} {path}: {_reason(error)}") from None
        if other is not None:
            raise ValueError(f"{name} {path} is the file of {other} too; it must be another")
        known[name] = path


def check_figure(name: str, path: Path | None) -> None:
    """Check that matplotlib can write the format of the suffix of `path`.

    Raises:
        ValueError: it cannot; the sentence names the option `name` and the formats.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = sorted(FigureCanvasBase.get_supported_filetypes().keys() - NOT_OFFERED)
    if path is not None and (path.suffix[1:] or "png").lower() not in kinds:
        raise ValueError(f"{name} {path}: the suffix must be one of {', '.join(kinds)}")


def _descriptor(found: os.stat_result) -> int | None:
    """Return the descriptor of standard output or error if that is the file, otherwise None."""
    for descriptor in (1, 2):
        try:
            if os.path.samestat(found, os.fstat(descriptor)):
                return descriptor
        except OSError:  # closed
            pass
    return None


def _unused(folder: Path) -> Path:
    """Return a name without a file in `folder`, short where that of the file may be long."""
    return folder / f".{secrets.token_hex(4)}.partial"


def _try(path: Path) -> None:
    """Raise OSError if `path` cannot be written, without leaving anything behind."""
    if path.is_dir():
        raise IsADirectoryError(None, "it is a folder, and must be a file")
    if not is_stream(path):
        target = path.resolve()
        home = target.parent
        while not home.exists():
            home = home.parent
        trial = _unused(home)
        try:
            trial.touch(exist_ok=False)
        except FileNotFoundError:  # as in /proc
            raise OSError(None, f"{home} takes no new files") from None
        finally:
            trial.unlink(missing_ok=True)
        path = target
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(None, "Permission denied")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _same(path: Path, other: Path) -> bool:
    """Return True if two paths name one file; a device may be named twice."""
    if path.is_char_device():
        return False
    both = path.exists() and other.exists()
    return path.samefile(other) if both else path.resolve() == other.resolve()
