"""`python -m tools.sanitizer`."""

import sys

from .calls import main

sys.exit(main())
