"""NIfTI vessel mask -> labels on the cached grid, placed by affine: its array order is not the DICOM's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.dicom.frame import Decision
from aneurysm.labels import LEFT_RIGHT_PAIRS, SITES, UNKNOWN_VESSEL, VESSEL_VALUES
from aneurysm.rawdata.masks import read_small_numbers

MAX_OUTSIDE: Final = 0.02
"""A mask of which a larger share lies outside the volume belongs to another image, or its affine is wrong."""
_MAX_VALUE: Final = max(VESSEL_VALUES)
_SIDE_TOLERANCE_MM: Final = 3.0
"""So far may the right one of a pair lie left of its twin: stumps of both near the midline, or a turned head."""
PlacedGrid = tuple[NDArray[np.float64], tuple[int, int, int]]
"""An affine ((z, y, x, 1) to LPS mm) and a shape (z, y, x)."""


def resample_mask(
    path: Path, volume: PlacedGrid, field_of_view: PlacedGrid
) -> tuple[NDArray[np.uint8] | None, Decision]:
    """
    Return the mask at ``path`` on the grid of a volume, nearest neighbour, and what was decided.

    None if it can't be used: unreadable, values of unknown meaning, or too much of it outside the field of view of the
    series, of which the volume may be a part. A mask of 0 and 1, which most vessel tools write, says where vessels are
    and not which: 1 becomes `UNKNOWN_VESSEL`.

    Raises
    ------
    OSError
        The operating system can't read the file.
    """
    import SimpleITK as sitk

    found = read_small_numbers(path, _MAX_VALUE)
    if isinstance(found, Decision):
        return None, found
    mask, values = found
    if problem := _unknown_meaning(mask, values):
        return None, Decision("mask_unusable", problem)
    binary = values.max() == 1
    outside = _share_outside(mask, values, *field_of_view)
    if outside > MAX_OUTSIDE:
        return None, Decision("mask_outside_volume", f"{outside:.0%} of the mask lies outside the images")

    reference = _reference_image(*volume)
    placed = sitk.Resample(mask, reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    result: NDArray[np.uint8] = sitk.GetArrayFromImage(placed).astype(np.uint8, copy=False)
    placed_voxels = f"{int(np.count_nonzero(result))} voxels"
    if binary:
        result[result == 1] = UNKNOWN_VESSEL
        return result, Decision("mask_without_sites", f"{placed_voxels} of vessels whose sites are unknown: 0 and 1")
    return result, Decision("mask_placed", placed_voxels)


def _unknown_meaning(mask: Any, values: NDArray[Any]) -> str:
    """
    Return why the values of a mask can't be the 13 vessels' or 0 and 1, or "".

    Other tools number vessels, too, in other orders: theirs put a right vessel on the left.
    """
    # Slice by slice, here and below: counts and coordinates take 8 to 70 times the memory of a mask.
    counts = np.zeros(_MAX_VALUE + 1, np.int64)
    for plane in values:
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    present = np.flatnonzero(counts[1:]) + 1
    if len(present) == 0:
        return "no voxel is a vessel"
    if len(present) == 1 and present[0] != 1:
        return f"the only values are 0 and {present[0]}: neither one vessel's nor 0 and 1"
    for left, right in LEFT_RIGHT_PAIRS:
        if {VESSEL_VALUES[left], VESSEL_VALUES[right]} <= set(present.tolist()):
            # LPS: x grows towards the patient's left.
            x_left, x_right = (_mean_x(mask, values, VESSEL_VALUES[side]) for side in (left, right))
            if x_right - x_left > _SIDE_TOLERANCE_MM:
                name = SITES[left].removeprefix("Left ")
                return f"the values of the right and the left {name} lie on the wrong sides: numbered by another tool?"
    return ""


def _mean_x(mask: Any, values: NDArray[np.uint8], value: int) -> float:
    """Return the mean x (LPS mm) of the voxels (k, j, i) of an ITK image that have this value."""
    total, count = np.zeros(3), 0
    for k, plane in enumerate(values):
        ji = np.argwhere(plane == value)
        total += (*ji[:, ::-1].sum(axis=0), k * len(ji))
        count += len(ji)
    return float(mask.TransformContinuousIndexToPhysicalPoint((total / count).tolist())[0])


def _reference_image(affine_lps: NDArray[np.float64], shape: tuple[int, int, int]) -> Any:
    """Return an empty ITK image with the grid of a volume; ITK's order is (x, y, z), its space is LPS as ours."""
    import SimpleITK as sitk

    steps = affine_lps[:3, [2, 1, 0]]
    spacing = np.linalg.norm(steps, axis=0)
    image = sitk.Image([int(n) for n in shape[::-1]], sitk.sitkUInt8)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((steps / spacing).ravel().tolist())
    image.SetOrigin(affine_lps[:3, 3].tolist())
    return image


def _share_outside(
    mask: Any, values: NDArray[Any], affine_lps: NDArray[np.float64], shape: tuple[int, int, int]
) -> float:
    direction = np.array(mask.GetDirection()).reshape(3, 3) * np.array(mask.GetSpacing())
    to_voxel = np.linalg.inv(affine_lps)
    beyond = count = 0
    for k, plane in enumerate(values):
        ji = np.argwhere(plane > 0)
        places = np.column_stack([ji[:, ::-1], np.full(len(ji), k)]) @ direction.T + np.array(mask.GetOrigin())
        voxels = places @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        # A voxel's breadth of tolerance: masks of thick slices reach half a slice further.
        beyond += int(((voxels < -1.5) | (voxels > np.array(shape) + 0.5)).any(axis=1).sum())
        count += len(ji)
    return beyond / count if count else 0.0
