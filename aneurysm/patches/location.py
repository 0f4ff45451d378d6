"""PatchLocation: where a patch lies, and why there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from aneurysm.types import Triple

PatchKind = Literal["lesion", "vessel", "foreground", "uniform", "grid"]


@dataclass(frozen=True, slots=True)
class PatchLocation:
    """
    A box of one volume: what samplers yield, and readers turn into voxels.

    Attributes
    ----------
    volume
        Index of the volume in its `aneurysm.cache.cache.Cache`.
    start, shape
        First voxel, and lengths, along (z, y, x). A start is negative where the volume is smaller than the patch.
    why
        The sampler that chose the place.
    """

    volume: int
    start: Triple
    shape: Triple
    why: PatchKind

    def holds(self, volume_shape: ArrayLike) -> bool:
        """Return True if all of a volume of this shape lies in the patch."""
        start, volume = np.array(self.start), np.asarray(volume_shape)
        return bool(((start <= 0) & (start + self.shape >= volume)).all())
