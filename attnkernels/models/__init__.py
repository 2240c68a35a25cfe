"""The systems that attention came from, one file each, to be read beside its paper."""

from .glimpse import Glimpses, RecurrentAttentionModel, glimpse, hybrid_loss
from .pointer import PointerNetwork
from .rnnsearch import RNNsearch
from .seq2seq import Seq2Seq
from .show_attend_tell import ConvEncoder, Description, ShowAttendTell

__all__ = [
    "ConvEncoder",
    "Description",
    "Glimpses",
    "PointerNetwork",
    "RNNsearch",
    "RecurrentAttentionModel",
    "Seq2Seq",
    "ShowAttendTell",
    "glimpse",
    "hybrid_loss",
]
