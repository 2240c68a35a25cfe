"""Public functions and methods say what they return: no `Any`, and nothing left out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module

import pytest

MODULES = ("", ".nn", ".models", ".interop", ".viz")
ANY = re.compile(r"\bAny\b")


def public_functions() -> Iterator[tuple[str, object]]:
    """Yield every public function, and every public method that this project defines."""
    for suffix in MODULES:
        module = import_module(f"attnkernels{suffix}")
        for name in module.__all__:
            each = getattr(module, name)
            if inspect.isfunction(each):
                yield f"{module.__name__}.{name}", each
            elif inspect.isclass(each):
                for part, method in vars(each).items():
                    if inspect.isfunction(method) and not part.startswith("_"):
                        yield f"{module.__name__}.{name}.{part}", method


FUNCTIONS = dict(public_functions())


def test_there_are_functions_to_look_at() -> None:
    assert {"attnkernels.additive_attention", "attnkernels.nn.AttentionRNN.step"} <= set(FUNCTIONS)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_results_have_types(name: str) -> None:
    returned = inspect.signature(FUNCTIONS[name]).return_annotation
    assert returned is not inspect.Signature.empty, f"{name} does not say what it returns"
    assert not ANY.search(str(returned)), f"{name} returns {returned}"
