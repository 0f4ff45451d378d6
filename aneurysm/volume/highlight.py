"""Projections of CT past the skull: bone is left out, and what is brightest of the rest is stretched over all greys."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FAINT_PERCENTILE: Final = 50.0
_BRIGHT_PERCENTILE: Final = 99.5
_AIR_BELOW_HU: Final = -150.0
"""Beyond fat: what is darker is air, or was left out."""
_LEAST_WIDTH_HU: Final = 150.0
"""Noise is not stretched over all greys where no vessel is bright."""


def without_bone(voxels: NDArray[Any], bone: NDArray[np.bool_], air: Any) -> NDArray[Any]:
    """Return a copy of ``voxels`` in which those of ``bone``, of the same shape, have the value of ``air``."""
    return np.where(bone, voxels.dtype.type(air), voxels)


def spare_points(
    bone: NDArray[np.bool_], affine_lps: NDArray[np.float64], points_lps_mm: ArrayLike, radius_mm: float
) -> None:
    """
    Clear ``bone`` (z, y, x) within ``radius_mm`` of points (n, 3) in LPS mm: what a picture is about must stay in it.

    An aneurysm of the carotid within the skull base lies in what is labelled as bone.
    """
    spacing_mm = np.linalg.norm(affine_lps[:3, :3], axis=0)
    to_voxel = np.linalg.inv(affine_lps)
    for point_lps in np.asarray(points_lps_mm, np.float64).reshape(-1, 3):
        middle = to_voxel[:3, :3] @ point_lps + to_voxel[:3, 3]
        reach = radius_mm / spacing_mm
        low = np.clip(np.ceil(middle - reach), 0, bone.shape).astype(int)
        high = np.clip(np.floor(middle + reach) + 1, 0, bone.shape).astype(int)
        offsets = [
            (np.arange(a, b) - m) * s for a, b, m, s in zip(low, np.maximum(low, high), middle, spacing_mm, strict=True)
        ]
        z, y, x = np.ix_(*offsets)
        part = bone[tuple(slice(a, a + len(o)) for a, o in zip(low, offsets, strict=True))]
        part &= z**2 + y**2 + x**2 > radius_mm**2


def highlight_window(projection: NDArray[np.float32]) -> tuple[float, float]:
    """
    Return the window, in HU, that stretches the brightest of a projection, or of several, over all greys.

    From the median, which is brain, to the 99.5th percentile, among the vessels. What is air, or bone that was left
    out, does not count.
    """
    shown = projection[projection > _AIR_BELOW_HU]
    if not shown.size:
        return 0.0, _LEAST_WIDTH_HU
    low, high = (float(value) for value in np.percentile(shown, (_FAINT_PERCENTILE, _BRIGHT_PERCENTILE)))
    return low, max(high, low + _LEAST_WIDTH_HU)
