"""The encoder of Show, Attend and Tell: images to annotations (Xu et al., 1502.03044, 3.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...nn import inputs


class ConvEncoder(nn.Module):
    """Annotations with a receptive field of 12 x 12 pixels, one every 4 pixels (section 3.1.1).

    Attention to an annotation says where the model looks only if the annotation is local, which is
    why the paper uses a lower layer of a deep network. Local features do not know their own place,
    so two more channels hold its coordinates (1807.03247).

    Args:
        channels: channels of the images.
        annotation_dim: D, features of an annotation.

    Raises:
        ValueError: a size is not a positive int.
    """

    def __init__(self, channels: int = 1, annotation_dim: int = 128) -> None:
        super().__init__()
        channels, annotation_dim = inputs.sizes(channels=channels, annotation_dim=annotation_dim)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, annotation_dim, 4, stride=2, padding=1),
            nn.BatchNorm2d(annotation_dim),
            nn.ReLU(),
        )
        self.mix = nn.Conv2d(annotation_dim + 2, annotation_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the annotations (B, D, H // 4, W // 4) of images (B, channels, H, W)."""
        found = self.features(images)
        rows, columns = (torch.linspace(-1, 1, n).to(found) for n in found.shape[2:])
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        return self.mix(torch.cat([found, places.expand(len(found), -1, -1, -1)], 1)).relu()

    if TYPE_CHECKING:
        __call__ = forward
