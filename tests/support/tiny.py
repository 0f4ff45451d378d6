"""Architectures of one's own, small enough to train in a test: named as ``tests.support.tiny:classifier``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aneurysm.models.output import ModelOutput, mean_of_top


class Tiny(nn.Module):
    """Two convolutions with batch normalisation and dropout, so that statistics and randomness matter."""

    def __init__(self, in_channels: int, *, dense: bool, broken: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv3d(in_channels, 4, 3, stride=4, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Dropout3d(0.2)
        )
        self.head = nn.Conv3d(4, 14, 1)
        self.dense, self.broken = dense, broken

    def forward(self, image: Tensor) -> ModelOutput:
        maps = self.head(self.features(image))
        if self.broken and self.training:
            maps = maps / torch.zeros_like(maps)
        if self.dense:
            return ModelOutput(mean_of_top(maps, 2), maps, (4, 4, 4))
        return ModelOutput(maps.mean((2, 3, 4)))


def classifier(in_channels: int) -> Tiny:
    return Tiny(in_channels, dense=False)


def mapper(in_channels: int) -> Tiny:
    return Tiny(in_channels, dense=True)


class Everything(nn.Module):
    """All that a model can answer with, at several scales in training; no batch normalisation and no dropout."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv3d(in_channels, 4, 3, stride=2, padding=1), nn.ReLU())
        self.lesions, self.vessels = nn.Conv3d(4, 14, 1), nn.ConvTranspose3d(4, 14, 2, stride=2)

    def forward(self, image: Tensor) -> ModelOutput:
        features = self.features(image)
        maps = self.lesions(features)
        coarser = (nn.functional.avg_pool3d(maps, 2),) if self.training else ()
        return ModelOutput(mean_of_top(maps, 3), maps, (2, 2, 2), coarser, self.vessels(features))


def everything(in_channels: int) -> Everything:
    return Everything(in_channels)


def broken(in_channels: int) -> Tiny:
    return Tiny(in_channels, dense=False, broken=True)
