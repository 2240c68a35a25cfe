"""Captions of images with soft or hard attention: Show, Attend and Tell (Xu et al., 1502.03044).

`encoder` turns images into annotations, `decoder` attends to them word by word, `losses` has the
two learning rules, and `model` puts them together.
"""

from .decoder import CaptionDecoder
from .encoder import ConvEncoder
from .model import Description, ShowAttendTell

__all__ = ["CaptionDecoder", "ConvEncoder", "Description", "ShowAttendTell"]
