"""Mip: projections of the head along one, two or three axes, as a whole or in slabs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from aneurysm.errors import UsageError
from aneurysm.patches.views.slices import Stack
from aneurysm.patches.views.view import Picture, Planes, Readable, Reduction, frame_start, rows_and_columns
from aneurysm.types import Triple


@dataclass(frozen=True)
class Mip:
    """
    Projections of the box about the head.

    Whole volumes are decoded and projected by the worker, so that pictures leave it, and not voxels.

    Attributes
    ----------
    axes
        Of (z, y, x), along which is projected.
    slab
        Voxels of a slab along each axis; None projects all of the head at once.
    how
        Reductions, each a channel. "max" shows bright vessels, "min" dark ones, as those of T2; see
        `aneurysm.patches.views.pictures.read_pictures`.
    stack
        "bag": each projection is a picture of its own. "channels": all are channels of one.
    size
        Voxels (z, y, x) of the box about the head.

    Raises
    ------
    UsageError
        Pictures across several axes would be of different sizes.
    """

    axes: tuple[int, ...]
    slab: Triple | None
    how: tuple[Reduction, ...]
    stack: Stack
    size: Triple
    scope: Literal["series"] = field(default="series", init=False)

    def __post_init__(self) -> None:
        sizes = {rows_and_columns(axis, self.size) for axis in self.axes}
        if len(sizes) > 1:
            raise UsageError(
                f"projections along several axes of {self.size} voxels are pictures of different sizes: they can't be "
                "stacked. Project along one axis, or take a cache whose voxels are cubes"
            )

    @property
    def _slabs(self) -> list[tuple[int, int, int]]:
        """(axis, first, last) of each projection, in voxels of the box."""
        found = []
        for axis in self.axes:
            length = self.size[axis]
            thick = length if self.slab is None else min(self.slab[axis], length)
            found += [(axis, first, min(first + thick, length)) for first in range(0, length, thick)]
        return found

    @property
    def shape(self) -> Triple:
        """(pictures, rows, columns)."""
        return (1 if self.stack == "channels" else len(self._slabs)), *rows_and_columns(self.axes[0], self.size)

    @property
    def channels(self) -> int:
        """Of each picture."""
        return len(self.how) * (len(self._slabs) if self.stack == "channels" else 1)

    @property
    def planes(self) -> Planes:
        """See `aneurysm.patches.views.view.Pictures`."""
        rows = tuple(tuple((axis, k) for axis, _, _ in self._slabs) for k in range(len(self.how)))
        return rows if self.stack == "bag" else tuple((plane,) for row in rows for plane in row)

    def choose(self, volume: Readable, _rng: np.random.Generator | None = None) -> list[list[Picture]]:
        """Return the projections of a volume by channel; see `aneurysm.patches.views.view.Pictures`."""
        frame = frame_start(volume, self.size)
        rows = [
            [
                Picture(axis, frame[axis] + first, frame[axis] + last, rows_and_columns(axis, frame), how)
                for axis, first, last in self._slabs
            ]
            for how in self.how
        ]
        return rows if self.stack == "bag" else [[picture] for row in rows for picture in row]
