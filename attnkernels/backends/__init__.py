"""The backends that compute additive attention, in order of preference."""

from __future__ import annotations

from . import native as native
from . import reference as reference
from . import triton as triton
from .select import BACKENDS as BACKENDS
from .select import ON_GPU as ON_GPU
from .select import TRITON_FIRST as TRITON_FIRST
from .select import Preference as Preference
from .select import select as select
