"""Header of one file -> its frames: one, or those of an enhanced multi-frame file with their functional groups."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from aneurysm.dicom.attributes import first_item, items_of, number_of, seconds_of_day, value_of
from aneurysm.dicom.encoding import DEFLATED
from aneurysm.dicom.fragments import open_buffered, read_fragments
from aneurysm.dicom.frame import DISTINGUISHING_TAGS, MAX_FRAMES, Decision, Frame, PixelFormat, TagValue, modality_of
from aneurysm.dicom.geometry import plane_axes
from aneurysm.dicom.header import Header, quiet_pydicom
from aneurysm.dicom.pixel_format import pixel_format
from aneurysm.dicom.rescale import frame_rescale, header_rescale, is_malformed
from aneurysm.errors import PixelError

# What is assumed of a multi-frame file that was stripped of all geometry: (rows, columns, slices) in mm, by the
# number of frames. From the published winning solution of the RSNA challenge, whose test set has such files.
FALLBACK_THIN_MM: Final = (0.5, 0.5, 0.55)
FALLBACK_THICK_MM: Final = (0.5, 0.5, 5.0)
FALLBACK_THIN_ABOVE_FRAMES: Final = 80
_ENHANCED: Final = frozenset({"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4.1"})
_AXIAL: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_TAKEN_FOR_AXIAL: Final = "taken for axial, rows to the left, columns to the back, frames towards the head"


def frames_of_file(header: Header) -> tuple[list[Frame], list[Decision]]:
    """Return the frames of one file, and what was decided; no frames if its pixels are of no usable kind."""
    fmt = pixel_format(header)
    if isinstance(fmt, str):
        return [], [Decision("unsupported_file", f"{header.name}: {fmt}")]
    n_frames = int(header.get("NumberOfFrames", 1))
    stored = _frames_stored(header, fmt)
    decisions = [Decision("encoding_as_found", f"{header.name}: {header.mismatch}")] if header.mismatch else []
    if stored is not None and stored > 1 and _is_stripped(header):
        # The test set of the challenge has no NumberOfFrames: only the length of the pixel data tells.
        n_frames = stored
        decisions.append(Decision("frames_from_length", f"{header.name}: {stored} frames by length of pixel data"))
    if not 1 <= n_frames <= MAX_FRAMES:
        return [], [Decision("unsupported_file", f"{header.name}: NumberOfFrames is {n_frames}")]
    if n_frames > 1 and stored is not None and stored < n_frames:
        return [], [Decision("unsupported_file", f"{header.name}: {stored} of {n_frames} frames are in the file")]
    if n_frames > 1 or header.dataset is not None:
        frames, notes = _multi(header, fmt, n_frames)
        return frames, decisions + notes
    return [_single(header, fmt)], decisions


def _single(header: Header, fmt: PixelFormat) -> Frame:
    """Return the frame that the top level of the header describes."""
    return Frame(
        path=header.path,
        index=0,
        sop_uid=str(header.get("SOPInstanceUID", "")),
        format=fmt,
        pixel_offset=header.pixel_offset,
        pixel_length=header.pixel_length,
        pixel_vr=header.pixel_vr,
        position=_tuple(header.get("ImagePositionPatient"), 3),
        orientation=_tuple(header.get("ImageOrientationPatient"), 6),
        spacing_mm=_tuple(header.get("PixelSpacing"), 2),
        rescale=header_rescale(header),
        padding=_padding(header),
        instance_number=header.get("InstanceNumber", 0.0),
        distinguishing_tags=tuple(
            (k, _tag_value(k, header.values[k])) for k in DISTINGUISHING_TAGS if k in header.values
        ),
        acquired_s=header.get("AcquisitionTime"),
        created_s=header.get("ContentTime"),
        file_name=header.name,
        modality=modality_of(header),
    )


def _frames_stored(header: Header, fmt: PixelFormat) -> int | None:
    """Return how many whole frames the pixel data holds by its length, None where it is compressed."""
    if header.pixel_length < 0:
        return _frames_encapsulated(header) if _is_stripped(header) else None
    there = header.pixel_length
    if header.pixel_offset is not None and header.transfer_syntax != DEFLATED:
        there = min(there, header.file_size - header.pixel_offset)
    return there // fmt.frame_bytes


def _is_stripped(header: Header) -> bool:
    """Return True if the file may have frames that nothing counts: it has no position of its own, as a slice has."""
    return "ImagePositionPatient" not in header.values and "NumberOfFrames" not in header.values


def _frames_encapsulated(header: Header) -> int | None:
    """Count compressed frames: by the offset table, or in an enhanced file by the fragments, None if neither tells."""
    if header.pixel_offset is None:
        return None
    try:
        with open_buffered(header.path) as file:
            found = read_fragments(file, header.pixel_offset)
    except PixelError:
        return None
    if len(found.offsets) > 1:
        return len(found.offsets)
    return len(found.fragments) if header.get("SOPClassUID") in _ENHANCED else None


def _padding(header: Header) -> tuple[int, int] | None:
    if "PixelPaddingValue" not in header.values:
        return None
    value = header.values["PixelPaddingValue"]
    limit = header.get("PixelPaddingRangeLimit", value)
    return min(value, limit), max(value, limit)


def _multi(header: Header, fmt: PixelFormat, n_frames: int) -> tuple[list[Frame], list[Decision]]:
    """Return the frames of a multi-frame file: functional groups, then the top level, then assumptions."""
    shared, per_frame = Dataset(), [Dataset()] * n_frames
    with quiet_pydicom():
        if header.dataset is not None:
            shared = first_item([header.dataset], "SharedFunctionalGroupsSequence")
            groups = items_of(header.dataset, "PerFrameFunctionalGroupsSequence")
            per_frame = (groups + per_frame)[:n_frames]
        base = replace(_single(header, fmt), frames_in_file=n_frames)
        malformed = sum(is_malformed([group, shared]) for group in per_frame)
        if malformed:
            detail = f"{header.name}: RescaleSlope or RescaleIntercept malformed in {malformed} frames"
            return [], [Decision("unsupported_file", detail)]
        frames = [_one_of_multi(base, i, [per_frame[i], shared]) for i in range(n_frames)]
    return _with_positions(header, frames)


def _one_of_multi(base: Frame, index: int, groups: list[Dataset]) -> Frame:
    """Return one frame: what its functional groups say, and else what ``base`` has from the top level."""
    measures, content = first_item(groups, "PixelMeasuresSequence"), first_item(groups, "FrameContentSequence")
    kind = first_item(groups, "MRImageFrameTypeSequence") or first_item(groups, "CTImageFrameTypeSequence")
    tags = {
        "ImageType": value_of(kind, "FrameType"),
        "EchoTime": value_of(first_item(groups, "MREchoSequence"), "EffectiveEchoTime"),
        "TemporalPositionIdentifier": value_of(content, "TemporalPositionIndex"),
        "DiffusionBValue": value_of(first_item(groups, "MRDiffusionSequence"), "DiffusionBValue"),
        "KVP": value_of(first_item(groups, "CTXRayDetailsSequence"), "KVP"),
        "AcquisitionNumber": value_of(content, "FrameAcquisitionNumber"),
        "StackID": value_of(content, "StackID"),
    }
    position = _tuple(value_of(first_item(groups, "PlanePositionSequence"), "ImagePositionPatient"), 3)
    orientation = _tuple(value_of(first_item(groups, "PlaneOrientationSequence"), "ImageOrientationPatient"), 6)
    return replace(
        base,
        index=index,
        # One frame's position at the top level can't be the position of all.
        position=position or (base.position if base.frames_in_file == 1 else None),
        orientation=orientation or base.orientation,
        spacing_mm=_tuple(value_of(measures, "PixelSpacing"), 2) or base.spacing_mm,
        rescale=frame_rescale(base.rescale, groups, base.modality),
        instance_number=float(index),
        # What the frame does not say, the top level may.
        distinguishing_tags=tuple(
            (
                dict(base.distinguishing_tags) | {k: _tag_value(k, v) for k, v in tags.items() if v not in (None, "")}
            ).items()
        ),
        acquired_s=_seconds(value_of(content, "FrameAcquisitionDateTime"), base.acquired_s),
    )


def _with_positions(header: Header, frames: list[Frame]) -> tuple[list[Frame], list[Decision]]:
    """
    Place the frames of a file in which they have no positions of their own; leave geometry that is there as it is.

    What the header says of them all comes first, then the documented fallback.
    """
    absent = all(f.position is None for f in frames)
    # Default values: one position for all frames of a file, and nothing by which the frames could differ.
    same = len(frames) > 1 and len({(f.position, f.distinguishing_tags) for f in frames}) == 1
    if not absent and not same:
        # Frames that lack something among others that don't are left out with the minority.
        return frames, []
    first, n = frames[0], len(frames)
    rows, columns, step = FALLBACK_THIN_MM if n > FALLBACK_THIN_ABOVE_FRAMES else FALLBACK_THICK_MM
    axes = None if first.orientation is None else plane_axes(first.orientation)
    orientation = _AXIAL if axes is None or first.orientation is None else first.orientation
    spacing, spacing_by = (rows, columns), "assumed"
    if first.spacing_mm is not None:
        spacing, spacing_by = first.spacing_mm, "PixelSpacing"
    normal = np.array((0.0, 0.0, 1.0)) if axes is None else axes[2]
    offsets, offsets_by = _frame_offsets(header, n, normal, step)
    named = _tuple(header.get("ImagePositionPatient"), 3) or first.position
    start, start_by = (named, "ImagePositionPatient") if named else ((0.0, 0.0, 0.0), "assumed")
    placed = [
        replace(f, position=_tuple(start + offset * normal, 3), orientation=orientation, spacing_mm=spacing)
        for f, offset in zip(frames, offsets, strict=True)
    ]
    steps = sorted({f"{abs(s):.4g}" for s in np.diff(offsets)}, key=float)
    detail = (
        f"{header.name}: {n} frames without positions of their own; rows {spacing[0]:g} mm and columns "
        f"{spacing[1]:g} mm apart ({spacing_by}), slices {' to '.join(steps[:: max(1, len(steps) - 1)])} mm apart "
        f"({offsets_by}) in the order of the frames, the first at {', '.join(f'{v:g}' for v in start)} ({start_by})"
    )
    decisions = [Decision("fallback_geometry", detail)]
    if axes is None:
        decisions.append(Decision("fallback_orientation", f"{header.name}: no orientation; {_TAKEN_FOR_AXIAL}"))
    elif same and np.allclose(orientation, _AXIAL, atol=1e-6):
        lost = "one position and the default orientation for all frames: the orientation counts as lost, too"
        decisions.append(Decision("fallback_orientation", f"{header.name}: {lost}; {_TAKEN_FOR_AXIAL}"))
    return placed, decisions


def _frame_offsets(
    header: Header, n: int, normal: NDArray[np.float64], assumed_mm: float
) -> tuple[NDArray[np.float64], str]:
    """Return how far ``n`` frames lie from the first along ``normal``, in mm, and the element that says so."""
    for keyword in ("GridFrameOffsetVector", "SliceLocationVector"):
        vector = np.array(header.get(keyword, ()), np.float64)
        if len(vector) != n:
            continue
        steps = np.diff(vector)
        if _is_step(np.abs(steps)).all() and abs(np.sign(steps).sum()) == n - 1:
            # Grid offsets count along the normal (PS3.3 C.8.8.3.2), slice locations along an axis of the patient.
            turned = keyword == "SliceLocationVector" and normal[np.abs(normal).argmax()] < 0
            return (vector - vector[0]) * (-1.0 if turned else 1.0), keyword
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        step = abs(_measure(header, keyword) or 0.0)
        if _is_step(step):
            return step * np.arange(n, dtype=np.float64), keyword
    return assumed_mm * np.arange(n, dtype=np.float64), "assumed"


def _is_step(mm: Any) -> Any:
    return (mm >= 0.01) & (mm <= 50.0)


def _measure(header: Header, keyword: str) -> float | None:
    """Return an element of the pixel measures, of the top level or else of the functional groups."""
    if (top := header.get(keyword)) is not None or header.dataset is None:
        return None if top is None else float(top)
    groups = [first_item([header.dataset], f"{kind}FunctionalGroupsSequence") for kind in ("Shared", "PerFrame")]
    with quiet_pydicom():
        return number_of(first_item(groups, "PixelMeasuresSequence"), keyword)


def _floats(value: Any, n: int) -> list[float] | None:
    """Return ``n`` finite numbers, or None if ``value`` is anything else."""
    try:
        numbers = [float(v) for v in value]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == n and all(math.isfinite(v) for v in numbers) else None


def _tuple(value: Any, n: int) -> Any:
    numbers = _floats(value, n) if value is not None else None
    return None if numbers is None else tuple(numbers)


def _tag_value(keyword: str, value: Any) -> TagValue:
    """Return a number as a float, whatever text it was written as; text where it is none, as an ImageType."""
    if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
        value = "\\".join(str(v) for v in value)
    if keyword in ("ImageType", "StackID"):
        return str(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else str(value)


def _seconds(moment: Any, default: float | None) -> float | None:
    """Return the time of day of a DICOM date and time, in seconds, ``default`` where it is none."""
    try:
        return seconds_of_day(re.sub(r"[+-]\d{4}$", "", str(moment).strip())[8:])
    except ValueError:
        return default
