"""`python -m benchmarks.suite`."""

import sys

from .run import main

sys.exit(main())
