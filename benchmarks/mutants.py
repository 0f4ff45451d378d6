"""Mutated copies of DICOM series: what disks, networks, exporters and ill will do to files, seeded."""

from __future__ import annotations

import gzip
import random
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pydicom
from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

Files = list[bytes]
"""The files of one series."""


@dataclass(frozen=True)
class Mutant:
    """A damaged series and a line that says what was done to it."""

    files: Files
    story: str


TEXT_NUMBERS = (
    b"nan",
    b"inf",
    b"-inf",
    b"1e30",
    b"-1e30",
    b"1e-30",
    b"0",
    b"-1",
    b"abc",
    b"",
    b"1e400",
    b"1,5",
)
UID_VALUES = (
    b"",
    b"../../evil",
    b"/tmp/evil",
    b"..",
    b".",
    b"1.2.3/../../evil",
    b"1.2\0.3",
    b"9" * 300,
    b"CON",
    b"\xff\xfe",
)
UNSIGNED = {
    "Rows": (0, 1, 2, 7, 4096, 65535),
    "Columns": (0, 1, 2, 7, 4096, 65535),
    "BitsAllocated": (0, 1, 4, 8, 12, 24, 32, 64, 128, 65535),
    "BitsStored": (0, 1, 13, 16, 17, 32, 65535),
    "HighBit": (0, 3, 15, 31, 65535),
    "PixelRepresentation": (1, 2, 65535),
    "SamplesPerPixel": (0, 2, 3, 4, 100, 65535),
    "PlanarConfiguration": (0, 1, 7),
    "PixelPaddingValue": (0, 1, 65535),
}
REPEATED = {
    "PixelSpacing": 2,
    "ImagePositionPatient": 3,
    "ImageOrientationPatient": 6,
    "SliceThickness": 1,
    "SpacingBetweenSlices": 1,
    "RescaleSlope": 1,
    "RescaleIntercept": 1,
    "GantryDetectorTilt": 1,
    "InstanceNumber": 1,
    "AcquisitionNumber": 1,
    "TemporalPositionIdentifier": 1,
    "EchoTime": 1,
    "WindowCenter": 1,
    "PixelAspectRatio": 2,
}
SPECIAL: dict[str, tuple[bytes, ...]] = {
    "NumberOfFrames": (b"0", b"-1", b"1", b"2", b"1000", b"999999999", b"1e9", b"abc", b"", b"8\\8"),
    "PixelSpacing": (b"1", b"1\\2\\3", b"0\\0", b"1\\-1", b"1e30\\1e-30", b"1000\\1000", b"0.0001\\0.0001"),
    "ImagePositionPatient": (b"1\\2", b"0\\0\\1e30", b"0\\0\\nan", b"1\\2\\3\\4", b"0\\0\\1e6"),
    "ImageOrientationPatient": (
        b"0\\0\\0\\0\\0\\0",
        b"1\\0\\0\\1\\0\\0",
        b"1\\0\\0\\0.5\\0.5\\0",
        b"1\\0\\0\\0\\1",
        b"1e30\\0\\0\\0\\1e30\\0",
        b"2\\0\\0\\0\\2\\0",
        b"1\\0\\0\\0\\nan\\0",
    ),
    "PhotometricInterpretation": (
        b"RGB",
        b"PALETTE COLOR",
        b"YBR_FULL_422",
        b"MONOCHROME1",
        b"ARGB",
        b"XYZ",
        b"",
        b"\xff",
    ),
    "Modality": (b"", b"US", b"SEG", b"SR", b"MR", b"CT", b"\xff\xfe", b"ct"),
    "ImageType": (b"", b"DERIVED", b"ORIGINAL\\PRIMARY\\M\\ND\\MOSAIC", b"\\\\\\\\", b"LOCALIZER"),
    "SpecificCharacterSet": (b"ISO_IR 999", b"\\ISO 2022 IR 87", b"\xff"),
    "SOPClassUID": (
        b"",
        b"1.2.840.10008.5.1.4.1.1.4.1",
        b"1.2.840.10008.5.1.4.1.1.88.11",
        b"1.2.840.10008.1.3.10",
    ),
    "SeriesInstanceUID": UID_VALUES,
    "SOPInstanceUID": UID_VALUES,
    "StudyInstanceUID": UID_VALUES,
    "FrameOfReferenceUID": UID_VALUES,
    "PixelData": (b"", b"\0", b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\0" * 1000),
    "PatientID": (b"", b"=1+1", b'"; rm -rf /', b"a\nb,c"),
}
SYNTAXES = (
    b"1.2.840.10008.1.2",
    b"1.2.840.10008.1.2.1",
    b"1.2.840.10008.1.2.2",
    b"1.2.840.10008.1.2.1.99",
    b"1.2.840.10008.1.2.5",
    b"1.2.840.10008.1.2.4.50",
    b"1.2.840.10008.1.2.4.51",
    b"1.2.840.10008.1.2.4.70",
    b"1.2.840.10008.1.2.4.80",
    b"1.2.840.10008.1.2.4.90",
    b"1.2.840.10008.1.2.4.91",
    b"1.2.840.10008.1.2.4.201",
    b"1.2.840.10008.1.2.4.102",
    b"1.2.3.4",
    b"",
)
WRONG_VRS = ("SQ", "US", "UL", "FD", "OB", "OW", "UN", "DS", "IS", "UI", "LO", "AT", "ZZ", "\0\0")


# Bytes ----------------------------------------


def _truncate(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    cut = rng.choice((0, 1, 100, 132, 200, rng.randrange(len(data) + 1), len(data) - 1, len(data) // 2))
    return data[:cut], f"truncated to {cut} bytes"


def _flip_bits(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    changed, count = bytearray(data), rng.choice((1, 2, 8, 64, 500))
    end = rng.choice((400, 2000, len(changed)))  # headers are small, and where it hurts
    for _ in range(count):
        changed[rng.randrange(min(end, len(changed)))] ^= 1 << rng.randrange(8)
    return bytes(changed), f"{count} bits flipped in the first {end} bytes"


def _overwrite(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    start, size = rng.randrange(len(data)), rng.choice((4, 64, 512, 4096))
    filling = rng.choice((b"\0", b"\xff", None))
    run = rng.randbytes(size) if filling is None else filling * size
    return data[:start] + run + data[start + size :], f"{size} bytes at {start} overwritten with {filling!r}"


def _cut_out(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    start, size = rng.randrange(min(len(data), 4000)), rng.choice((1, 2, 7, 300))
    return data[:start] + data[start + size :], f"{size} bytes at {start} cut out"


def _insert(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    start, size = rng.randrange(min(len(data), 4000)), rng.choice((1, 2, 7, 300))
    return data[:start] + rng.randbytes(size) + data[start:], f"{size} bytes put in at {start}"


def _another_file(_data: bytes, rng: random.Random) -> tuple[bytes, str]:
    kind = rng.choice((b"\x89PNG\r\n\x1a\n", b"<html>", b"PK\x03\x04", b"\0" * 128 + b"DICM", b"\0" * 5000))
    return kind + rng.randbytes(rng.choice((0, 10, 2000))), f"replaced by {kind[:8]!r}..."


def _swap(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    size = rng.choice((16, 64, 512, 4096))
    a, b = sorted(rng.randrange(max(1, len(data) - size)) for _ in range(2))
    b = max(b, a + size)
    swapped = data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
    return swapped, f"{size} bytes at {a} and {b} swapped"


def _number(rng: random.Random, size: int, order: str) -> bytes:
    """Return a number of ``size`` bytes that parsers stumble over."""
    top = 1 << (8 * size)
    value = rng.choice((0, 1, 2, 7, 255, top - 1, top - 2, top // 2, top // 2 - 1, rng.randrange(top)))
    return (value % top).to_bytes(size, "little" if order == "<" else "big")


def _codec_header(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Overwrite a number in the header of a compressed stream, or in the fragments about it."""
    starts = [at for mark in (b"\xff\xd8\xff", b"\xff\x4f\xff\x51") if (at := data.find(mark)) > 0]
    if (items := data.rfind(b"\xe0\x7f\x10\x00", 0, 200_000)) > 0:
        starts.append(items)
    if not starts:
        return _flip_bits(data, rng)
    start = rng.choice(starts)
    at = start + (rng.randrange(2, 90) if rng.random() < 0.9 else rng.randrange(max(1, len(data) - start)))
    number = _number(rng, rng.choice((1, 1, 2, 4)), ">" if start != items else "<")
    return data[:at] + number + data[at + len(number) :], f"{number.hex()} at byte {at - start} of what is at {start}"


_ELEMENT = re.compile(rb"[\x02\x08\x10\x18\x20\x28\xe0][\x00\x7f]..(?:[A-Z]{2})", re.DOTALL)


def _elements(data: bytes) -> list[int]:
    """About where explicit elements begin, near the start and before the pixels."""
    return [m.start() for m in _ELEMENT.finditer(data, 132, 50_000)] or [min(132, len(data) // 2)]


def _length_field(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    at = rng.choice(_elements(data))
    number = _number(rng, *rng.choice(((2, "<"), (4, "<"))))
    place = at + (6 if len(number) == 2 else rng.choice((4, 8)))
    return data[:place] + number + data[place + len(number) :], f"length {number.hex()} in the element at {at}"


def _insert_sequence(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Insert sequences in sequences, closed, left open, or of lengths that lie."""
    at, depth = rng.choice(_elements(data)), rng.choice((1, 2, 40, 2000, 20_000))
    length = rng.choice((0xFFFFFFFF, 0xFFFFFFFF, 8, 0x7FFFFFFE))
    sequence = struct.pack("<HH2sHI", rng.choice((8, 0x5200)), 0x1140, b"SQ", 0, length)
    opened = (sequence + struct.pack("<HHI", 0xFFFE, 0xE000, length)) * depth
    closed = (b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0") * (depth if rng.random() < 0.5 else 0)
    return data[:at] + opened + closed + data[at:], f"{depth} sequences of length {length:x} put in at {at}"


def _long_element(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    at, length = rng.choice(_elements(data)), rng.choice((0x10000, 0x7FFFFFFE, 0xFFFFFFFE, 0xFFFFFFFF))
    element = struct.pack("<HH2sHI", 9, 0x1010, rng.choice((b"OB", b"UN", b"UT", b"SQ")), 0, length)
    return data[:at] + element + data[at:], f"an element of {length} bytes put in at {at}"


def _many_fragments(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    at = data.rfind(b"\xe0\x7f\x10\x00", 0, 200_000)
    if at < 0 or data[at + 8 : at + 12] != b"\xff" * 4:
        return _insert(data, rng)
    count = rng.choice((3, 1000, 300_000))
    return data[: at + 12] + b"\xfe\xff\x00\xe0\0\0\0\0" * count + data[at + 12 :], f"{count} empty fragments put in"


def _deflated(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Deflate the data set, with zeros by the hundred megabytes before or behind it, or bits of the stream flipped."""
    syntax = data.find(b"1.2.840.10008.1.2", 132, 1000)
    start = data.find(b"\x08\x00\x05\x00", syntax) if syntax > 0 else -1
    start = start if start > 0 else data.find(b"\x08\x00\x08\x00", syntax) if syntax > 0 else -1
    if start < 0:
        return _flip_bits(data, rng)
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", 22) + b"1.2.840.10008.1.2.1.99"
    deflater = zlib.compressobj(1, zlib.DEFLATED, -15)
    kind = rng.choice(("plain", "flipped", "zeros before", "zeros behind"))
    parts = [b"\0" * 128 + b"DICM" + meta]
    zeros = [deflater.compress(bytes(2**20)) for _ in range(300)] if kind == "zeros behind" else []
    if kind == "zeros before":
        parts.append(deflater.compress(struct.pack("<HH2sHI", 8, 1, b"OB", 0, 300 * 2**20)))
        parts += [deflater.compress(bytes(2**20)) for _ in range(300)]
    parts += [deflater.compress(data[start:]), *zeros, deflater.flush()]
    whole = b"".join(parts)
    return (_flip_bits(whole, rng)[0] if kind == "flipped" else whole), f"deflated, {kind}"


# Elements ----------------------------------------


def _raw(keyword: str, value: bytes, vr: str | None = None) -> RawDataElement:
    tag = Tag(tag_for_keyword(keyword) or 0)
    vr = vr or dictionary_VR(tag).split()[0]
    value += b"\0" * (len(value) % 2) if vr == "UI" else b" " * (len(value) % 2)
    return RawDataElement(tag, vr, len(value), value, 0, False, True)


def _levels(ds: Dataset) -> list[Dataset]:
    """Return the data set and every item nested in its sequences."""
    found = [ds]
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                found += _levels(item)
    return found


def _absurd_value(ds: Dataset, rng: random.Random) -> str:
    keyword = rng.choice((*UNSIGNED, *REPEATED, *SPECIAL))
    if keyword in UNSIGNED and (keyword not in SPECIAL or rng.random() < 0.5):
        value = struct.pack("<H", rng.choice(UNSIGNED[keyword]))
        if rng.random() < 0.1:
            value = value[:1] * rng.choice((1, 3, 4))
    elif keyword in REPEATED and (keyword not in SPECIAL or rng.random() < 0.5):
        value = b"\\".join([rng.choice(TEXT_NUMBERS)] * REPEATED[keyword])
    else:
        value = rng.choice(SPECIAL[keyword])
    holders = [level for level in _levels(ds) if keyword in level] or [ds]
    for holder in holders if rng.random() < 0.5 else [rng.choice(holders)]:
        holder[tag_for_keyword(keyword)] = _raw(keyword, value, "OW" if keyword == "PixelData" else None)
    return f"{keyword} = {value[:40]!r}"


def _remove(ds: Dataset, rng: random.Random) -> str:
    holder = rng.choice(_levels(ds))
    tags = [e.tag for e in holder]
    if not tags:
        return _absurd_value(ds, rng)
    gone = rng.sample(tags, min(len(tags), rng.choice((1, 1, 1, 3, 10))))
    if rng.random() < 0.5:  # one that matters
        gone = [Tag(tag_for_keyword(rng.choice((*UNSIGNED, *REPEATED, *SPECIAL))) or 0)]
    for tag in gone:
        holder.pop(tag, None)
    return f"without {', '.join(map(str, gone))}"


def _wrong_vr(ds: Dataset, rng: random.Random) -> str:
    holder = rng.choice(_levels(ds))
    present = [k for k in (*UNSIGNED, *REPEATED, *SPECIAL) if k in holder and k != "PixelData"]
    if not present:
        return _absurd_value(ds, rng)
    keyword, vr = rng.choice(present), rng.choice(WRONG_VRS)
    element = holder[keyword]
    plain = str(element.value).strip("[]").replace("'", "").replace(", ", "\\").encode()
    value = struct.pack("<H", element.value) if isinstance(element.value, int) and element.VR == "US" else plain
    holder[tag_for_keyword(keyword)] = _raw(keyword, value, vr)
    return f"{keyword} with VR {vr!r}"


def _other_syntax(ds: Dataset, rng: random.Random) -> str:
    syntax = rng.choice(SYNTAXES)
    ds.file_meta[0x00020010] = _raw("TransferSyntaxUID", syntax)
    return f"said to be in transfer syntax {syntax!r}"


def _edit(data: bytes, rng: random.Random, edit: Callable[[Dataset, random.Random], str]) -> tuple[bytes, str]:
    """Apply `edit` to the parsed file and write it again; where pydicom can't write it, flip bits instead."""
    try:
        ds: Any = pydicom.dcmread(BytesIO(data), force=True)
        implicit, little = ds.original_encoding
        story = edit(ds, rng)
        buffer = BytesIO()
        buffer.write(b"\0" * 128 + b"DICM")
        pydicom.filewriter.write_file_meta_info(buffer, ds.file_meta, enforce_standard=False)
        body = pydicom.filebase.DicomBytesIO()
        body.is_implicit_VR, body.is_little_endian = bool(implicit), bool(little)
        pydicom.filewriter.write_dataset(body, pydicom.filewriter.correct_ambiguous_vr(ds, bool(little)))
        return buffer.getvalue() + body.getvalue(), story
    except Exception as error:  # the writer is not under test
        changed, story = _flip_bits(data, rng)
        return changed, f"{story} (not writable: {type(error).__name__})"


ELEMENT_EDITS = (_absurd_value, _absurd_value, _absurd_value, _remove, _wrong_vr, _wrong_vr, _other_syntax)
BYTE_EDITS = (
    *(_truncate, _truncate, _flip_bits, _flip_bits, _overwrite, _cut_out, _insert, _another_file, _swap),
    *(_codec_header, _codec_header, _codec_header, _length_field, _length_field),
    *(_insert_sequence, _long_element, _many_fragments, _deflated),
)


def mutate(files: Files, rng: random.Random, *, keep_one: bool = False) -> Mutant:
    """Damage one, some or all files of a series, the same way (elements) or each its own way (bytes).

    `keep_one` leaves at least one file as it was, which needs at least two files.
    """
    changed, stories = list(files), []
    with config.disable_value_validation():
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            most = len(files) - 1 if keep_one else len(files)
            count = min(most, rng.choice((1, 1, 2, len(files), len(files))))
            chosen = sorted(rng.sample(range(1 if keep_one else 0, len(files)), count))
            if rng.random() < 0.6:
                edit, seed = rng.choice(ELEMENT_EDITS), rng.random()
                for i in chosen:
                    changed[i], story = _edit(changed[i] or b"\0", random.Random(seed), edit)
            else:
                for i in chosen:
                    changed[i], story = rng.choice(BYTE_EDITS)(changed[i] or b"\0", rng)
            stories.append(f"{count} of {len(files)} files: {story}")
    return Mutant(changed, "; ".join(stories))


def mutate_mask(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Damage a compressed NIfTI file: its bytes as they are, or a number of its header, compressed again."""
    if rng.random() < 0.4:
        return rng.choice((_truncate, _flip_bits, _overwrite, _cut_out, _swap))(data, rng)
    plain = bytearray(gzip.decompress(data))
    stories = []
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.choice(
            (0, *range(40, 56, 2), 70, 72, 108, *range(76, 108, 4), 112, 252, 254, *range(256, 328, 4), 344)
        )
        number = _number(rng, rng.choice((2, 4)), "<")
        plain[at : at + len(number)] = number
        stories.append(f"{number.hex()} at byte {at}")
    return gzip.compress(bytes(plain), 1), f"NIfTI header: {', '.join(stories)}"
