"""Source -> Windows: what is needed of a volume, wherever it lies, and what is read of it for a sliding window."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aneurysm.cache.volume import read_box
from aneurysm.patches.samplers import grid_starts
from aneurysm.patches.views.view import Readable
from aneurysm.types import Triple, triple
from aneurysm.volume.blocks import HeadBlocks, Survey
from aneurysm.volume.intensity import Intensity


class Source(Readable, Protocol):
    """One volume that is predicted: an `aneurysm.cache.volume.CachedVolume`, or a `MemoryVolume`."""

    @property
    def affine_lps(self) -> NDArray[np.float64]:
        """(4, 4): (z, y, x, 1) to (x, y, z, 1) in LPS mm, voxel centres."""

    @property
    def blocks(self) -> HeadBlocks:
        """Where the head is, with a vessel mask's blocks if there is one."""


@dataclass(frozen=True)
class MemoryVolume:
    """
    A `Source` in memory.

    ``voxels`` are stored integers (z, y, x), ``fill`` is the stored value of air. ``modality`` is as in a
    manifest.
    """

    uid: str
    voxels: NDArray[Any]
    fill: int
    affine_lps: NDArray[np.float64]
    blocks: HeadBlocks
    intensity: Intensity
    modality: str = ""
    stored_survey: Survey | None = None
    """Of a cached volume; that of any other is found when it is asked for."""

    @cached_property
    def survey(self) -> Survey:
        """What lies where, by the voxels alone."""
        if self.stored_survey is not None:
            return self.stored_survey
        # Here, not above: scipy takes a while to load, and cached volumes do without it.
        from aneurysm.volume.head_and_vessels import survey

        # As of the spec, which the affine has in sums of squares.
        z, y, x = np.linalg.norm(self.affine_lps[:3, :3], axis=0).round(9).tolist()
        return survey(self.voxels, self.intensity, (z, y, x))

    @property
    def shape(self) -> Triple:
        """Voxels along (z, y, x)."""
        return _MemoryArray(self.voxels, self.fill).shape

    def read(self, start_zyx: Triple, shape_zyx: Triple) -> NDArray[Any]:
        """Return the stored integers of a box, as `aneurysm.cache.volume.CachedVolume.read` does."""
        return read_box(_MemoryArray(self.voxels, self.fill), start_zyx, shape_zyx)


@dataclass(frozen=True)
class _MemoryArray:
    voxels: NDArray[Any]
    fill: int

    @property
    def shape(self) -> Triple:
        z, y, x = self.voxels.shape
        return z, y, x

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.voxels.dtype

    def read(self, start: Triple, out: NDArray[Any]) -> None:
        out[...] = self.voxels[tuple(slice(s, s + n) for s, n in zip(start, out.shape, strict=True))]


@dataclass(frozen=True)
class Windows:
    """
    The windows of one volume, and the voxels under them.

    Attributes
    ----------
    source
        Of the volume.
    starts
        First voxel (z, y, x) of each window in the volume; may be negative.
    parts
        (windows, 2, 3): for each window the first and last (z, y, x) of the part of the volume where it is the most
        central of the grid's windows, in voxel coordinates of the volume.
    voxels
        Stored integers of the box that holds all windows.
    corner
        First voxel of that box in the volume.
    """

    source: Source
    starts: list[Triple]
    parts: NDArray[np.float64]
    voxels: NDArray[Any]
    corner: Triple


def read_windows(source: Source, patch_shape: Triple, overlap: float) -> Windows:
    """
    Lay a grid of windows over the head, or the volume if no head was found, and read what is under them.

    The grid covers the box about the head, not the volume: windows beside it would show air, and those at its rim
    little else. Windows that touch no head even so are left out.

    Raises
    ------
    CacheError
        The volume can't be read.
    """
    low, high = source.blocks.head_box(source.shape)
    shape, patch = np.array(source.shape), np.array(patch_shape)
    grid = []
    for start in grid_starts(triple(high - low), patch_shape, overlap):
        # A window that is longer than the head shows what lies beside it, not what lies beyond the volume.
        within = np.clip(low + start, 0, np.maximum(shape - patch, 0))
        grid.append(triple(np.where(shape <= patch, (shape - patch) // 2, within)))
    starts = [start for start in grid if _touches_head(source.blocks, start, patch_shape)] or grid
    first = np.min(starts, axis=0)
    corner, size = triple(first), triple(np.max(starts, axis=0) - first + patch_shape)
    # Once, and all of it: windows that overlap by half would decode every chunk eight times.
    return Windows(source, starts, _parts(source.shape, grid, starts, patch_shape), source.read(corner, size), corner)


def _touches_head(blocks: HeadBlocks, start: Triple, patch_shape: Triple) -> bool:
    z, y, x = (slice(max(s, 0) // e, -(-(s + p) // e)) for s, p, e in zip(start, patch_shape, blocks.edge, strict=True))
    return bool(blocks.head[z, y, x].any())


def _parts(shape: Triple, grid: list[Triple], starts: list[Triple], patch_shape: Triple) -> NDArray[np.float64]:
    parts = np.empty((len(starts), 2, 3))
    for axis in range(3):
        along = sorted({start[axis] for start in grid})
        middles = np.array(along) + (patch_shape[axis] - 1) / 2
        # Halfway between the middles of neighbours; at the ends the outermost voxels, for padding is nobody's.
        seams = np.concatenate([[0], (middles[1:] + middles[:-1]) / 2, [shape[axis] - 1]])
        which = np.searchsorted(along, [start[axis] for start in starts])
        parts[:, 0, axis], parts[:, 1, axis] = seams[which], seams[which + 1]
    return parts
