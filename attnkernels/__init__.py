"""Additive attention for PyTorch, with memory that grows with n + m instead of n * m * d."""

from .functional.attention import additive_attention, additive_attention_varlen, additive_scores
from .functional.memory import AdditiveMemory, prepare_keys

__version__ = "0.1.0"

__all__ = [
    "AdditiveMemory",
    "__version__",
    "additive_attention",
    "additive_attention_varlen",
    "additive_scores",
    "prepare_keys",
]
