"""
A small convolutional network in 3D with the 14 outputs at every cell of 4 voxels: what a CPU trains in minutes.

Its first convolutions see every voxel, and maxima carry a bright spot upwards. So it finds blobs on vessels after a few
hundred steps, long before a ResNet, whose stem takes every second voxel; but it sees no more than 26 voxels, which is
too little to tell most sites apart.
"""

from __future__ import annotations

from torch import Tensor, nn

from aneurysm.labels import LABELS
from aneurysm.models.output import ModelOutput, mean_of_top, start_at_prior

_CHANNELS = (8, 16, 32, 32)


class CNN3d(nn.Module):
    """
    Four convolutions with two halvings between them, and a linear layer at each cell.

    Parameters
    ----------
    in_channels
        Of the image.
    width
        Multiplies all channel numbers, which stay at 4 or more.
    top_cells
        How many cells make up a patch's logit.
    """

    def __init__(self, in_channels: int = 1, *, width: float = 1.0, top_cells: int = 2) -> None:
        super().__init__()
        a, b, c, d = (max(4, int(n * width)) for n in _CHANNELS)
        self.features = nn.Sequential(
            _layer(in_channels, a), _halved(), _layer(a, b), _halved(), _layer(b, c), _layer(c, d)
        )
        self.head = nn.Conv3d(d, len(LABELS), kernel_size=1)
        start_at_prior(self.head, 0.01)
        self.top_cells = top_cells

    def forward(self, image: Tensor) -> ModelOutput:
        """Map (B, C, Z, Y, X) in model units, to the map of logits and the logits of each patch."""
        dense = self.head(self.features(image))
        return ModelOutput(mean_of_top(dense, self.top_cells), dense, (4, 4, 4))


def _halved() -> nn.MaxPool3d:
    return nn.MaxPool3d(2, ceil_mode=True)  # the last cell may reach beyond the patch


def _layer(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm3d(channels_out), nn.ReLU()
    )
