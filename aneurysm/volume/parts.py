"""Parts of a volume -> its planes: each part on its own axes, carried into the common grid, and what covers a voxel.

The largest part is resampled straight onto the grid, which has its axes. Every other part is resampled on axes of its
own, at the grid's spacing, and read from there by trilinear interpolation. A voxel shows the largest part that covers
it. Between two parts it is interpolated, if the gap is no wider than one within a stack may be; where parts of another
tilt diverge further, slices stand for half a gap as at the end of any stack, and beyond there is air.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from aneurysm.dicom.geometry import SliceGeometry
from aneurysm.dicom.stack import Stack
from aneurysm.volume.grid import TargetGrid

_ROUNDING_MM = 1e-6
_Places = NDArray[np.float64] | np.float64


@dataclass(frozen=True)
class Coverage:
    """
    Which points a part covers.

    Attributes
    ----------
    geometry
        Of its slices.
    shape
        Rows and columns of a slice.
    """

    geometry: SliceGeometry
    shape: tuple[int, int]

    @classmethod
    def of(cls, part: Stack) -> Coverage:
        """Return what a part of a stack covers."""
        fmt = part.frames[0].format
        return cls(part.geometry, (fmt.rows, fmt.columns))

    def local_mm(self, lps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return points (..., 3) in LPS mm as (..., 3) mm along slices, rows and columns, for `beyond_mm`."""
        return np.asarray((lps_mm - self.geometry.origin) @ self.geometry.axes[[2, 1, 0]].T)

    def beyond_mm(self, slice_mm: _Places, row_mm: _Places, column_mm: _Places) -> NDArray[np.float64]:
        """
        Return how far points lie before the first slice (negative) or behind the last (positive), 0 between them.

        The points are in mm from the first voxel of the first slice, along its axes; arrays that broadcast. NaN where a
        point lies outside the sides of the slices.
        """
        geometry = self.geometry
        last = geometry.positions_mm[-1]
        within = np.clip(slice_mm, 0.0, last)
        inside: NDArray[np.bool_] | np.bool_ = np.True_
        for place, shifts, step, size in (
            (row_mm, geometry.shifts_mm[:, 1], geometry.spacing_mm[0], self.shape[0]),
            (column_mm, geometry.shifts_mm[:, 0], geometry.spacing_mm[1], self.shape[1]),
        ):
            along = place - np.interp(within, geometry.positions_mm, shifts)
            inside = inside & (along >= -step / 2 - _ROUNDING_MM) & (along <= (size - 0.5) * step + _ROUNDING_MM)
        return np.where(inside, slice_mm - within, np.nan)


@dataclass(frozen=True)
class OtherPart:
    """
    A part beside the largest one, resampled on its own axes.

    Attributes
    ----------
    coverage
        What it covers.
    grid
        The voxels, in acquisition order (slice, row, column).
    values
        float32 (slice, column, row), above air.
    """

    coverage: Coverage
    grid: TargetGrid
    values: NDArray[np.float32]


class PartMerger:
    """
    Puts the planes of a volume together from those of its parts.

    Parameters
    ----------
    main, grid
        What the largest part covers, and the common grid, which has its axes.
    others
        The other parts, the largest first.
    reach_mm
        The widest gap between parts that is interpolated across. Planes of all parts must be given as far beyond their
        outermost slices.
    """

    def __init__(self, main: Coverage, grid: TargetGrid, others: Sequence[OtherPart], reach_mm: float) -> None:
        self._main, self._grid, self._others, self._reach_mm = main, grid, others, reach_mm
        parts = [main, *(o.coverage for o in others)]
        self._half_gaps = np.array([p.geometry.slice_spacing_mm / 2 for p in parts])
        self._senses = np.sign([p.geometry.axes[2] @ main.geometry.axes[2] for p in parts])[:, None, None]

    def plane(self, index: int, main: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Return (columns, rows) of plane ``index``, above air; ``main`` is that of the largest part, None for air."""
        slices, rows, columns = self._grid.axes
        place = np.float64(slices.positions_mm[index])
        row_mm, column_mm = rows.positions_mm[None, :], columns.positions_mm[:, None]
        shape = (columns.size, rows.size)
        values = [np.zeros(shape, np.float32) if main is None else main]
        beyond = [np.broadcast_to(self._main.beyond_mm(place, row_mm, column_mm), shape)]
        for part in self._others:
            value, distance = self._of_other(part, place, row_mm, column_mm)
            values.append(value)
            beyond.append(distance)
        return self._merged(np.stack(values), np.stack(beyond) * self._senses)

    def _of_other(
        self, part: OtherPart, place: np.float64, row_mm: NDArray[np.float64], column_mm: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return the values of a part on a plane, and how far beyond its slices each voxel lies."""
        here, own = self._main.geometry, part.coverage.geometry
        turn = here.axes[[2, 1, 0]] @ own.axes[[2, 1, 0]].T
        start = part.coverage.local_mm(here.origin)
        local = [start[k] + place * turn[0, k] + row_mm * turn[1, k] + column_mm * turn[2, k] for k in range(3)]
        beyond = part.coverage.beyond_mm(*local)
        if not (np.abs(beyond) <= self._reach_mm).any():
            return np.zeros(beyond.shape, np.float32), beyond
        along = [(local[k] - axis.start_mm) / axis.spacing_mm for k, axis in enumerate(part.grid.axes)]
        order = [along[0], along[2], along[1]]  # as the values: slice, column, row
        found = ndimage.map_coordinates(part.values, order, np.float32, order=1, mode="nearest")
        return found, beyond

    def _merged(self, values: NDArray[np.float32], beyond: NDArray[np.float64]) -> NDArray[np.float32]:
        """Choose or mix values (parts, columns, rows); ``beyond`` counts along the normal of the largest part."""
        distance = np.where(np.isnan(beyond), np.inf, np.abs(beyond))
        inside = distance <= _ROUNDING_MM
        order = np.argsort(distance, axis=0, kind="stable")[:2]  # the nearest two; equals stay in order of their size
        value, far_value = np.take_along_axis(values, order, 0)
        near, far = np.take_along_axis(distance, order, 0)
        side, far_side = np.take_along_axis(beyond, order, 0)
        half_gap = self._half_gaps[order[0]]
        gap = near + far
        between = (gap <= self._reach_mm) & (side * far_side < 0)
        share = np.divide(near, gap, out=np.zeros_like(near), where=between)
        result = np.where(near <= half_gap + _ROUNDING_MM, value, 0)
        result = np.where(between, value + share * (far_value - value), result)
        return np.asarray(np.where(inside.any(axis=0), value, result), np.float32)
