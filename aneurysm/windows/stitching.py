"""
Maps of windows -> one map of the volume: at each voxel the highest of what the windows say.

A series' probability is as a rule that of its surest window: so all that it rests on is in the map, in whole cells. A
mean would fade what one window is sure of by those at whose rim it lies; and the windows' most central parts laid side
by side cut through cells, which lie otherwise in each window: a seam can cost half a lesion.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aneurysm.types import Triple


class StitchedMap:
    """
    A label's map of one volume, to which windows are added in any order.

    Attributes
    ----------
    values
        (z, y, x) float32: probabilities, 0 where no window was looked at.
    """

    def __init__(self, shape: Triple, label: int) -> None:
        self.values = np.zeros(shape, np.float32)
        self._label = label

    def add(self, dense: Tensor, stride_zyx: tuple[int, int, int], start: Triple, patch_shape: Triple) -> None:
        """
        Take one window's map.

        Parameters
        ----------
        dense, stride_zyx
            (14, z, y, x) logits, and voxels per cell; see `aneurysm.models.output.ModelOutput`.
        start, patch_shape
            First voxel (z, y, x) of the window in the volume, and its size; it may reach beyond the volume.
        """
        share, cells = [], []
        for size, first, length, stride in zip(self.values.shape, start, patch_shape, stride_zyx, strict=True):
            low, high = max(first, 0), min(first + length, size)
            share.append(slice(low, high))
            # Each voxel has its cell's value: between cells the model says nothing.
            cells.append((torch.arange(low, high, device=dense.device) - first) // stride)
        z, y, x = cells
        logits = dense[self._label][z[:, None, None], y[None, :, None], x].float()
        seen = self.values[tuple(share)]
        np.maximum(seen, logits.sigmoid().cpu().numpy(), out=seen)
