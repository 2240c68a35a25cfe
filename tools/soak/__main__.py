"""`python -m tools.soak`."""

import faulthandler
import sys

from .command import main

if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
