"""A series and its localizers -> MarkedSlice: one stored image as grey values, with the points that lie in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.dicom.frame import Frame
from aneurysm.dicom.geometry import plane_axes
from aneurysm.dicom.pixels import PixelReader
from aneurysm.dicom.stack import Stack
from aneurysm.errors import PixelError, Reason, SeriesRejectedError
from aneurysm.rawdata.tables import Localizer
from aneurysm.types import Point, point
from aneurysm.volume.intensity import CT_SLICE_HU

_MR_PERCENTILES: Final = (1.0, 99.7)
"""Of what is not air: its ends are shown black and white."""
_LEAST_CONTRAST: Final = 0.02
"""Share of the pixels that a window has to show as grey: where fewer are, values are not what the header says."""
_MOST_PIXELS: Final = 768
"""Along a side; of larger images every second pixel is taken, or fewer."""


@dataclass(frozen=True)
class MarkedSlice:
    """
    One image as it is stored, the first row on top.

    Attributes
    ----------
    grey
        (rows, columns) uint8.
    spacing_mm
        Between rows and between columns of ``grey``.
    right, down
        (x, y, z): the directions of rising column and row in the patient (LPS).
    points
        Site, and (column, row) in ``grey``, whole numbers being pixel centres.
    number, slices
        Which of the stack's slices it is, from 1; 0 if it was left out of the stack.
    """

    grey: NDArray[np.uint8]
    spacing_mm: tuple[float, float]
    right: Point
    down: Point
    points: tuple[tuple[str, float, float], ...]
    number: int
    slices: int


def marked_slice(stack: Stack, frames: Sequence[Frame], localizers: Sequence[Localizer], *, ct: bool) -> MarkedSlice:
    """
    Return the image of the first localizer that has one, with all points in it; else the middle slice of the stack.

    Values are turned into grey as the header says, CT by a fixed window. Where that shows next to nothing, and of MR,
    they are shown from their lowest to their highest, but for the ends.

    Parameters
    ----------
    frames
        All frames of the series: a point may lie in one that the stack lacks.

    Raises
    ------
    SeriesRejectedError
        The image can't be decoded.
    OSError
        The file can't be read.
    """
    frame, points = _marked_frame(frames, localizers)
    if frame is None:
        frame = stack.frames[len(stack.frames) // 2]
    try:
        pixels = PixelReader().read(frame)
    except PixelError as error:
        raise SeriesRejectedError(Reason.UNREADABLE_PIXELS, str(error)) from error
    step = -(-max(pixels.shape) // _MOST_PIXELS)
    slope, intercept = frame.rescale.line
    values = pixels[::step, ::step] * np.float64(slope) + intercept
    axes = None if frame.orientation is None else plane_axes(frame.orientation)
    axes = np.eye(3) if axes is None else axes
    between_rows, between_columns = frame.spacing_mm or (1.0, 1.0)
    keys = [f.key for f in stack.frames]
    return MarkedSlice(
        _grey(values, ct=ct),
        (between_rows * step, between_columns * step),
        point(axes[0]),
        point(axes[1]),
        tuple((p.location, p.x / step, p.y / step) for p in points),
        keys.index(frame.key) + 1 if frame.key in keys else 0,
        len(keys),
    )


def _marked_frame(frames: Sequence[Frame], localizers: Sequence[Localizer]) -> tuple[Frame | None, list[Localizer]]:
    """Return the frame of the first usable localizer, and all localizers of that frame."""
    by_image: dict[tuple[str, int], Frame] = {(f.sop_uid, f.index): f for f in frames if f.format.is_monochrome}
    for first in localizers:
        frame = by_image.get((first.sop_uid, first.frame or 0))
        if first.problem or frame is None:
            continue
        alike = [p for p in localizers if not p.problem and (p.sop_uid, p.frame) == (first.sop_uid, first.frame)]
        return frame, alike
    return None, []


def _grey(values: NDArray[np.float64], *, ct: bool) -> NDArray[np.uint8]:
    low, high = CT_SLICE_HU
    within = float(((values > low) & (values < high)).mean())
    if not ct or within < _LEAST_CONTRAST:
        shown = values[values > values.min()]  # air would take all of the range
        low, high = (float(v) for v in np.percentile(shown if shown.size else values, _MR_PERCENTILES))
    scaled = (values - low) / max(high - low, 1e-6)
    return np.asarray(np.clip(np.rint(scaled * 255), 0, 255), np.uint8)
