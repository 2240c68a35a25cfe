"""Attention over sequences that are shared by the ranks of torch.distributed."""

from .context import context_parallel_attention
from .heads import HeadsParallel
from .merge import merge_attention
from .sequence import gather_sequence, split_sequence

__all__ = [
    "HeadsParallel",
    "context_parallel_attention",
    "gather_sequence",
    "merge_attention",
    "split_sequence",
]
