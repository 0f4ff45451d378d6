"""Frames -> SliceGeometry: axes, order along the normal, in-plane shifts, tilt. Geometry without pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from aneurysm.dicom.frame import Frame


@lru_cache(maxsize=256)
def plane_axes(orientation: tuple[float, ...]) -> NDArray[np.float64] | None:
    """
    Return the (3, 3) axes of a slice: direction of increasing column, of increasing row, and their normal.

    The normal is row x column (DICOM PS3.3 C.7.6.2.1.1). None if the cosines are no pair of orthogonal directions,
    give or take the rounding that files show.
    """
    row, column = np.array(orientation[:3], float), np.array(orientation[3:6], float)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not all(0.95 < length < 1.05 for length in lengths):
        return None
    row /= lengths[0]
    column /= lengths[1]
    if abs(row @ column) > 0.02:
        return None
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    axes = np.stack([row, np.cross(normal, row), normal])
    axes.flags.writeable = False  # shared by all who ask
    return axes


@dataclass(frozen=True)
class SliceGeometry:
    """
    Where the slices of a stack lie, in order of increasing projection on the normal.

    Attributes
    ----------
    axes
        (3, 3): unit vectors (LPS) of increasing column, increasing row, and the normal.
    origin
        (3,): centre of the first voxel of the first slice, LPS mm.
    positions_mm
        (n,): distance of each slice from the first along the normal, increasing.
    shifts_mm
        (n, 2): offset of each slice's first voxel against the first slice's, along increasing column and increasing
        row. Zero in an upright stack, linear in ``positions_mm`` under a gantry tilt.
    spacing_mm
        Distance between rows, and between columns.
    """

    axes: NDArray[np.float64]
    origin: NDArray[np.float64]
    positions_mm: NDArray[np.float64]
    shifts_mm: NDArray[np.float64]
    spacing_mm: tuple[float, float]

    @property
    def gaps_mm(self) -> NDArray[np.float64]:
        """(n - 1,) distances between neighbouring slices."""
        return np.diff(self.positions_mm)

    @property
    def slice_spacing_mm(self) -> float:
        """Median distance between neighbouring slices."""
        return float(np.median(self.gaps_mm))

    @property
    def shear(self) -> NDArray[np.float64]:
        """(2,) mm of in-plane shift per mm along the normal, by least squares."""
        centred = self.positions_mm - self.positions_mm.mean()
        return np.asarray(centred @ self.shifts_mm / (centred @ centred))

    @property
    def tilt_deg(self) -> float:
        """Angle between the direction in which the slices step and their normal."""
        return float(np.degrees(np.arctan(np.linalg.norm(self.shear))))

    @property
    def misalignment_mm(self) -> float:
        """Largest in-plane distance of a slice from the straight line through the stack."""
        line = np.outer(self.positions_mm, self.shear)
        rest = self.shifts_mm - line
        return float(np.abs(rest - np.median(rest, axis=0)).max())

    @property
    def plane(self) -> str:
        """``axial``, ``coronal`` or ``sagittal``: the closest to the slices."""
        return ("sagittal", "coronal", "axial")[int(np.abs(self.axes[2]).argmax())]


def common_orientation(frames: Sequence[Frame]) -> tuple[float, ...]:
    """Return the orientation of a stack: that of all, or where they differ the median of each cosine."""
    return tuple(float(v) for v in np.median(np.array([f.orientation for f in frames], float), axis=0))


def common_spacing(frames: Sequence[Frame]) -> tuple[float, float]:
    """Return the commonest pixel spacing; of equally common ones that with more digits: others are its rounding."""
    counts = Counter(f.spacing_mm for f in frames if f.spacing_mm is not None)
    return min(counts, key=lambda spacing: (-counts[spacing], -len(repr(spacing)), spacing))


def slice_geometry(frames: Sequence[Frame]) -> tuple[SliceGeometry, list[Frame]]:
    """
    Put ``frames`` (of one orientation and spacing) in order; return the geometry and the ordered frames.

    Order is by projection of ImagePositionPatient on the normal: InstanceNumber and file names may run either way.
    Frames at one place keep the order of their InstanceNumber, then of their SOPInstanceUID. The order in which they
    are given makes no difference.
    """
    axes = plane_axes(common_orientation(frames))
    assert axes is not None
    places = np.array([f.position for f in frames], float)
    along = places @ axes[2]
    # Differences below a nanometre are rounding of the projection; they must not decide over the order.
    order = sorted(
        range(len(frames)),
        key=lambda i: (
            round(float(along[i]), 6),
            frames[i].instance_number,
            frames[i].sop_uid,
            str(frames[i].path),
            frames[i].index,
        ),
    )
    places, along = places[order], along[order]
    relative = places - places[0]
    geometry = SliceGeometry(
        axes=axes,
        origin=places[0],
        positions_mm=along - along[0],
        shifts_mm=relative @ axes[:2].T,
        spacing_mm=common_spacing(frames),
    )
    return geometry, [frames[i] for i in order]
