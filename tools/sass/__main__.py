"""`python -m tools.sass`."""

import sys

from .run import main

sys.exit(main())
