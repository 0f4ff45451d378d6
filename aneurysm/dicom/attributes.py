"""A pydicom data set -> values and items of its elements, whatever the bytes are: pydicom converts them only now."""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Sequence
from typing import Any, Final

from pydicom.dataset import Dataset


def value_of(dataset: Dataset, keyword: str) -> Any:
    """Return an element's value, None if it is absent or can't be converted."""
    try:
        return dataset.get(keyword)
    except Exception:  # noqa: BLE001 - it raises whatever the bytes provoke
        return None


def number_of(dataset: Dataset, keyword: str) -> float | None:
    """Return an element's value if it is one finite number, else None."""
    try:
        number = float(value_of(dataset, keyword))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def items_of(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence, none if it is absent or no sequence."""
    value = value_of(dataset, keyword)
    if value is None or isinstance(value, (str, bytes, float, int)):
        return []
    return [item for item in value if isinstance(item, Dataset)]


def first_item(groups: Sequence[Dataset], keyword: str) -> Dataset:
    """Return the first item of a sequence, of the first group that has one with something in it; else an empty one."""
    for group in groups:
        for item in items_of(group, keyword)[:1]:
            if len(item):
                return item
    return Dataset()


# What is read: keyword -> (tag, how to take the value). "text" keeps the whole string, "texts" cuts it at backslashes,
# "int" is US, "count" is IS, "double" is FD, "pixel" is US or SS, signed as PixelRepresentation says, "vector" has a
# number for each frame, "time" is TM, in seconds since midnight: times are read to tell acquisitions apart, and go
# nowhere else.
WANTED: Final[dict[str, tuple[int, str]]] = {
    "ImageType": (0x00080008, "texts"),
    "SOPClassUID": (0x00080016, "text"),
    "SOPInstanceUID": (0x00080018, "text"),
    "AcquisitionTime": (0x00080032, "time"),
    "ContentTime": (0x00080033, "time"),
    "Modality": (0x00080060, "text"),
    "Manufacturer": (0x00080070, "text"),
    "SeriesDescription": (0x0008103E, "text"),
    "ManufacturerModelName": (0x00081090, "text"),
    "PatientID": (0x00100020, "text"),
    "ContrastBolusAgent": (0x00180010, "text"),
    "ScanningSequence": (0x00180020, "texts"),
    "SequenceVariant": (0x00180021, "texts"),
    "MRAcquisitionType": (0x00180023, "text"),
    "SequenceName": (0x00180024, "text"),
    "AngioFlag": (0x00180025, "text"),
    "SliceThickness": (0x00180050, "float"),
    "KVP": (0x00180060, "float"),
    "RepetitionTime": (0x00180080, "float"),
    "EchoTime": (0x00180081, "float"),
    "InversionTime": (0x00180082, "float"),
    "EchoNumbers": (0x00180086, "text"),
    "MagneticFieldStrength": (0x00180087, "float"),
    "SpacingBetweenSlices": (0x00180088, "float"),
    "SliceLocationVector": (0x00182005, "vector"),
    "ProtocolName": (0x00181030, "text"),
    "TriggerTime": (0x00181060, "float"),
    "FlipAngle": (0x00181314, "float"),
    "DiffusionBValue": (0x00189087, "double"),
    "StudyInstanceUID": (0x0020000D, "text"),
    "SeriesInstanceUID": (0x0020000E, "text"),
    "AcquisitionNumber": (0x00200012, "text"),
    "InstanceNumber": (0x00200013, "float"),
    "ImagePositionPatient": (0x00200032, "floats"),
    "ImageOrientationPatient": (0x00200037, "floats"),
    "FrameOfReferenceUID": (0x00200052, "text"),
    "TemporalPositionIdentifier": (0x00200100, "text"),
    "SamplesPerPixel": (0x00280002, "int"),
    "PhotometricInterpretation": (0x00280004, "text"),
    "NumberOfFrames": (0x00280008, "count"),
    "Rows": (0x00280010, "int"),
    "Columns": (0x00280011, "int"),
    "PixelSpacing": (0x00280030, "floats"),
    "BitsAllocated": (0x00280100, "int"),
    "BitsStored": (0x00280101, "int"),
    "HighBit": (0x00280102, "int"),
    "PixelRepresentation": (0x00280103, "int"),
    "PixelPaddingValue": (0x00280120, "pixel"),
    "PixelPaddingRangeLimit": (0x00280121, "pixel"),
    "RescaleIntercept": (0x00281052, "float"),
    "RescaleSlope": (0x00281053, "float"),
    "RescaleType": (0x00281054, "text"),
    "GridFrameOffsetVector": (0x3004000C, "vector"),
}
KEYWORDS: Final = {tag: keyword for keyword, (tag, _) in WANTED.items()}
_LONGEST: Final = 10_000
"""Bytes of a listed value: a thousand times what any of them needs. Values are kept for as long as the program runs."""
_LONGEST_VECTOR: Final = 20_000 * 17
"""Bytes of a vector, which is not kept: as many frames as are read, each with a number of 16 digits and a backslash."""
_TIME: Final = re.compile(r"([01]\d|2[0-3])(?::?([0-5]\d)(?::?([0-5]\d(?:\.\d{1,9})?|60))?)?")
_BINARY: Final = {b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FL": "f", b"FD": "d"}


def take_values(raw: dict[str, tuple[bytes, bytes]], order: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the values of listed elements, given as VR (empty if implicit) and bytes, and the malformed keywords."""
    values: dict[str, Any] = {}
    malformed = []
    signed = "PixelRepresentation" in raw and any(raw["PixelRepresentation"][1])
    for keyword, (vr, data) in raw.items():
        kind = WANTED[keyword][1]
        longest, take = (_LONGEST_VECTOR, _value) if kind == "vector" else (_LONGEST, _kept_value)
        if len(data) > longest:
            malformed.append(keyword)
            continue
        try:
            value = take(vr, data, kind, order, signed=signed)
        except (ValueError, struct.error):
            malformed.append(keyword)
            continue
        if value is not None:
            values[keyword] = value
    return values, tuple(malformed)


def _value(vr: bytes, data: bytes, kind: str, order: str, *, signed: bool) -> Any:
    """Return the value of an element of ``kind``, None where it is empty."""
    code = _BINARY.get(vr)
    if not vr and kind in ("int", "pixel"):
        code = "H"  # implicit: only the dictionary tells, and two digits are a number like any other
    if not vr and kind == "double":
        code = "d"
    if kind == "pixel" and code in ("H", "h", None) and len(data) == 2:
        code = "h" if signed else "H"
    if code is not None:
        if not data:
            return None
        numbers = struct.unpack(f"{order}{len(data) // struct.calcsize(code)}{code}", data)
        return _numbers([float(n) for n in numbers], kind)
    text = data.decode("latin-1").strip(" \0")
    if not text:
        return None
    if kind == "text":
        return text
    if kind == "time":
        return seconds_of_day(text)
    parts = [part.strip() for part in text.split("\\")]
    return parts if kind == "texts" else _numbers([float(part) for part in parts], kind)


_kept_value = functools.lru_cache(maxsize=4096)(_value)
"""Most elements are alike in all slices; nobody changes the lists."""


def seconds_of_day(text: str) -> float:
    """
    Return a DICOM time (``HHMMSS.ffffff``, also cut short, or with colons as before 1993) as seconds since midnight.

    Raises `ValueError` if it is none.
    """
    match = _TIME.fullmatch(text.split("\\")[0].strip())
    if match is None:
        raise ValueError("no time")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def _numbers(numbers: list[float], kind: str) -> Any:
    if not all(math.isfinite(n) for n in numbers):
        raise ValueError("not finite")
    if kind == "time":
        raise ValueError("a time is text")
    if kind in ("floats", "vector"):
        return numbers
    if kind in ("text", "texts"):
        texts = [f"{n:g}" for n in numbers]
        return texts if kind == "texts" else "\\".join(texts)
    # Some writers give one value per channel or time; the first is the one of this frame.
    return numbers[0] if kind in ("float", "double") else int(numbers[0])
