"""Header of one file -> its frames: one, or those of an enhanced multi-frame file with their functional groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from pydicom.dataset import Dataset

from aneurysm.dicom.fragments import read_fragments
from aneurysm.dicom.header import DEFLATED, Header, quiet_pydicom
from aneurysm.dicom.pixel_format import pixel_format
from aneurysm.dicom.series import MAX_FRAMES, TELLING, Decision, Frame, PixelFormat, modality_of
from aneurysm.errors import PixelError

# What is assumed of a multi-frame file that was stripped of all geometry: (rows, columns, slices) in mm, by the
# number of frames. From the published winning solution of the RSNA challenge, whose test set has such files.
FALLBACK_THIN_MM: Final = (0.5, 0.5, 0.55)
FALLBACK_THICK_MM: Final = (0.5, 0.5, 5.0)
FALLBACK_THIN_ABOVE_FRAMES: Final = 80
_ENHANCED: Final = frozenset({"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4.1"})
_AXIAL: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def frames_of_file(header: Header) -> tuple[list[Frame], list[Decision]]:
    """Return the frames of one file, and what was decided; no frames if its pixels are of no usable kind."""
    fmt = pixel_format(header)
    if isinstance(fmt, str):
        return [], [Decision("unsupported_file", f"{header.name}: {fmt}")]
    n_frames = int(header.get("NumberOfFrames", 1))
    stored = _frames_stored(header, fmt)
    decisions = []
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
        slope=header.get("RescaleSlope", 1.0) or 1.0,
        intercept=header.get("RescaleIntercept", 0.0),
        padding=_padding(header),
        instance_number=header.get("InstanceNumber", 0.0),
        tells_apart=tuple((k, _as_text(header.values[k])) for k in TELLING if k in header.values),
        file_name=header.name,
        modality=modality_of(header),
        rescaled="RescaleIntercept" in header.values,
        rescale_type=str(header.get("RescaleType", "")),
    )


def _frames_stored(header: Header, fmt: PixelFormat) -> int | None:
    """Return how many whole frames the pixel data holds by its length, None where it is compressed."""
    if header.pixel_length < 0:
        return _frames_encapsulated(header) if _is_stripped(header) else None
    there = header.pixel_length
    if header.pixel_offset is not None and header.transfer_syntax != DEFLATED:
        there = min(there, header.file_size - header.pixel_offset)
    return there // (fmt.rows * fmt.columns * fmt.samples * fmt.bits_allocated // 8)


def _is_stripped(header: Header) -> bool:
    """Say whether the file may have frames that nothing counts: it has no place of its own, as a slice would have."""
    return "ImagePositionPatient" not in header.values and "NumberOfFrames" not in header.values


def _frames_encapsulated(header: Header) -> int | None:
    """Count compressed frames: by the offset table, or in an enhanced file by the fragments, None if neither tells."""
    if header.pixel_offset is None:
        return None
    try:
        found = read_fragments(header.path, header.pixel_offset)
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
            shared = _first(header.dataset, "SharedFunctionalGroupsSequence")
            groups = _items(header.dataset, "PerFrameFunctionalGroupsSequence")
            per_frame = (groups + per_frame)[:n_frames]
        base = replace(_single(header, fmt), frames_in_file=n_frames)
        malformed = sum(_malformed_rescale([group, shared]) for group in per_frame)
        if malformed:
            detail = f"{header.name}: RescaleSlope or RescaleIntercept malformed in {malformed} frames"
            return [], [Decision("unsupported_file", detail)]
        frames = [_one_of_multi(base, i, [per_frame[i], shared]) for i in range(n_frames)]
    return _with_positions(header, frames)


def _one_of_multi(base: Frame, index: int, groups: list[Dataset]) -> Frame:
    """Return one frame: what its functional groups say, and else what ``base`` has from the top level."""
    measures, content = _group(groups, "PixelMeasuresSequence"), _group(groups, "FrameContentSequence")
    transform = _group(groups, "PixelValueTransformationSequence")
    kind = _group(groups, "MRImageFrameTypeSequence") or _group(groups, "CTImageFrameTypeSequence")
    telling = {
        "ImageType": _of(kind, "FrameType"),
        "EchoTime": _of(_group(groups, "MREchoSequence"), "EffectiveEchoTime"),
        "TemporalPositionIdentifier": _of(content, "TemporalPositionIndex"),
        "DiffusionBValue": _of(_group(groups, "MRDiffusionSequence"), "DiffusionBValue"),
        "KVP": _of(_group(groups, "CTXRayDetailsSequence"), "KVP"),
        "AcquisitionNumber": _of(content, "FrameAcquisitionNumber"),
        "StackID": _of(content, "StackID"),
    }
    slope = _floats([_of(transform, "RescaleSlope")], 1)
    intercept = _floats([_of(transform, "RescaleIntercept")], 1)
    position = _tuple(_of(_group(groups, "PlanePositionSequence"), "ImagePositionPatient"), 3)
    orientation = _tuple(_of(_group(groups, "PlaneOrientationSequence"), "ImageOrientationPatient"), 6)
    return replace(
        base,
        index=index,
        # One frame's position at the top level can't be the position of all.
        position=position or (base.position if base.frames_in_file == 1 else None),
        orientation=orientation or base.orientation,
        spacing_mm=_tuple(_of(measures, "PixelSpacing"), 2) or base.spacing_mm,
        slope=(slope[0] or 1.0) if slope else base.slope,
        intercept=intercept[0] if intercept else base.intercept,
        rescaled=bool(intercept) or base.rescaled,
        rescale_type=str(_of(transform, "RescaleType") or base.rescale_type),
        instance_number=float(index),
        tells_apart=tuple((k, _as_text(v)) for k, v in telling.items() if v not in (None, "")),
    )


def _malformed_rescale(groups: list[Dataset]) -> bool:
    transform = _group(groups, "PixelValueTransformationSequence")
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        if keyword in transform and _floats([_of(transform, keyword)], 1) is None:
            return _is_filled(transform, keyword)
    return False


def _is_filled(dataset: Dataset, keyword: str) -> bool:
    value = dataset.get_item(keyword).value
    return value is not None and bool(str(value.decode("latin-1") if isinstance(value, bytes) else value).strip(" \0"))


def _with_positions(header: Header, frames: list[Frame]) -> tuple[list[Frame], list[Decision]]:
    """Give the frames of a file without geometry the documented fallback; leave geometry that is there as it is."""
    no_positions = all(f.position is None for f in frames)
    # Default values: one position for all frames of a file, and nothing by which the frames could differ.
    same = len(frames) > 1 and len({(f.position, f.tells_apart) for f in frames}) == 1
    if not no_positions and not same:
        # Frames that lack something among others that don't are left out with the minority.
        return frames, []
    default = FALLBACK_THIN_MM if len(frames) > FALLBACK_THIN_ABOVE_FRAMES else FALLBACK_THICK_MM
    step = abs(_slice_step(header) or 0.0)
    if not 0.01 <= step <= 50:
        step = default[2]
    first = frames[0]
    orientation, spacing = first.orientation or _AXIAL, first.spacing_mm or (default[0], default[1])
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    start, normal = np.array(first.position or (0.0, 0.0, 0.0)), np.cross(row, column)
    placed = [
        replace(f, position=_tuple(start + step * i * normal, 3), orientation=orientation, spacing_mm=spacing)
        for i, f in enumerate(frames)
    ]
    detail = (
        f"{header.name}: {len(frames)} frames without positions; assumed rows {spacing[0]:g} mm, columns "
        f"{spacing[1]:g} mm, slices {step:g} mm apart in the order of the frames"
        + (", axial, towards the head" if first.orientation is None else "")
    )
    return placed, [Decision("fallback_geometry", detail)]


def _slice_step(header: Header) -> float | None:
    """Return SpacingBetweenSlices, of the top level or the functional groups."""
    if (step := header.get("SpacingBetweenSlices")) is not None or header.dataset is None:
        return None if step is None else float(step)
    shared = _first(header.dataset, "SharedFunctionalGroupsSequence")
    found = _floats([_of(_group([shared], "PixelMeasuresSequence"), "SpacingBetweenSlices")], 1)
    return found[0] if found else None


def _group(groups: Sequence[Dataset], keyword: str) -> Dataset:
    for group in groups:
        item = _first(group, keyword)
        if len(item):
            return item
    return Dataset()


def _of(dataset: Dataset, keyword: str) -> Any:
    """Return an element's value, None if it is absent or can't be converted: pydicom does that only now."""
    try:
        return dataset.get(keyword)
    except Exception:  # noqa: BLE001 - it raises whatever the bytes provoke
        return None


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    value = _of(dataset, keyword)
    if value is None or isinstance(value, (str, bytes, float, int)):
        return []
    return [item for item in value if isinstance(item, Dataset)]


def _first(dataset: Dataset, keyword: str) -> Dataset:
    return next(iter(_items(dataset, keyword)), Dataset())


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


def _as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
        return "\\".join(str(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
