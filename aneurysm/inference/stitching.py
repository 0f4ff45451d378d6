"""
Maps of windows -> one map of the volume: each voxel from the window whose middle is nearest.

That is the window which sees most of the voxel's surroundings, and the one that candidates are taken from, so that the
map has a candidate's probability at its place. A mean over all windows would lower it by what windows say at whose
rim it lies; a maximum would keep each false alarm that padding raises there.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aneurysm.patches.location import Triple


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

    def add(
        self, dense: Tensor, stride_zyx: tuple[int, int, int], start: NDArray[np.int64], part: NDArray[np.float64]
    ) -> None:
        """
        Take one window's share of the map.

        Parameters
        ----------
        dense, stride_zyx
            (14, z, y, x) logits, and voxels per cell; see `aneurysm.models.output.ModelOutput`.
        start
            First voxel (z, y, x) of the window in the volume.
        part
            (2, 3): first and last (z, y, x) of its share, in voxels of the volume; both may lie between voxels.
        """
        first, last = np.ceil(part[0]).astype(int), np.floor(part[1]).astype(int)
        # A voxel has its cell's value, not one between cells: where a seam cuts a cell, its middle may be in neither
        # share, and its value would be lost.
        z, y, x = (
            (torch.arange(a, b + 1, device=dense.device) - s) // stride
            for a, b, s, stride in zip(first.tolist(), last.tolist(), start.tolist(), stride_zyx, strict=True)
        )
        logits = dense[self._label][z[:, None, None], y[None, :, None], x].float()
        share = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
        self.values[share] = logits.sigmoid().cpu().numpy()
