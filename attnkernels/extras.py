"""Say which extra to install when an optional package is missing.

The operators, modules and models need torch alone. Pictures, the profile and the examples need
more, which extras of the package bring.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # where a package is installed under another name


class MissingPackage(ImportError):
    """A package that an extra brings cannot be imported."""


@contextmanager
def needs(extra: str, *modules: str) -> Iterator[None]:
    """Name `extra` in the error when a package that it brings cannot be imported.

    Args:
        extra: the extra of attnkernels that brings the packages imported in the block.
        modules: modules to import before the block, for packages that are first used later.

    Raises:
        MissingPackage: a package cannot be imported; the message gives the command to install it.
    """
    try:
        for module in modules:
            import_module(module)
        yield
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        if package == "attnkernels":  # a fault of this package, which no extra mends
            raise
        package = DISTRIBUTIONS.get(package, package)
        raise MissingPackage(
            f'{package} is needed here: pip install "attnkernels[{extra}]"', name=error.name
        ) from error
