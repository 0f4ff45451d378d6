"""Pictures of a volume, right way up by its affine: which voxels and letters, and where a point falls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aneurysm.volume.axes import closest_axes

ViewName = Literal["axial", "coronal", "sagittal"]

CT_PROJECTION_HU = (0.0, 600.0)
"""Window of projections of CT: contrast in vessels is at 200 to 500 HU, bone is white."""
_MR_PERCENTILES = (2.0, 99.8)
_POSITIVE, _NEGATIVE = "LPS", "RAI"
# By name: the volume axis looked along, the one running down the picture and the one running right, and
# whether that has to be turned round. Axes are (z, y, x), towards Superior, Posterior, Left, so that a
# picture has the patient's right on its left, anterior on top (axial) or on the left (sagittal), and superior
# on top.
_LAYOUT: dict[ViewName, tuple[int, tuple[int, bool], tuple[int, bool]]] = {
    "axial": (0, (1, False), (2, False)),
    "coronal": (1, (0, True), (2, False)),
    "sagittal": (2, (0, True), (1, False)),
}


@dataclass(frozen=True)
class View:
    """
    One way of looking at a volume.

    ``size_mm`` is (height, width); the letters stand at the left, right, top and bottom edge. ``affine_lps``
    maps (depth, row, column, 1) of the picture to patient space; depth counts voxels along the line of sight.
    """

    name: ViewName
    voxels: NDArray[Any]
    affine_lps: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edges along depth, rows and columns."""
        depth, row, column = np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        return float(depth), float(row), float(column)

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of the picture."""
        _, rows, columns = self.voxels.shape
        return rows * self.spacing_mm[1], columns * self.spacing_mm[2]

    @property
    def letters(self) -> tuple[str, str, str, str]:
        """Sides of the patient at the left, right, top and bottom edge."""
        down, right = self.affine_lps[:3, 1], self.affine_lps[:3, 2]
        return letter(-right), letter(right), letter(-down), letter(down)

    def slice_through(self, lps_mm: ArrayLike) -> NDArray[Any]:
        """Return the slice (rows, columns) that is nearest to a point in patient space."""
        return np.asarray(self.voxels[self._depth(lps_mm)])

    def slab(self, lps_mm: ArrayLike, thickness_mm: float, *, minimum: bool = False) -> NDArray[Any]:
        """Return the maximum (or minimum) of the slices within half of ``thickness_mm`` of a point, (rows, columns)."""
        middle, half = self._depth(lps_mm), round(thickness_mm / 2 / self.spacing_mm[0])
        part = self.voxels[max(0, middle - half) : middle + half + 1]
        return np.asarray(part.min(axis=0) if minimum else part.max(axis=0))

    def distance_mm(self, lps_mm: ArrayLike, other_lps_mm: ArrayLike) -> float:
        """Return how far apart two points are along the line of sight."""
        return float(abs(self.place(lps_mm)[0] - self.place(other_lps_mm)[0])) * self.spacing_mm[0]

    def in_picture_mm(self, lps_mm: ArrayLike) -> tuple[float, float]:
        """Return where a point falls: mm from the picture's left and upper edge."""
        _, row, column = self.place(lps_mm)
        # Pixel centres lie half a voxel inside the edge.
        return float((column + 0.5) * self.spacing_mm[2]), float((row + 0.5) * self.spacing_mm[1])

    def _depth(self, lps_mm: ArrayLike) -> int:
        return int(np.clip(round(float(self.place(lps_mm)[0])), 0, self.voxels.shape[0] - 1))

    def place(self, lps_mm: ArrayLike) -> NDArray[np.float64]:
        """Return (depth, row, column) of points in patient space: (..., 3) -> (..., 3), voxel centres at integers."""
        points = np.asarray(lps_mm, float)
        inverse = np.linalg.inv(self.affine_lps)
        return np.asarray(points @ inverse[:3, :3].T + inverse[:3, 3])


def view(volume: NDArray[Any], affine_lps: ArrayLike, name: ViewName) -> View:
    """
    Return one of three views of ``volume``, whose ``affine_lps`` maps its indices (i, j, k, 1) to LPS mm.

    The axes may be permuted and flipped: the affine alone says which way is up. Nothing is copied or
    resampled, so an oblique volume is seen along its own axes.
    """
    voxels, affine = _towards_superior_posterior_left(volume, np.asarray(affine_lps, float))
    depth, (down, turn_down), (right, turn_right) = _LAYOUT[name]
    order = (depth, down, right)
    voxels = voxels.transpose(order)
    affine = affine[:, [*order, 3]]
    for axis, turn in enumerate((False, turn_down, turn_right)):
        if turn:
            voxels, affine = _turned(voxels, affine, axis)
    return View(name, voxels, affine)


def mr_projection_window(projection: NDArray[Any]) -> tuple[float, float]:
    """Return the window of a projection of MR, or of several, in the projection's own values; never empty."""
    shown = projection[projection > projection.min()]  # air would take all of the range
    low, high = (float(v) for v in np.percentile(shown if shown.size else projection, _MR_PERCENTILES))
    return low, max(high, low + 1e-6)


def letter(direction: ArrayLike) -> str:
    """Return the side of the patient that a vector in LPS points to most: R, L, A, P, S or I."""
    vector = np.asarray(direction, float)
    axis = int(np.argmax(np.abs(vector)))
    return (_POSITIVE if vector[axis] > 0 else _NEGATIVE)[axis]


def _towards_superior_posterior_left(
    voxels: NDArray[Any], affine: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order, flipped = closest_axes(directions.T)
    voxels, affine = voxels.transpose(order), affine[:, [*order, 3]]
    for axis, turn in enumerate(flipped):
        if turn:
            voxels, affine = _turned(voxels, affine, axis)
    return voxels, affine


def _turned(voxels: NDArray[Any], affine: NDArray[np.float64], axis: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    turned = affine.copy()
    turned[:, 3] += affine[:, axis] * (voxels.shape[axis] - 1)
    turned[:, axis] *= -1
    return np.flip(voxels, axis), turned
