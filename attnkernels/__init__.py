"""Additive attention for PyTorch, with memory that grows with n + m instead of n * m * d."""

from .functional.attention import additive_attention, additive_attention_varlen, additive_scores
from .functional.edges import Edges, prepare_edges
from .functional.memory import AdditiveMemory, prepare_keys
from .functional.sparse import additive_attention_sparse

__version__ = "0.1.0"

__all__ = [
    "AdditiveMemory",
    "Edges",
    "__version__",
    "additive_attention",
    "additive_attention_sparse",
    "additive_attention_varlen",
    "additive_scores",
    "prepare_edges",
    "prepare_keys",
]
