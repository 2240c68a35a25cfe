"""The table of libraries, as it is collected from their files."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest
from interop.libraries import SWAPS

from attnkernels.interop import CONVENTIONS
from attnkernels.interop.core import libraries


def name_of(library: ModuleType) -> str:
    return library.__name__.rpartition(".")[2]


def test_files_are_read_in_alphabetical_order() -> None:
    names = [name_of(each) for each in libraries.LIBRARIES]
    assert names == sorted(names) and "gnmt" in names and "core" not in names
    order = [name for each in libraries.LIBRARIES for name in getattr(each, "CONVENTIONS", ())]
    assert list(CONVENTIONS) == order


def test_a_convention_belongs_to_one_file() -> None:
    (gnmt,) = (each for each in libraries.LIBRARIES if name_of(each) == "gnmt")
    with pytest.raises(ValueError, match="gnmt must have names of its own, got .'gnmt'"):
        libraries._conventions([*libraries.LIBRARIES, gnmt])


@pytest.mark.parametrize("library", libraries.LIBRARIES, ids=name_of)
def test_a_library_is_whole_and_tested(library: ModuleType) -> None:
    """Its live modules have conventions in the same file, and cases or a test of their own."""
    own = Path(__file__).with_name(f"test_{name_of(library)}.py").exists()
    for live in getattr(library, "LIVE", ()):
        source = library.CONVENTIONS[live.convention].source
        assert own or any(case.source in source for case in SWAPS.values()), live.convention


def test_no_module_fits_two_entries() -> None:
    """Otherwise the order of the files would decide between two libraries."""
    for first, second in combinations(libraries.LIVE, 2):
        if first.method == second.method and set(first.names) & set(second.names):
            shared = min(len(first.arguments), len(second.arguments))
            assert first.arguments[:shared] != second.arguments[:shared], (first, second)
