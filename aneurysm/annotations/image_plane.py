"""Pixel of an original image <-> point of the patient: for localizers, and for a reader with any viewer.

PS3.3 C.7.6.2.1.1: columns go along the first axis of ImageOrientationPatient by the distance between columns, rows
along the second. PixelSpacing is (between rows, between columns).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aneurysm.dicom.geometry import plane_axes


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
