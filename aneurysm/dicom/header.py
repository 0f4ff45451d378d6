"""One file's header: the listed top-level elements, and where its pixel data starts.

A series has hundreds of files, and parsing a header with pydicom takes longer than decoding its pixels. So ordinary
files (little or big endian, explicit or implicit) are walked here, element by element, reading values of listed tags
only. Whatever is not ordinary (deflated, no preamble, functional groups, a VR that isn't one) goes to pydicom, which
knows every corner; a parity test holds the two together.
"""

from __future__ import annotations

import functools
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from aneurysm.dicom.elements import UNDEFINED, UnusualError, read_element, skip_items
from aneurysm.errors import AneurysmError, system_error

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
RLE: Final = "1.2.840.10008.1.2.5"
NATIVE: Final = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED})
"""Transfer syntaxes whose pixels are plain."""

PIXEL_DATA: Final = 0x7FE00010
_FUNCTIONAL_GROUPS: Final = frozenset({0x52009229, 0x52009230})
_FIRST_READ: Final = 32 * 1024
_READ_WHOLE: Final = 256 * 1024

# What is read: keyword -> (tag, how to take the value). "text" keeps the whole string, "texts" cuts it at backslashes,
# "int" is US, "count" is IS, "pixel" is US or SS, signed as PixelRepresentation says.
_WANTED: Final[dict[str, tuple[int, str]]] = {
    "ImageType": (0x00080008, "texts"),
    "SOPClassUID": (0x00080016, "text"),
    "SOPInstanceUID": (0x00080018, "text"),
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
    "ProtocolName": (0x00181030, "text"),
    "TriggerTime": (0x00181060, "float"),
    "FlipAngle": (0x00181314, "float"),
    "PatientPosition": (0x00185100, "text"),
    "DiffusionBValue": (0x00189087, "float"),
    "SeriesInstanceUID": (0x0020000E, "text"),
    "AcquisitionNumber": (0x00200012, "text"),
    "InstanceNumber": (0x00200013, "float"),
    "ImagePositionPatient": (0x00200032, "floats"),
    "ImageOrientationPatient": (0x00200037, "floats"),
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
}
_KEYWORDS: Final = {tag: keyword for keyword, (tag, _) in _WANTED.items()}
_BINARY: Final = {b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FL": "f", b"FD": "d"}


class NotDicomError(AneurysmError):
    """The file is not DICOM, or breaks off before anything of use."""


@dataclass(slots=True)
class Header:
    """
    The listed elements of one file.

    ``values`` maps keywords to a str, list of str, int, float or list of float; what is absent, empty or not of its
    kind is left out, and the keywords of the last sort stand in ``malformed``. ``pixel_offset`` is the byte at which
    the value of PixelData starts, None where it can't be read by offset (deflated); ``pixel_length`` its length in
    bytes, -1 if undefined (encapsulated), 0 if there is no PixelData.
    """

    path: Path
    transfer_syntax: str = IMPLICIT_LITTLE
    values: dict[str, Any] = field(default_factory=dict)
    malformed: tuple[str, ...] = ()
    pixel_offset: int | None = None
    pixel_length: int = 0
    pixel_vr: str = "OW"
    file_size: int = 0
    dataset: Dataset | None = None
    """The whole pydicom data set without pixels, only where there are functional groups."""

    def get(self, keyword: str, default: Any = None) -> Any:
        """Return the value of ``keyword``, or ``default``."""
        return self.values.get(keyword, default)


def read_header(path: Path) -> Header:
    """
    Read the header of ``path``.

    Raises
    ------
    NotDicomError
        It is not a DICOM file, or nothing of its data set can be read.
    OSError
        The file can't be read.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        # A large image is opened a second time for its pixels; a small file with a long header is read once.
        buffer = file.read(size if size <= _READ_WHOLE else _FIRST_READ)
        for whole in (False, True):
            if whole:
                buffer += file.read()
            try:
                return _walk_file(path, buffer, size)
            except (struct.error, IndexError):
                if len(buffer) >= size:
                    break
            except UnusualError:
                break
    return _read_with_pydicom(path, size)


def _walk_file(path: Path, buffer: bytes, size: int) -> Header:
    if buffer[128:132] != b"DICM":
        raise UnusualError
    header = Header(path, file_size=size)
    raw: dict[str, tuple[bytes, bytes]] = {}
    position, syntax = 132, b""
    while buffer[position : position + 2] == b"\x02\x00":
        tag, vr, length, value = read_element(buffer, position, "<", implicit=False)
        if tag == 0x00020010:
            syntax = buffer[value : value + length]
        position = value + length
    header.transfer_syntax = syntax.rstrip(b"\0 ").decode("ascii", "replace")
    if not header.transfer_syntax or header.transfer_syntax == DEFLATED:
        raise UnusualError
    implicit = header.transfer_syntax == IMPLICIT_LITTLE
    order = ">" if header.transfer_syntax == EXPLICIT_BIG else "<"

    while position < size:
        tag, vr, length, value = read_element(buffer, position, order, implicit=implicit)
        if tag == PIXEL_DATA:
            header.pixel_offset = value
            header.pixel_length = -1 if length == UNDEFINED else length
            header.pixel_vr = vr.decode() if vr else "OW"
            break
        if tag in _FUNCTIONAL_GROUPS:
            raise UnusualError
        if length == UNDEFINED:
            position = skip_items(buffer, value, order, implicit=implicit or vr == b"UN", depth=0)
            continue
        keyword = _KEYWORDS.get(tag)
        if keyword is not None:
            if value + length > len(buffer):
                raise IndexError
            raw[keyword] = (vr, buffer[value : value + length])
        position = value + length
    _take_values(header, raw, order)
    return header


def _take_values(header: Header, raw: dict[str, tuple[bytes, bytes]], order: str) -> None:
    malformed = []
    signed = "PixelRepresentation" in raw and any(raw["PixelRepresentation"][1])
    for keyword, (vr, data) in raw.items():
        kind = _WANTED[keyword][1]
        try:
            value = _value(vr, data, kind, order, signed=signed)
        except (ValueError, struct.error):
            malformed.append(keyword)
            continue
        if value is not None:
            header.values[keyword] = value
    header.malformed = tuple(malformed)


@functools.lru_cache(maxsize=4096)  # most elements are alike in all slices; nobody changes the lists
def _value(vr: bytes, data: bytes, kind: str, order: str, *, signed: bool) -> Any:
    """Return the value of an element of ``kind``, None where it is empty."""
    code = _BINARY.get(vr)
    if not vr and kind in ("int", "pixel"):
        code = "H"  # implicit: only the dictionary tells, and two digits are a number like any other
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
    parts = [part.strip() for part in text.split("\\")]
    return parts if kind == "texts" else _numbers([float(part) for part in parts], kind)


def _numbers(numbers: list[float], kind: str) -> Any:
    if not all(math.isfinite(n) for n in numbers):
        raise ValueError("not finite")
    if kind == "floats":
        return numbers
    if kind in ("text", "texts"):
        texts = [f"{n:g}" for n in numbers]
        return texts if kind == "texts" else "\\".join(texts)
    # Some writers give one value per channel or time; the first is the one of this frame.
    return numbers[0] if kind == "float" else int(numbers[0])


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom from warning of values that this package checks itself."""
    reading = pydicom.config.settings.reading_validation_mode
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        pydicom.config.settings.reading_validation_mode = reading


def _read_with_pydicom(path: Path, size: int) -> Header:
    with quiet_pydicom(), path.open("rb") as file:
        start = file.read(132)
        # Without a preamble, only what begins like a data set is taken for one: group 0008, little endian.
        bare = start[128:] != b"DICM"
        if bare and start[:2] not in (b"\x08\x00", b"\x02\x00"):
            raise NotDicomError(f"{path} is not a DICOM file")
        file.seek(0)
        try:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=bare)
            return _from_dataset(path, size, dataset, file.tell())
        except NotDicomError:
            raise
        except (InvalidDicomError, EOFError) as error:
            raise NotDicomError(f"{path} is not a DICOM file: {error}") from error
        except Exception as error:
            if (fault := system_error(error)) is not None:
                raise fault from None
            raise NotDicomError(f"the header of {path} can't be read: {error}") from error


def _from_dataset(path: Path, size: int, dataset: Dataset, end: int) -> Header:
    header = Header(path, file_size=size)
    meta = getattr(dataset, "file_meta", None) or Dataset()
    implicit, little = dataset.is_implicit_VR, dataset.is_little_endian
    header.transfer_syntax = str(meta.get("TransferSyntaxUID", "")) or (
        IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG
    )
    order = "<" if little else ">"
    raw: dict[str, tuple[bytes, bytes]] = {}
    for keyword, (tag, _) in _WANTED.items():
        if tag in dataset:
            element = dataset.get_item(tag)
            value = element.value
            if isinstance(value, bytes):
                raw[keyword] = (b"" if implicit else str(element.VR).encode(), value)
            elif not isinstance(value, (list, Dataset)) and value is not None:
                raw[keyword] = (b"LO", str(value).encode("latin-1", "replace"))
    if len(raw) == 0:
        raise NotDicomError(f"{path} has no element of an image")
    _take_values(header, raw, order)
    if any(tag in dataset for tag in _FUNCTIONAL_GROUPS):
        header.dataset = dataset
    if header.transfer_syntax == DEFLATED:
        # The position in the file says nothing: the elements came out of the inflated copy.
        full = pydicom.dcmread(path, specific_tags=["PixelData"])
        header.pixel_length = len(full.get("PixelData", b""))
        return header
    with path.open("rb") as file:
        file.seek(end)
        start = file.read(12)
    if len(start) == 12 and struct.unpack_from(order + "HH", start) == (0x7FE0, 0x0010):
        _, vr, length, value = read_element(start, 0, order, implicit=bool(implicit))
        header.pixel_offset, header.pixel_vr = end + value, vr.decode() or "OW"
        header.pixel_length = -1 if length == UNDEFINED else length
    return header
