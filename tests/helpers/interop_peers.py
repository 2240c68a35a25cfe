"""Shared by the tests that use the libraries themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

# Warnings that the libraries raise about calls of their own.
QUIET = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*custom_:FutureWarning"),
]


def installed(library: Callable[[], Any]) -> Any:
    """Return the import of a function of `benchmarks.suite.peers`, or skip the test."""
    try:
        return library()
    except ImportError as error:
        pytest.skip(f"{library.__name__} cannot be imported: {error}")
