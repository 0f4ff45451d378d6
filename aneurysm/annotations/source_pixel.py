"""Point of the patient -> SourcePixel: the slice of a stack that shows it, and the pixel in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aneurysm.annotations.image_plane import image_pixel
from aneurysm.dicom.stack import Stack
from aneurysm.volume.parts import Coverage


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
