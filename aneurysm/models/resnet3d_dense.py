"""
ResNet in 3D with the 14 outputs at every cell of its last feature map; a patch is the mean of its highest cells.

As the third place of the RSNA 2025 competition did: a lesion is found where it is, and a box may have any size.
"""

from __future__ import annotations

from torch import Tensor, nn

from aneurysm.labels import LABELS
from aneurysm.models.output import ModelOutput, mean_of_top, start_at_prior
from aneurysm.models.resnet3d import resnet_features


class ResNet3dDense(nn.Module):
    """
    Features, and a linear layer at each cell.

    Parameters
    ----------
    in_channels
        Of the image.
    depth
        18 or 34.
    stride
        Voxels per cell: 8, 16 or 32.
    width
        Multiplies all channel numbers.
    top_cells
        How many cells make up a patch's logit. A lesion near a corner of the grid touches eight cells, in the middle of
        a cell just one.
    """

    def __init__(
        self, in_channels: int = 1, *, depth: int = 18, stride: int = 8, width: float = 1.0, top_cells: int = 4
    ) -> None:
        super().__init__()
        self.features = resnet_features(in_channels, depth=depth, stride=stride, width=width)
        self.head = nn.Conv3d(int(512 * width), len(LABELS), kernel_size=1)
        start_at_prior(self.head, 0.01)
        self.stride = stride
        self.top_cells = top_cells

    def forward(self, image: Tensor) -> ModelOutput:
        """Map (B, C, Z, Y, X) in model units to the map of logits and the logits of each patch."""
        dense = self.head(self.features(image))
        return ModelOutput(mean_of_top(dense, self.top_cells), dense, (self.stride,) * 3)
