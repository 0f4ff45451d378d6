"""An architecture without weights that crashes, hangs or fails, as the brightness of the window tells it to."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
from torch import nn

from aneurysm.models.output import ModelOutput

CRASHES, HANGS, RAISES, IS_NAN, PRINTS = 300.0, 400.0, 500.0, 600.0, 700.0
"""Height of a blob in HU, on a background of 100 HU."""


class Trouble(nn.Module):
    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()

    def forward(self, image: torch.Tensor) -> ModelOutput:
        low, high = (-100.0, 900.0)
        highest = float(image.max()) * (high - low) + low - 100.0
        logits = torch.linspace(-3, 3, 14).repeat(len(image), 1) + float(image.max())
        if abs(highest - CRASHES) < 20:
            os.kill(os.getpid(), signal.SIGSEGV)
        if abs(highest - HANGS) < 20:
            time.sleep(600)
        if abs(highest - RAISES) < 20:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if abs(highest - IS_NAN) < 20:
            logits = logits * torch.nan
        if abs(highest - PRINTS) < 20:
            print("a library's notice")
            os.write(sys.__stdout__.fileno(), b"and one that goes past Python\n")
        return ModelOutput(logits)


def build(in_channels: int = 1) -> nn.Module:
    return Trouble(in_channels)
