"""Record which measurements are missing and why, even if the process dies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from attnkernels.measure.files import write

LOST = "the process that ran it did not come back"


class Attempt(NamedTuple):
    case: str
    direction: str
    dtype: str
    provider: str


class Absent:
    """The reasons by attempt, in a JSON file that is rewritten at every change.

    begin() records an attempt before it starts, so that the next process finds one that killed its
    predecessor.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        self._reasons = {
            Attempt(*(row[name] for name in Attempt._fields)): row["why"] for row in rows
        }
        self._begun: set[Attempt] = set()

    def __contains__(self, attempt: Attempt) -> bool:
        return attempt in self._reasons

    def note(self, why: str, attempt: Attempt) -> None:
        self._begun.discard(attempt)
        self._reasons[attempt] = why
        self._write()

    def begin(self, *attempts: Attempt) -> None:
        self._begun.update(attempts)
        self._reasons |= dict.fromkeys(attempts, LOST)
        self._write()

    def end(self) -> None:
        """Record that the attempt ended, unless it has a reason of its own."""
        for attempt in self._begun:
            del self._reasons[attempt]
        self._begun.clear()
        self._write()

    def _write(self) -> None:
        rows = [{**attempt._asdict(), "why": why} for attempt, why in self._reasons.items()]
        write(self._path, json.dumps(rows, indent=1) + "\n")
