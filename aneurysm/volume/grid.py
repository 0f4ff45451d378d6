"""Acquisition axes -> the target grid: which axis of the patient each is closest to, its voxels, and the affine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aneurysm.dicom.frame import PixelFormat
from aneurysm.dicom.geometry import SliceGeometry
from aneurysm.dicom.stack import Stack
from aneurysm.errors import Reason, SeriesRejectedError
from aneurysm.spec import CacheSpec
from aneurysm.volume.axes import closest_axes
from aneurysm.volume.weights import TargetAxis, target_axis

_SLICE, _ROW, _COLUMN = 0, 1, 2


@dataclass(frozen=True)
class TargetGrid:
    """
    The voxels of a volume to be, on the acquisition's own axes.

    ``axes`` are in acquisition order (slice, row, column), in mm from the first voxel of the first slice.
    ``order[i]`` is the acquisition axis of cached axis i (z, y, x), ``flipped[i]`` whether it runs the other way.
    """

    axes: tuple[TargetAxis, TargetAxis, TargetAxis]
    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    affine_lps: NDArray[np.float64]
    cropped: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (z, y, x)."""
        z, y, x = (self.axes[k].size for k in self.order)
        return z, y, x

    def to_cached(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Return a view of ``volume`` (slice, column, row), as `InPlane` leaves it, as (z, y, x)."""
        in_acquisition_order = volume.transpose(0, 2, 1)
        view = in_acquisition_order.transpose(self.order)
        return view[tuple(slice(None, None, -1 if f else 1) for f in self.flipped)]


def target_grid(stack: Stack, spec: CacheSpec) -> TargetGrid:
    """
    Lay the target grid over the field of view of ``stack``: the axes are the largest part's, and all parts lie within.

    Raises
    ------
    SeriesRejectedError
        It would have more voxels than the spec allows.
    """
    geometry = stack.geometry
    low, high = field_of_view(geometry, stack.frames[0].format, geometry.slice_spacing_mm / 2)
    directions = geometry.axes[[2, 1, 0]]  # of slice, row index, column index
    for part in stack.others:
        corners = (_corners(part) - geometry.origin) @ directions.T
        low, high = np.minimum(low, corners.min(axis=0)), np.maximum(high, corners.max(axis=0))
    return lay_grid(geometry.origin, directions, low, high, spec)


def field_of_view(
    geometry: SliceGeometry, fmt: PixelFormat, beyond_mm: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Return the edges (slice, row, column) of a block of slices, low and high, in mm from its first voxel's centre.

    ``beyond_mm`` is how far it reaches beyond the outermost slices.
    """
    low, high = np.zeros(3), np.zeros(3)
    low[_SLICE], high[_SLICE] = -beyond_mm, geometry.positions_mm[-1] + beyond_mm
    for axis, step, size, shifts in (
        (_ROW, geometry.spacing_mm[0], fmt.rows, geometry.shifts_mm[:, 1]),
        (_COLUMN, geometry.spacing_mm[1], fmt.columns, geometry.shifts_mm[:, 0]),
    ):
        # Rounded positions must not widen the field of view by a voxel.
        shifts = np.where(np.abs(shifts) < 0.01, 0.0, shifts)
        low[axis] = shifts.min() - step / 2
        high[axis] = shifts.max() + (size - 0.5) * step
    return low, high


def _corners(part: Stack) -> NDArray[np.float64]:
    """Return the corners of all slices of a part, the outermost ones half a gap further out: (n, 3) in LPS mm."""
    geometry, fmt = part.geometry, part.frames[0].format
    half_gap = geometry.slice_spacing_mm / 2
    places = geometry.positions_mm.copy()
    places[0] -= half_gap
    places[-1] += half_gap
    first = geometry.origin + places[:, None] * geometry.axes[2] + geometry.shifts_mm @ geometry.axes[:2]
    sides = [
        geometry.axes[0] * x * geometry.spacing_mm[1] + geometry.axes[1] * y * geometry.spacing_mm[0]
        for x in (-0.5, fmt.columns - 0.5)
        for y in (-0.5, fmt.rows - 0.5)
    ]
    return np.concatenate([first + side for side in sides])


def lay_grid(
    origin: NDArray[np.float64],
    directions: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    spec: CacheSpec,
) -> TargetGrid:
    """
    Lay the target grid over a field of view.

    Parameters
    ----------
    origin
        (3,): LPS mm of the first voxel's centre.
    directions
        (3, 3): a row for each acquisition axis, orthogonal unit vectors in LPS.
    low, high
        (3,): the field's edges along each axis, in mm from the first voxel's centre.

    Raises
    ------
    SeriesRejectedError
        It would have more voxels than the spec allows.
    """
    low, high = low.copy(), high.copy()
    order, flipped = closest_axes(directions)
    cropped = False
    if spec.region is not None:
        for cached_axis, size_mm in enumerate(spec.region.size_mm):
            axis = order[cached_axis]
            spare = high[axis] - low[axis] - size_mm
            if spare <= 0:
                continue
            cropped = True
            if cached_axis != 0:
                low[axis] += spare / 2
                high[axis] -= spare / 2
            elif flipped[0]:
                high[axis] -= spare
            else:
                low[axis] += spare

    spacing = np.zeros(3)
    spacing[list(order)] = spec.spacing_mm
    axes = [target_axis(low[k], high[k], spacing[k]) for k in range(3)]
    voxels = int(np.prod([float(a.size) for a in axes]))
    if voxels > spec.max_voxels:
        extent = " x ".join(f"{v:.0f}" for v in high - low)
        raise SeriesRejectedError(
            Reason.TOO_LARGE,
            f"a field of view of {extent} mm makes {voxels:,} voxels; the spec allows {spec.max_voxels:,}",
        )
    affine = np.eye(4)
    origin = origin.copy()
    for cached_axis, (axis, flip) in enumerate(zip(order, flipped, strict=True)):
        target = axes[axis]
        positions = target.positions_mm
        affine[:3, cached_axis] = directions[axis] * (-target.spacing_mm if flip else target.spacing_mm)
        origin += directions[axis] * (positions[-1] if flip else positions[0])
    affine[:3, 3] = origin
    return TargetGrid((axes[0], axes[1], axes[2]), order, flipped, affine, cropped)
