"""`python -m attnkernels.profile`."""

import sys

from ..extras import MissingPackage

try:
    from .command import main
except MissingPackage as error:
    sys.exit(f"python -m attnkernels.profile: {error}")

if __name__ == "__main__":
    sys.exit(main())
