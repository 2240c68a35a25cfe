"""Attention of other libraries: their checkpoints, and their live modules swapped in place."""

from .conventions import CONVENTIONS, Convention, Entry
from .load import Loaded, load_state_dict_from
from .replace import Replaced, replace_attention

__all__ = [
    "CONVENTIONS",
    "Convention",
    "Entry",
    "Loaded",
    "Replaced",
    "load_state_dict_from",
    "replace_attention",
]
