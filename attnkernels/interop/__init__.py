"""Attention of other libraries: their checkpoints, and their live modules swapped in place."""

from .core.convention import CONVENTIONS, Convention, Entry
from .core.load import Loaded, load_state_dict_from
from .core.replace import Replaced, replace_attention

__all__ = [
    "CONVENTIONS",
    "Convention",
    "Entry",
    "Loaded",
    "Replaced",
    "load_state_dict_from",
    "replace_attention",
]
