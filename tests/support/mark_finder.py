"""A model that sees the marks of painted volumes, and nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.functional import max_pool3d

from aneurysm.labels import LABELS
from aneurysm.models.output import ModelOutput
from tests.support.painted import STEP, WINDOW

SURE = 8.0


class Finds(nn.Module):
    """Answers `SURE` where a mark lies, and -SURE elsewhere; with a map of a cell per ``stride`` voxels, or none."""

    def __init__(self, stride: int | None = 1) -> None:
        super().__init__()
        self.stride, self.batches = stride, []

    def forward(self, image: torch.Tensor) -> ModelOutput:
        assert not torch.is_grad_enabled()
        assert image.dtype == torch.float32
        self.batches.append(len(image))
        sites = torch.arange(1, 14)[:, None, None, None] * STEP / (WINDOW[1] - WINDOW[0])
        found = ((image[:, :1] - sites).abs() < 1e-3).float()
        found = torch.cat([found, found.amax(1, keepdim=True)], 1)
        logits = (2 * found.amax((2, 3, 4)) - 1) * SURE
        if self.stride is None:
            return ModelOutput(logits)
        dense = max_pool3d(found, self.stride, ceil_mode=True) * 2 - 1
        return ModelOutput(logits, dense * SURE, (self.stride,) * 3)


def sites_of(prediction) -> set[str]:
    """The labels that the series is said to have."""
    return {LABELS[i] for i in np.flatnonzero(prediction.probabilities > 0.5)}
