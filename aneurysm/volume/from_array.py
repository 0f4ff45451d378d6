"""Array, affine -> GriddedArray: stored integers on a spec's grid, by the weights that DICOM goes through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.errors import DataError, UsageError
from aneurysm.labels import MODALITIES
from aneurysm.spec import CacheSpec
from aneurysm.volume.blocks import Survey
from aneurysm.volume.grid import TargetGrid, lay_grid
from aneurysm.volume.head_and_vessels import survey
from aneurysm.volume.intensity import StoredIntensity, array_intensity, ct_intensity, mr_intensity
from aneurysm.volume.weights import axis_weights

CT_MODALITIES: Final = ("CT", "CTA")
"""Modalities whose arrays are in HU; of the others in `KNOWN_MODALITIES` they are MR's, of any scale."""
KNOWN_MODALITIES: Final = (*MODALITIES, "CT", "MR")
_SKEW: Final = 1e-3
"""So much may the cosine between two axes differ from 0: affines are often written with six digits."""


@dataclass(frozen=True)
class GriddedArray:
    """
    An array on the grid of a spec.

    Attributes
    ----------
    voxels
        Stored integers (z, y, x).
    affine_lps
        (4, 4): (z, y, x, 1) to (x, y, z, 1) in LPS mm, voxel centres.
    intensity
        What the integers mean.
    survey
        Where head and vessels are.
    vessels
        The vessel mask on the same grid, or None.
    cropped
        Whether the spec's region left something out.
    """

    voxels: NDArray[Any]
    affine_lps: NDArray[np.float64]
    intensity: StoredIntensity
    survey: Survey
    vessels: NDArray[np.uint8] | None
    cropped: bool


def grid_array(
    values: NDArray[Any],
    affine_lps: NDArray[np.float64],
    modality: str,
    spec: CacheSpec,
    vessels: NDArray[np.uint8] | None = None,
) -> GriddedArray:
    """
    Bring an array onto the grid of ``spec``, and into its integers.

    Axes are permuted and flipped until they run closest to Superior, Posterior and Left; what has another spacing than
    the spec's is resampled, anti-aliased, the mask by nearest neighbour. On the spec's own grid nothing is resampled.

    Parameters
    ----------
    values
        Real numbers of three axes: HU of CT, anything of MR, and without a modality what ``intensity.array`` says.
    affine_lps
        (4, 4): array indices (i, j, k, 1) to (x, y, z, 1) in LPS mm, voxel centres.
    modality
        One of `KNOWN_MODALITIES`, or empty.
    vessels
        A mask of the same shape.

    Raises
    ------
    UsageError
        There is no modality, and the spec does not say what such an array's values mean.
    DataError
        The affine has no inverse, or is sheared.
    SeriesRejectedError
        It would have more voxels than the spec allows, or holds no image.
    """
    entry = spec.intensity.array
    if not modality and entry is None:
        raise UsageError(
            f"the spec {spec.name!r} does not say what the values of an array without a modality mean: give one of "
            f"{', '.join(KNOWN_MODALITIES)}, or take a spec with [intensity.array], such as arrays-u8"
        )
    known: StoredIntensity | None = None
    if modality in CT_MODALITIES:
        known = ct_intensity(spec.intensity.CT, spec.storage)
    elif not modality and entry is not None:
        known = array_intensity(entry, spec.storage)
    physical = np.asarray(values, np.float32)
    if known is not None:
        # Before voxels are averaged: metal must not bleed into its neighbours.
        physical = np.clip(physical, *known.clip)
    steps = np.linalg.norm(affine_lps[:3, :3], axis=0)
    grid = _grid(affine_lps, steps, values.shape, spec)
    for axis in range(3):
        physical = _resampled(physical, axis, float(steps[axis]), grid)
    intensity = known or mr_intensity(spec.intensity.MR, spec.storage, physical)
    voxels = intensity.store(_in_order(physical, grid))
    placed = None if vessels is None else _in_order(_nearest(vessels, steps, grid), grid)
    found = survey(voxels, intensity, spec.spacing_mm)
    return GriddedArray(voxels, grid.affine_lps, intensity, found, placed, grid.cropped)


def grid_mask(mask: NDArray[np.uint8], affine_lps: NDArray[np.float64], spec: CacheSpec) -> NDArray[np.uint8]:
    """Return the vessel mask of an array alone, as `grid_array` does. Raises as that does."""
    steps = np.linalg.norm(affine_lps[:3, :3], axis=0)
    grid = _grid(affine_lps, steps, mask.shape, spec)
    return _in_order(_nearest(mask, steps, grid), grid)


def _grid(
    affine_lps: NDArray[np.float64], steps: NDArray[np.float64], shape: tuple[int, ...], spec: CacheSpec
) -> TargetGrid:
    if not (np.isfinite(affine_lps).all() and (steps > 0).all() and np.allclose(affine_lps[3], [0, 0, 0, 1])):
        raise DataError(f"the affine {affine_lps.tolist()} does not map voxels to millimetres")
    directions = (affine_lps[:3, :3] / steps).T
    if (skew := float(np.abs(directions @ directions.T - np.eye(3)).max())) > _SKEW:
        raise DataError(
            f"the affine is sheared: two of its axes have a cosine of {skew:.3g}, expected 0. Resample the array onto "
            "axes at right angles"
        )
    return lay_grid(affine_lps[:3, 3], directions, -steps / 2, (np.array(shape) - 0.5) * steps, spec)


def _resampled(values: NDArray[np.float32], axis: int, step_mm: float, grid: TargetGrid) -> NDArray[np.float32]:
    target = grid.axes[axis]
    samples_mm = np.arange(values.shape[axis], dtype=np.float64) * step_mm
    if len(samples_mm) == target.size and np.allclose(samples_mm, target.positions_mm, rtol=0, atol=1e-6):
        return values
    weights = axis_weights(samples_mm, target.positions_mm, target.spacing_mm, margin_mm=step_mm / 2)
    moved = np.moveaxis(values, axis, 0)
    out = weights @ moved.reshape(len(moved), -1)
    return np.moveaxis(out.reshape(target.size, *moved.shape[1:]), 0, axis)


def _nearest(mask: NDArray[np.uint8], steps: NDArray[np.float64], grid: TargetGrid) -> NDArray[np.uint8]:
    for axis, target in enumerate(grid.axes):
        index = np.rint(target.positions_mm / steps[axis]).astype(int)
        mask = np.take(mask, np.clip(index, 0, mask.shape[axis] - 1), axis)
    return mask


def _in_order(values: NDArray[Any], grid: TargetGrid) -> NDArray[Any]:
    # The grid's planes are (slice, column, row), as DICOM's are put together.
    return np.ascontiguousarray(grid.to_cached(values.transpose(0, 2, 1)))
