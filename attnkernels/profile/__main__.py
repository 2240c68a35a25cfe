"""`python -m attnkernels.profile`."""

import sys

from .command import main

sys.exit(main())
