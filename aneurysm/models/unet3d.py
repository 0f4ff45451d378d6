"""
U-Net in 3D (MONAI's BasicUNet, 2.7 M parameters) with a map of lesions in 14 channels, one logit per voxel.

A patch's logit is the mean of its highest voxels. On request: maps from the coarser levels for deep supervision, and a
second head that segments the vessels, which taught the strongest published systems where to look.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aneurysm.errors import UsageError
from aneurysm.labels import LABELS
from aneurysm.models.output import ModelOutput, mean_of_top, start_at_prior

_CHANNELS = (24, 32, 64, 96, 128, 24)


class UNet3d(nn.Module):
    """
    Four times down and up again, by two; each edge of a patch is a multiple of 16, and at least 32.

    Parameters
    ----------
    in_channels
        Of the image.
    width
        Multiplies all channel numbers.
    deep_supervision
        In training, return maps at 2 and 4 voxels per cell, too.
    vessels
        Add the vessel head.
    top_voxels
        How many voxels make up a patch's logit: 64 are a sphere of 5 mm at 1 mm voxels.
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        width: float = 1.0,
        deep_supervision: bool = False,
        vessels: bool = False,
        top_voxels: int = 64,
    ) -> None:
        super().__init__()
        # Here, not above: importing MONAI takes seconds, and loads pydicom and joblib.
        from monai.networks.nets.basic_unet import BasicUNet

        channels = [int(c * width) for c in _CHANNELS]
        self.net = BasicUNet(in_channels=in_channels, out_channels=len(LABELS), features=channels)
        start_at_prior(self.net.final_conv, 0.01)
        coarser = channels[1:3] if deep_supervision else []
        self.coarser = nn.ModuleList(nn.Conv3d(c, len(LABELS), kernel_size=1) for c in coarser)
        for head in self.coarser:
            assert isinstance(head, nn.Conv3d)
            start_at_prior(head, 0.01)
        self.vessels = nn.Conv3d(channels[5], len(LABELS), kernel_size=1) if vessels else None
        if self.vessels is not None:
            start_at_prior(self.vessels, 0.01)
        self.top_voxels = top_voxels

    def forward(self, image: Tensor) -> ModelOutput:
        """
        Map (B, C, Z, Y, X) in model units to the map of logits and the logits of each patch.

        Raises
        ------
        UsageError
            An edge is not 32, 48, 64, ... voxels.
        """
        if any(edge % 16 or edge < 32 for edge in image.shape[2:]):
            raise UsageError(f"unet3d can't take {tuple(image.shape[2:])} voxels: each edge is 32, 48, 64, ...")
        net = self.net
        # BasicUNet.forward gives its levels only to itself, and has a test of types that stops torch.compile.
        x0 = net.conv_0(image)
        x1 = net.down_1(x0)
        x2 = net.down_2(x1)
        x3 = net.down_3(x2)
        u4 = _up(net.upcat_4, net.down_4(x3), x3)
        u3 = _up(net.upcat_3, u4, x2)
        u2 = _up(net.upcat_2, u3, x1)
        u1 = _up(net.upcat_1, u2, x0)
        dense = net.final_conv(u1)
        return ModelOutput(
            logits=mean_of_top(dense, self.top_voxels),
            dense=dense,
            coarser=tuple(head(u) for head, u in zip(self.coarser, (u2, u3), strict=False)) if self.training else (),
            vessels=self.vessels(u1) if self.vessels is not None else None,
        )


def _up(block: Any, coarse: Tensor, skipped: Tensor) -> Tensor:
    joined: Tensor = block.convs(torch.cat([skipped, block.upsample(coarse)], 1))
    return joined
