"""The public functions: the meaning of additive attention, whichever backend computes it."""

from .attention import additive_attention, additive_attention_varlen, additive_scores
from .edges import Edges, prepare_edges
from .memory import AdditiveMemory, prepare_keys
from .sparse import additive_attention_sparse

__all__ = [
    "AdditiveMemory",
    "Edges",
    "additive_attention",
    "additive_attention_sparse",
    "additive_attention_varlen",
    "additive_scores",
    "prepare_edges",
    "prepare_keys",
]
