"""A watch on the calls of the backend "reference"."""

from __future__ import annotations

from typing import Any

import pytest

from attnkernels.backends import BACKENDS
from attnkernels.ops.signature import Options

REFERENCE = next(each for each in BACKENDS if each.NAME == "reference")


def watch_options(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """Return the list to which the options of each call of "reference" are added."""
    found: list[Options] = []

    def watch(name: str) -> None:
        function = getattr(REFERENCE, name)

        def watched(*args: Any) -> Any:
            found.append(args[-1])
            return function(*args)

        monkeypatch.setattr(REFERENCE, name, watched)

    watch("attention")
    watch("scores")
    return found
