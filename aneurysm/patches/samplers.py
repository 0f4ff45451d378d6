"""One volume -> where a patch of it lies, from the volume's shape, blocks and lesions alone.

Each sampler chooses a focus, and the patch lies anywhere about it: the focus is no more likely in the patch's middle
than beside it. Patches stay within the volume as far as they fit, whatever the sampler; were only those about lesions
allowed to hang out, a model would learn that padding means aneurysm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aneurysm.types import Triple
from aneurysm.volume.blocks import Blocks

PatchKind = Literal["lesion", "vessel", "foreground", "uniform", "grid", "series"]


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


def uniform_start(rng: np.random.Generator, volume: Triple, patch: Triple) -> Triple:
    """Return any start at which the patch lies within the volume, or, along axes where it is longer, contains it."""
    z, y, x = (_between(rng, *_allowed(n, p)) for n, p in zip(volume, patch, strict=True))
    return z, y, x


def block_start(
    rng: np.random.Generator, volume: Triple, patch: Triple, blocks: Blocks, chosen: NDArray[np.bool_]
) -> Triple:
    """
    Return a start about a voxel of the ``chosen`` blocks, each voxel of which is equally likely.

    The voxel lies in the middle half of the patch along each axis, as far as the volume's faces allow.
    """
    places = np.flatnonzero(chosen)
    if len(places) == 0:
        return uniform_start(rng, volume, patch)
    # Blocks at the far faces are smaller. To draw the voxel, not the block, what falls outside is drawn again.
    while True:
        block = np.unravel_index(int(places[rng.integers(len(places))]), chosen.shape)
        focus = [int(b) * e + int(rng.integers(e)) for b, e in zip(block, blocks.edge, strict=True)]
        if all(f < n for f, n in zip(focus, volume, strict=True)):
            break
    z, y, x = (_about(rng, f, p // 4, n, p) for f, n, p in zip(focus, volume, patch, strict=True))
    return z, y, x


def lesion_start(
    rng: np.random.Generator, volume: Triple, patch: Triple, lesion_zyx: NDArray[np.float32], margin: Triple
) -> Triple:
    """
    Return a start such that the lesion lies anywhere in the patch, but for ``margin`` voxels from each face.

    Near a face of the volume the margin gives way, since the patch can't lie outside.
    """
    z, y, x = (
        _about(rng, round(float(c)), min(m, (p - 1) // 2), n, p)
        for c, m, n, p in zip(lesion_zyx, margin, volume, patch, strict=True)
    )
    return z, y, x


def _allowed(volume: int, patch: int) -> tuple[int, int]:
    """Return the first and last start at which the shorter of the two lies within the longer."""
    return min(0, volume - patch), max(0, volume - patch)


def _about(rng: np.random.Generator, focus: int, margin: int, volume: int, patch: int) -> int:
    """Return a start at which ``focus`` is at least ``margin`` voxels from either end, if any allowed one does that."""
    first, last = _allowed(volume, patch)
    low, high = focus - (patch - 1 - margin), focus - margin
    if high < first:
        return first
    if low > last:
        return last
    return _between(rng, max(low, first), min(high, last))


def _between(rng: np.random.Generator, first: int, last: int) -> int:
    return int(rng.integers(first, last + 1))


def grid_starts(volume: Triple, patch: Triple, overlap: float) -> list[Triple]:
    """
    Return the starts of a sliding window that covers the volume, in C order.

    Neighbours share at least ``overlap`` of their length; the windows are spread evenly, the last ends at the
    volume's end. Along an axis where the patch is longer than the volume there is one window, with the volume in its
    middle.

    Raises
    ------
    ValueError
        ``overlap`` is not from 0 to below 1.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"an overlap of {overlap} is not from 0 to below 1")
    along = []
    for n, p in zip(volume, patch, strict=True):
        if n <= p:
            along.append([(n - p) // 2])
            continue
        step = max(1, int(p * (1 - overlap)))
        count = -(-(n - p) // step) + 1
        along.append([round(k * (n - p) / (count - 1)) for k in range(count)])
    return [(z, y, x) for z in along[0] for y in along[1] for x in along[2]]
