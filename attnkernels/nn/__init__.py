"""Modules of additive attention: projections, decoders, graphs, pointers, pooling, and searches."""

from .attention import AdditiveAttention, PreparedMemory
from .coverage import CoverageAttention, coverage_loss
from .decoding import Decoded, beam_search, greedy_search
from .graph import GraphAttention
from .hard import HardAttention, HardChoice, score_function_loss
from .location import LocationSensitiveAttention
from .monotonic import MonotonicAttention, expected_alignment
from .pointer import PointerHead
from .pointer_generator import PointerGenerator
from .pooling import AttentionPooling
from .projected import AlignmentState, ProjectedMemory
from .projections import Projections
from .reading import Alignment, DecoderAttention
from .rnn import AttentionRNN
from .state import DecoderState
from .tracing import copy_unknown

__all__ = [
    "AdditiveAttention",
    "Alignment",
    "AlignmentState",
    "AttentionPooling",
    "AttentionRNN",
    "CoverageAttention",
    "Decoded",
    "DecoderAttention",
    "DecoderState",
    "GraphAttention",
    "HardAttention",
    "HardChoice",
    "LocationSensitiveAttention",
    "MonotonicAttention",
    "PointerGenerator",
    "PointerHead",
    "PreparedMemory",
    "ProjectedMemory",
    "Projections",
    "beam_search",
    "copy_unknown",
    "coverage_loss",
    "expected_alignment",
    "greedy_search",
    "score_function_loss",
]
