"""View: what a model sees of a volume. A box that a sampler places, or pictures of the whole series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from aneurysm.types import Triple
from aneurysm.volume.blocks import Survey
from aneurysm.volume.intensity import Intensity

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: Final[dict[Plane, int]] = {"axial": 0, "coronal": 1, "sagittal": 2}
"""By the axis, of (z, y, x), that runs across the picture. Rows and columns are the other two, in this order."""
Planes = tuple[tuple[tuple[int, int], ...], ...]
"""See `Pictures.planes`."""
Scope = Literal["patch", "series"]
"""What labels a sample: the lesions in it, or the labels of its series."""
Reduction = Literal["max", "min", "mean", "std"]


class Readable(Protocol):
    """
    A volume that views read: an `aneurysm.cache.volume.CachedVolume`, or an `aneurysm.windows.grid.MemoryVolume`.

    ``read(start, shape)`` returns the stored integers of a box (z, y, x), padded with air outside the volume.
    """

    @property
    def uid(self) -> str:
        """The series."""

    @property
    def shape(self) -> Triple:
        """Voxels along (z, y, x)."""

    @property
    def fill(self) -> int:
        """Stored value of air."""

    @property
    def survey(self) -> Survey:
        """What lies where, by the voxels alone."""

    @property
    def intensity(self) -> Intensity:
        """What its stored integers mean."""

    def read(self, start_zyx: Triple, shape_zyx: Triple) -> NDArray[Any]:
        """Return the stored integers of a box."""


@dataclass(frozen=True)
class Box:
    """
    A box of the volume, which samplers place, and windows of it cover the head: views `patch3d` and `slab`.

    Attributes
    ----------
    shape
        Voxels along (z, y, x).
    """

    shape: Triple
    channels: int = 1
    scope: Scope = "patch"
    planes: None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """
    One picture: the slices ``first`` to ``last`` (not included) across ``axis``, reduced to one.

    Attributes
    ----------
    axis
        Of (z, y, x), across the picture.
    first, last
        Voxels along it. The part outside the volume is left out.
    corner
        Voxel (row, column) of the first pixel; may be negative.
    how
        Of several slices.
    """

    axis: int
    first: int
    last: int
    corner: tuple[int, int]
    how: Reduction = "max"


class Pictures(Protocol):
    """
    Pictures of the whole series, of one size: views `slices` and `mip`.

    Attributes
    ----------
    shape
        (pictures, rows, columns) of a sample.
    channels
        Of each of the pictures.
    planes
        (channels, pictures): of each the axis across it, and the row of pictures that it belongs to: those of one axis
        and row lie side by side, in their order. The same in every sample.
    """

    @property
    def shape(self) -> Triple:
        """(pictures, rows, columns)."""

    @property
    def channels(self) -> int:
        """Of each picture."""

    @property
    def scope(self) -> Literal["series"]:
        """Labelled as the series is."""

    @property
    def planes(self) -> Planes:
        """(channels, pictures)."""

    def choose(self, volume: Readable, rng: np.random.Generator | None = None) -> list[list[Picture]]:
        """Return the pictures of a volume by channel: with a generator at random, if the view has something random."""


View = Box | Pictures


def describe_view(view: View) -> str:
    """Return what a sample is, as in "64 x 64 x 64 voxels"."""
    if isinstance(view, Box):
        return f"patches of {' x '.join(map(str, view.shape))} voxels"
    pictures, rows, columns = view.shape
    channels = f" of {view.channels} channels" if view.channels > 1 else ""
    return f"series, each {pictures} picture{'s' * (pictures > 1)} of {rows} x {columns} pixels{channels}"


def frame_start(volume: Readable, size: Triple) -> Triple:
    """
    Return the first voxel of the box of ``size`` about the head from which pictures are cut; may be negative.

    The head is in its middle. Of one that is longer than the box, with a neck, it holds the upper end.
    """
    low, high = volume.survey.head_box(volume.shape)
    z, y, x = (int(a + b - n) // 2 for a, b, n in zip(low, high, size, strict=True))
    if high[0] - low[0] > size[0]:
        z = int(high[0]) - size[0]
    return z, y, x


def in_plane(axis: int) -> tuple[int, int]:
    """Return the axes of (z, y, x) along the rows and columns of a picture across ``axis``."""
    row, column = (a for a in range(3) if a != axis)
    return row, column


def rows_and_columns(axis: int, zyx: Triple) -> tuple[int, int]:
    """Return of three numbers along (z, y, x) those along the rows and columns of a picture across ``axis``."""
    row, column = in_plane(axis)
    return zyx[row], zyx[column]


def across(axis: int, along: int, rows: int, columns: int) -> Triple:
    """Return (z, y, x) of what has ``along`` across the picture, and rows and columns in it."""
    z, y, x = [along, rows, columns] if axis == 0 else [rows, along, columns] if axis == 1 else [rows, columns, along]
    return z, y, x


def grouped_by_plane(planes: Planes) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Return (channel, picture) of the pictures of each axis and row, in their order along the axis."""
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for picture in range(len(planes[0])):
        for channel, row in enumerate(planes):
            groups.setdefault(row[picture], []).append((channel, picture))
    return groups
