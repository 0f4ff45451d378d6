"""SeriesPictures: the pictures of one series that a view shows, and where in the volume what they show is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aneurysm.patches.views.pictures import read_pictures, voxel_of
from aneurysm.patches.views.view import Picture, Pictures
from aneurysm.types import Triple
from aneurysm.windows.candidates import map_peaks
from aneurysm.windows.grid import Source

_PEAKS_FOR_EACH: Final = 10
"""Peaks that are looked up in the volume for each candidate: several pictures may show one lesion."""


@dataclass(frozen=True)
class SeriesPictures:
    """
    Attributes
    ----------
    source
        Of the volume.
    pictures
        By channel.
    voxels
        (channels, pictures, rows, columns) stored integers.
    """

    source: Source
    pictures: list[list[Picture]]
    voxels: NDArray[Any]

    @property
    def starts(self) -> list[Triple]:
        """One sample, of the whole volume; as `aneurysm.windows.grid.Windows` has many."""
        return [(0, 0, 0)]

    def peaks(self, dense: Tensor, stride: Triple, n: int) -> NDArray[np.float32]:
        """
        Return the highest peaks of a map of the pictures, in the volume.

        Parameters
        ----------
        dense, stride
            (14, pictures, y, x) logits, and pictures and pixels per cell; see `aneurysm.models.output.ModelOutput`.
        n
            Candidates that are wanted of them.

        Returns
        -------
        NDArray
            (m, 5) rows of site, logit, and (z, y, x) in the volume.
        """
        last = np.array(self.voxels.shape[2:]) - 1
        found = []
        # Each by itself: pictures side by side in a bag are no neighbours.
        for number in range(dense.shape[1]):
            part = np.array([[0, 0, 0], [0, *last]], np.float64)
            peaks = map_peaks(dense[:, number : number + 1], (1, stride[1], stride[2]), part)
            peaks[:, 2] = number * stride[0]
            found.append(peaks)
        rows = torch.cat(found).cpu().numpy()
        rows = rows[np.argsort(-rows[:, 1], kind="stable")][: n * _PEAKS_FOR_EACH]
        for row in rows:
            channel = self.pictures[len(self.pictures) // 2]  # of neighbours, the slice in their middle
            row[2:] = voxel_of(self.source, channel[min(int(row[2]), len(channel) - 1)], *row[3:].tolist())
        return rows


def read_series_pictures(source: Source, view: Pictures) -> SeriesPictures:
    """
    Read what ``view`` shows of a volume: what it shows in training, without what is at random there.

    Raises
    ------
    CacheError
        The volume can't be read.
    """
    chosen = view.choose(source)
    voxels = np.empty((view.channels, *view.shape), source.read((0, 0, 0), (0, 0, 0)).dtype)
    read_pictures(source, chosen, voxels)
    return SeriesPictures(source, chosen, voxels)
