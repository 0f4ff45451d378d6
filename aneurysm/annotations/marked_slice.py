"""A series and its localizers -> MarkedSlice: one stored image as grey values, with the points that lie in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.dicom.content import HeadersOnly
from aneurysm.dicom.frame import Frame
from aneurysm.dicom.geometry import plane_axes
from aneurysm.dicom.pixels import PixelReader
from aneurysm.dicom.stack import Stack, stack_frames
from aneurysm.errors import NoSpaceError, PixelError, Reason, SeriesRejectedError, StoreError, reason_of
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.rawdata.tables import Localizer
from aneurysm.spec import CacheSpec
from aneurysm.types import Point, point
from aneurysm.volume.hounsfield import AIR_HU
from aneurysm.volume.intensity import CT_SLICE_HU
from aneurysm.volume.stored_values import stored_values

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


def read_marked_slices(
    asked: Sequence[tuple[SeriesSource, Sequence[Localizer]]], spec: CacheSpec
) -> list[MarkedSlice | str]:
    """
    Return an image of each series, or why there is none; see `marked_slice`.

    Raises
    ------
    StoreError, NoSpaceError
        An object store fails; the scratch folder's disk is full.
    """
    return [_read_marked_slice(source, localizers, spec) for source, localizers in asked]


def _read_marked_slice(source: SeriesSource, localizers: Sequence[Localizer], spec: CacheSpec) -> MarkedSlice | str:
    try:
        with source.local_copy() as local:
            series = local.read_headers()
            stack = stack_frames(series.frames, spec.slices, HeadersOnly())
            return marked_slice(stack, series.frames, localizers, ct=series.modality == "CT")
    except (StoreError, NoSpaceError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a stranger's file brings about: one picture is missing
        return ": ".join(reason_of(error))


def marked_slice(stack: Stack, frames: Sequence[Frame], localizers: Sequence[Localizer], *, ct: bool) -> MarkedSlice:
    """
    Return the image of the first localizer that has one, with all points in it; else the middle slice of the stack.

    Values are what the cache would take them for. CT is turned into grey by a fixed window; MR, and what that window
    shows next to nothing of, from its lowest values to its highest, but for the ends.

    Parameters
    ----------
    frames
        All frames of the series: a point may lie in one that the stack lacks.

    Raises
    ------
    SeriesRejectedError
        The image can't be decoded, shows nothing, or what its values mean can't be told.
    OSError
        The file can't be read.
    """
    frame, points = _marked_frame(frames, localizers)
    if frame is None:
        frame = stack.frames[len(stack.frames) // 2]
    try:
        values = _physical(frame, stack, ct=ct)
    except PixelError as error:
        raise SeriesRejectedError(Reason.UNREADABLE_PIXELS, str(error)) from error
    if values.min() == values.max():
        raise SeriesRejectedError(Reason.NO_SIGNAL, "all pixels of the image have one value")
    step = -(-max(values.shape) // _MOST_PIXELS)
    axes = None if frame.orientation is None else plane_axes(frame.orientation)
    axes = np.eye(3) if axes is None else axes
    between_rows, between_columns = frame.spacing_mm or (1.0, 1.0)
    keys = [f.key for f in stack.frames]
    return MarkedSlice(
        _grey(values[::step, ::step], ct=ct),
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


def _physical(frame: Frame, stack: Stack, *, ct: bool) -> NDArray[np.float64]:
    """Return HU or MR signal, (rows, columns); of an image beside the stack, or a damaged one, as its header says."""
    reader, others = PixelReader(), stack.all_frames
    while others:
        meaning = stored_values(others, reader, ct=ct)
        if (own := next((v for v in meaning.values if v.frame.key == frame.key), None)) is not None:
            air = AIR_HU if ct else 0.0
            return own.read(reader, air) * np.float64(own.slope) + own.intercept
        damaged = {f.key for f in meaning.damaged}
        if not damaged:
            break
        others = [f for f in others if f.key not in damaged]
    slope, intercept = frame.rescale.line
    return reader.read(frame) * np.float64(slope) + intercept


def _grey(values: NDArray[np.float64], *, ct: bool) -> NDArray[np.uint8]:
    low, high = CT_SLICE_HU
    within = float(((values > low) & (values < high)).mean())
    if not ct or within < _LEAST_CONTRAST:
        shown = values[values > values.min()]  # air would take all of the range
        low, high = (float(v) for v in np.percentile(shown if shown.size else values, _MR_PERCENTILES))
    scaled = (values - low) / max(high - low, 1e-6)
    return np.asarray(np.clip(np.rint(scaled * 255), 0, 255), np.uint8)
