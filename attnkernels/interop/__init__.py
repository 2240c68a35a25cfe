"""Attention of other libraries: their checkpoints in modules of `attnkernels.nn`."""

from .conventions import CONVENTIONS, Convention, Entry
from .load import Loaded, load_state_dict_from

__all__ = ["CONVENTIONS", "Convention", "Entry", "Loaded", "load_state_dict_from"]
