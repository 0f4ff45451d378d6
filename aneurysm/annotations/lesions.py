"""Localizer rows -> lesions: from a pixel of a stored frame to patient space, and to a voxel of the cached volume."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aneurysm.annotations.frames import SourceFrame, frames_of
from aneurysm.annotations.image_plane import patient_point
from aneurysm.rawdata.tables import Localizer
from aneurysm.types import point

# Frames that were left out of the volume, although a point in them is a true point of the patient.
_SAME_ANATOMY = frozenset(
    {
        "duplicate_slices",
        "duplicate_positions",
        "overlapping_acquisitions",
        "several_volumes",
        "dropped_slices",
        "inconsistent_slices",
        "unreadable_slice",
    }
)


@dataclass(frozen=True)
class Lesion:
    """A placed localizer row: ``zyx`` is the voxel (centres at whole numbers), ``lps_mm`` the point in the patient."""

    location: str
    zyx: tuple[float, float, float]
    lps_mm: tuple[float, float, float]
    row: int

    @classmethod
    def at(cls, location: str, zyx: Iterable[float], lps_mm: Iterable[float], row: int) -> Lesion:
        """Return a lesion whose places are rounded to a tenth of a micrometre, as metadata and tables hold them."""
        return cls(location, point(round(v, 4) for v in zyx), point(round(v, 4) for v in lps_mm), row)


@dataclass(frozen=True)
class UnplacedLesion:
    """A localizer row that has no voxel, and why."""

    location: str
    reason: str
    detail: str
    row: int


def place_lesions(
    localizers: Sequence[Localizer],
    frames: Sequence[SourceFrame],
    affine_lps: NDArray[np.float64],
    shape: Sequence[int],
) -> tuple[list[Lesion], list[UnplacedLesion]]:
    """
    Place each row of ``localizers`` in a volume of ``shape`` (z, y, x), made of some of ``frames`` (all of the series).

    Geometry is that of the very frame which the row names, so order, tilt, gaps and left-out slices make no
    difference. ``affine_lps`` maps (z, y, x, 1) to (x, y, z, 1) in LPS mm.
    """
    lesions: list[Lesion] = []
    unplaced: list[UnplacedLesion] = []
    to_voxel = np.linalg.inv(affine_lps)
    for row in localizers:
        where = _patient_point(row, frames_of(frames, row.sop_uid))
        if isinstance(where, UnplacedLesion):
            unplaced.append(where)
            continue
        zyx = (to_voxel @ np.append(where, 1.0))[:3]
        if np.any(zyx < -0.5 - 1e-6) or np.any(zyx > np.array(shape) - 0.5 + 1e-6):
            at = ", ".join(f"{v:.1f}" for v in zyx)
            unplaced.append(UnplacedLesion(row.location, "outside_volume", f"voxel ({at}) of {tuple(shape)}", row.row))
            continue
        lesions.append(Lesion.at(row.location, zyx.tolist(), where.tolist(), row.row))
    return lesions, unplaced


def _patient_point(row: Localizer, frames: Sequence[SourceFrame]) -> NDArray[np.float64] | UnplacedLesion:
    def unplaced(reason: str, detail: str) -> UnplacedLesion:
        return UnplacedLesion(row.location, reason, detail, row.row)

    if row.problem:
        return unplaced("malformed_row", row.problem)
    if not frames:
        return unplaced("image_not_in_series", "no file of the series has this SOPInstanceUID")
    multi = frames[0].frames_in_file > 1
    if multi and row.frame is None:
        return unplaced("no_frame_number", f"the file has {frames[0].frames_in_file} frames, the row names none")
    meant = [f for f in frames if f.index == (row.frame or 0)]
    if len({(f.position, f.orientation, f.spacing_mm, f.rows, f.columns) for f in meant}) > 1:
        return unplaced("ambiguous_image", f"{len(meant)} images at different places have this SOPInstanceUID")
    frame = next((f for f in meant if not f.left_out), meant[0] if meant else None)
    if frame is None:
        return unplaced("no_such_frame", f"the file has {frames[0].frames_in_file} frames, the row names {row.frame}")
    if not (-0.5 <= row.x <= frame.columns - 0.5 and -0.5 <= row.y <= frame.rows - 0.5):
        size = f"{frame.columns} x {frame.rows} (columns x rows)"
        return unplaced("outside_image", f"x {row.x:g}, y {row.y:g} in an image of {size}")
    if frame.left_out and frame.left_out not in _SAME_ANATOMY:
        return unplaced("image_not_in_volume", f"the image was left out: {frame.left_out}")
    place = patient_point(frame, row.x, row.y)
    if place is None:
        return unplaced("image_without_geometry", "the image has no position or orientation")
    return place
