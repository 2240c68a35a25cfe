"""`python -m tools.sanitizer`."""

import sys

from .calls import main

if __name__ == "__main__":
    sys.exit(main())
