"""Pixel of an original image <-> point of the patient: for localizers, and for a reader with any viewer.

PS3.3 C.7.6.2.1.1: columns go along the first axis of ImageOrientationPatient by the distance between columns, rows
along the second. PixelSpacing is (between rows, between columns).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aneurysm.dicom.geometry import plane_axes
from aneurysm.dicom.stack import Stack
from aneurysm.volume.parts import Coverage


class ImagePlane(Protocol):
    """A DICOM image's plane, as ImagePositionPatient, ImageOrientationPatient and PixelSpacing say; None if unknown."""

    @property
    def position(self) -> Sequence[float] | None:
        """LPS mm of the first pixel's centre."""

    @property
    def orientation(self) -> tuple[float, ...] | None:
        """Directions of columns and of rows."""

    @property
    def spacing_mm(self) -> Sequence[float] | None:
        """Between rows, and between columns."""


@dataclass(frozen=True)
class SourcePixel:
    """
    A place in a DICOM image.

    Attributes
    ----------
    sop_uid
        SOPInstanceUID of the file.
    column, row
        As in train_localizers.csv: 0 is the centre of the first pixel, columns count to the right, rows down.
    frame
        0-based, if the file has several; else None.
    """

    sop_uid: str
    column: float
    row: float
    frame: int | None


def patient_point(image: ImagePlane, column: float, row: float) -> NDArray[np.float64] | None:
    """Return (3,) LPS mm of a pixel of an image, None if the image does not say where it lies."""
    axes = None if image.orientation is None else plane_axes(image.orientation)
    if axes is None or image.position is None or image.spacing_mm is None:
        return None
    between_rows, between_columns = image.spacing_mm
    return np.asarray(np.array(image.position) + axes[0] * column * between_columns + axes[1] * row * between_rows)


def image_pixel(image: ImagePlane, lps_mm: Sequence[float]) -> tuple[float, float] | None:
    """Return (column, row) of the foot of a point (LPS mm) on an image's plane; the inverse of `patient_point`."""
    axes = None if image.orientation is None else plane_axes(image.orientation)
    if axes is None or image.position is None or image.spacing_mm is None:
        return None
    between_rows, between_columns = image.spacing_mm
    beside = np.array(lps_mm) - np.array(image.position, float)
    return float(beside @ axes[0]) / between_columns, float(beside @ axes[1]) / between_rows


def source_pixel(stack: Stack, lps_mm: tuple[float, float, float]) -> SourcePixel:
    """
    Return the place nearest to a point (LPS mm), in the slice of ``stack`` that lies nearest to it.

    Of several parts it is the one whose values the volume has at that point. Each slice counts by its own position, so
    that tilt and uneven gaps make no difference.
    """
    stack = _part_at(stack, np.array(lps_mm))
    places = np.array([f.position for f in stack.frames], float)
    frame = stack.frames[int(np.abs((np.array(lps_mm) - places) @ stack.geometry.axes[2]).argmin())]
    pixel = image_pixel(frame, lps_mm)
    assert pixel is not None
    column, row = pixel
    return SourcePixel(
        frame.sop_uid,
        min(max(column, 0.0), frame.format.columns - 1.0),
        min(max(row, 0.0), frame.format.rows - 1.0),
        frame.index if frame.frames_in_file > 1 else None,
    )


def _part_at(stack: Stack, lps_mm: NDArray[np.float64]) -> Stack:
    """Return the largest part that covers a point, else the nearest one."""
    distances = []
    for part in stack.parts:
        coverage = Coverage.of(part)
        distances.append(np.nan_to_num(np.abs(coverage.beyond_mm(*coverage.local_mm(lps_mm))), nan=np.inf))
    return stack.parts[int(np.argmin(distances))]
