"""LesionMap: where a model sees lesions, on the grid of the cache or, slice by slice, on that of the DICOM series."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from aneurysm.dicom.stack import Stack
from aneurysm.volume.axes import closest_axes

_STRAIGHT_MM = 0.1
"""A stack whose last slice lies no further beside the first one's normal has rounded positions, not a tilt."""


@dataclass(frozen=True)
class LesionMap:
    """
    Probabilities of one label, voxel by voxel.

    Attributes
    ----------
    values
        (z, y, x) float32 from 0 to 1.
    affine_lps
        (4, 4): (z, y, x, 1) to (x, y, z, 1) in LPS mm, voxel centres.
    stack
        The frames that the volume was made of; None for a cached volume, which does not know them.
    """

    values: NDArray[np.float32]
    affine_lps: NDArray[np.float64]
    stack: Stack | None


def source_shape(stack: Stack) -> tuple[int, int, int]:
    """Return columns, rows and slices of a series, or of a part of one."""
    pixels = stack.frames[0].format
    return pixels.columns, pixels.rows, len(stack.frames)


def source_affine(stack: Stack) -> NDArray[np.float64]:
    """
    Return (4, 4): (column, row, slice, 1) to LPS mm; slices count along the normal.

    The step from slice to slice is the mean one: sheared under a gantry tilt, and of uneven slices true for the first
    and the last only, for an affine can't say more.
    """
    geometry, last = stack.geometry, len(stack.frames) - 1
    shift = geometry.shifts_mm[-1]
    if np.abs(shift).max() < _STRAIGHT_MM:
        shift = np.zeros(2)
    affine = np.eye(4)
    affine[:3, 0] = geometry.axes[0] * geometry.spacing_mm[1]
    affine[:3, 1] = geometry.axes[1] * geometry.spacing_mm[0]
    affine[:3, 2] = (geometry.axes[2] * geometry.positions_mm[-1] + shift @ geometry.axes[:2]) / last
    affine[:3, 3] = geometry.origin
    return affine


def source_planes(lesions: LesionMap, part: Stack | None = None) -> Iterator[NDArray[np.float32]]:
    """
    Yield (rows, columns) for each slice of the series or of another part of it, in the order of `source_affine`.

    Each pixel at its own place, so that tilt and uneven gaps make no difference: straight between the map's voxels, and
    0 beyond the map. A slice that stands for more than a voxel's depth shows the highest value in its share, or a
    lesion between two thick slices would show in neither.
    """
    stack = lesions.stack
    assert stack is not None
    if part is not None and part is not stack:
        yield from _turned_planes(lesions, part)
        return
    geometry = stack.geometry
    columns, rows, _ = source_shape(stack)
    directions = geometry.axes[[2, 1, 0]]
    to_map = np.linalg.inv(lesions.affine_lps)
    # The map's axes are those of the series, in another order and direction: what lies along which is a matter of one
    # axis each, and interpolation, too.
    order, _ = closest_axes(directions)
    origin = (to_map @ [*geometry.origin, 1.0])[:3]
    axis = [order.index(a) for a in range(3)]
    per_mm = [float((to_map[:3, :3] @ directions[a])[axis[a]]) for a in range(3)]
    values = lesions.values.transpose(axis)  # slice, row, column

    along = origin[axis[0]] + per_mm[0] * geometry.positions_mm
    halfway = (along[1:] + along[:-1]) / 2
    shares = np.stack([[2 * along[0] - halfway[0], *halfway], [*halfway, 2 * along[-1] - halfway[-1]]], 1)
    for k, (shift_column, shift_row) in enumerate(geometry.shifts_mm):
        plane = _between(values, along[k : k + 1], 0)[0]
        low, high = sorted(shares[k])
        if high - low > 1:
            inside = values[max(0, int(np.ceil(low))) : max(0, int(np.floor(high)) + 1)]
            plane = np.maximum(plane, inside.max(0, initial=0.0))
        row_mm = shift_row + geometry.spacing_mm[0] * np.arange(rows)
        column_mm = shift_column + geometry.spacing_mm[1] * np.arange(columns)
        plane = _between(plane, origin[axis[1]] + per_mm[1] * row_mm, 0)
        yield _between(plane, origin[axis[2]] + per_mm[2] * column_mm, 1)


def _turned_planes(lesions: LesionMap, part: Stack) -> Iterator[NDArray[np.float32]]:
    """Yield (rows, columns) for each slice of a part whose axes are none of the map's."""
    geometry, to_map = part.geometry, np.linalg.inv(lesions.affine_lps)
    columns, rows, _ = source_shape(part)
    voxel_mm = float(np.linalg.norm(lesions.affine_lps[:3, :3], axis=0).min())
    halfway = (geometry.positions_mm[1:] + geometry.positions_mm[:-1]) / 2
    first, last = geometry.positions_mm[[0, -1]]
    ends = np.concatenate([[2 * first - halfway[0]], halfway, [2 * last - halfway[-1]]])
    down = geometry.spacing_mm[0] * np.arange(rows)[:, None, None] * geometry.axes[1]
    across = geometry.spacing_mm[1] * np.arange(columns)[None, :, None] * geometry.axes[0]
    limits = np.array(lesions.values.shape) - 0.5
    for k, (place, shift) in enumerate(zip(geometry.positions_mm, geometry.shifts_mm, strict=True)):
        pixels = geometry.origin + shift @ geometry.axes[:2] + down + across
        share = ends[k + 1] - ends[k]
        steps = int(np.ceil(2 * share / voxel_mm)) + 1 if share > voxel_mm else 0
        plane = np.zeros((rows, columns), np.float32)
        for depth in (place, *np.linspace(ends[k], ends[k + 1], steps)):
            voxels = (pixels + depth * geometry.axes[2]) @ to_map[:3, :3].T + to_map[:3, 3]
            inside = ((voxels >= -0.5) & (voxels <= limits)).all(axis=-1)
            at = np.moveaxis(voxels, -1, 0)
            shown = ndimage.map_coordinates(lesions.values, at, np.float32, order=1, mode="nearest")
            np.maximum(plane, shown * inside, out=plane)
        yield plane


def _between(values: NDArray[np.float32], at: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """Return ``values`` at coordinates of one axis, interpolated linearly; 0 beyond the outermost voxels' faces."""
    last = values.shape[axis] - 1
    low = np.clip(np.floor(at), 0, last).astype(int)
    share = np.clip(at - low, 0, 1).astype(np.float32)
    inside = (at >= -0.5) & (at <= last + 0.5)
    shape = [-1 if a == axis else 1 for a in range(values.ndim)]
    lower = values.take(low, axis) * ((1 - share) * inside).reshape(shape)
    upper = values.take(np.minimum(low + 1, last), axis) * (share * inside).reshape(shape)
    return np.asarray(lower + upper, np.float32)
