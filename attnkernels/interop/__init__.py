"""Attention of other libraries: their checkpoints read, and their live modules swapped in place.

Every library is one file of this package, and `core` finds and reads them all.
"""

from .core.convention import Convention, Entry
from .core.libraries import CONVENTIONS
from .core.load import Loaded, load_state_dict_from
from .core.replace import Replaced, replace_attention, restore_attention

__all__ = [
    "CONVENTIONS",
    "Convention",
    "Entry",
    "Loaded",
    "Replaced",
    "load_state_dict_from",
    "replace_attention",
    "restore_attention",
]
