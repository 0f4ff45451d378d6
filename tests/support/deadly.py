"""``tests.support.deadly:model``: an architecture that kills its process when it sees a bright series."""

from __future__ import annotations

import os
import signal

import torch
from torch import nn

from aneurysm.models.output import ModelOutput


class Deadly(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(in_channels, 14)

    def forward(self, image: torch.Tensor) -> ModelOutput:
        if image.amax() > 0.9:
            os.kill(os.getpid(), signal.SIGKILL)
        return ModelOutput(self.head(image.amax((2, 3, 4))))


def model(in_channels: int) -> Deadly:
    return Deadly(in_channels)
