"""
ResNet of 18 or 34 layers in 3D, with 14 outputs per patch (He et al. 2016; MONAI's blocks).

The stem is gentler than in two dimensions: at 32 voxels per cell a lesion of 2 to 5 mm would be lost in its cell.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from aneurysm.errors import UsageError
from aneurysm.labels import LABELS
from aneurysm.models.output import ModelOutput, start_at_prior

_BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3]}
_CHANNELS = [64, 128, 256, 512]
STRIDES = (8, 16, 32)
"""Voxels per cell of the last feature map that can be asked for."""


class ResNet3d(nn.Module):
    """
    Features, their mean over the patch, a linear layer.

    Parameters
    ----------
    in_channels
        Of the image.
    depth
        18 or 34.
    stride
        Voxels per cell of the last feature map: 8, 16 or 32.
    width
        Multiplies all channel numbers.
    """

    def __init__(self, in_channels: int = 1, *, depth: int = 18, stride: int = 16, width: float = 1.0) -> None:
        super().__init__()
        self.features = resnet_features(in_channels, depth=depth, stride=stride, width=width)
        self.head = nn.Linear(int(_CHANNELS[-1] * width), len(LABELS))
        start_at_prior(self.head, 0.05)

    def forward(self, image: Tensor) -> ModelOutput:
        """Map (B, C, Z, Y, X) in model units to the logits of each patch."""
        return ModelOutput(self.head(self.features(image).mean((2, 3, 4))))


def resnet_features(in_channels: int, *, depth: int, stride: int, width: float) -> nn.Sequential:
    """
    Return a ResNet without its head: (B, C, Z, Y, X) -> (B, 512 * width, Z / stride, Y / stride, X / stride).

    A cell's field of view is centred on its first voxel, as in all ResNets whose strided kernels have odd sizes. It is
    far wider than the cell, so the cell still sees all that it answers for.

    Raises
    ------
    UsageError
        There is no such depth or stride.
    """
    if depth not in _BLOCKS or stride not in STRIDES:
        raise UsageError(f"a ResNet of depth {depth} and stride {stride}: choose from {[*_BLOCKS]} and {[*STRIDES]}")
    # Here, not above: importing MONAI takes seconds, and loads pydicom and joblib.
    from monai.networks.nets.resnet import ResNet

    net = ResNet(
        "basic", _BLOCKS[depth], _CHANNELS, n_input_channels=in_channels, conv1_t_stride=2, widen_factor=width,
        # "A", the original's shortcut without weights, passes no gradient in MONAI.
        shortcut_type="B", bias_downsample=False, feed_forward=False,
    )  # fmt: skip
    if stride == 8:
        # MONAI always halves before the last stage; a stride has no weights, so that it can be taken back.
        first: Any = net.layer4[0]
        first.conv1.stride = first.downsample[0].stride = (1, 1, 1)
    names = ["conv1", "bn1", "act", *(["maxpool"] if stride == 32 else []), "layer1", "layer2", "layer3", "layer4"]
    return nn.Sequential(OrderedDict((name, getattr(net, name)) for name in names))
