"""`python -m benchmarks.ceiling`: the ceiling of one core of this machine, as JSON."""

import json

from .cpu import ceiling

print(json.dumps(ceiling(), indent=1))
