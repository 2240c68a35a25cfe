"""The public functions: the meaning of additive attention, whichever backend computes it."""

from .attention import additive_attention, additive_attention_varlen, additive_scores
from .memory import AdditiveMemory, prepare_keys

__all__ = [
    "AdditiveMemory",
    "additive_attention",
    "additive_attention_varlen",
    "additive_scores",
    "prepare_keys",
]
