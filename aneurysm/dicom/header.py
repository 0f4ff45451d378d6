"""One file's header: the listed top-level elements, and where its pixel data starts.

A series has hundreds of files, and parsing a header with pydicom takes longer than decoding its pixels. So ordinary
files (little or big endian, explicit or implicit) are walked here, element by element, reading values of listed tags
only. Whatever is not ordinary (no preamble, functional groups, a VR that isn't one) goes to pydicom, which knows every
corner; a parity test holds the two together. Neither reads more than `MAX_HEADER` bytes: files lie about lengths.
"""

from __future__ import annotations

import math
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID

from aneurysm.dicom.attributes import KEYWORDS, WANTED, items_of, take_values
from aneurysm.dicom.deflated import inflate_head
from aneurysm.dicom.elements import UNDEFINED, VRS, UnusualError, read_element, read_file_meta, skip_items
from aneurysm.dicom.encoding import (
    DEFLATED,
    NATIVE,
    Encoding,
    codestream_syntax,
    declared_encoding,
    found_encoding,
)
from aneurysm.errors import AneurysmError, system_error

PIXEL_DATA: Final = 0x7FE00010
_MODALITY_LUT: Final = 0x00283000
_REAL_WORLD: Final = 0x00409096
_FUNCTIONAL_GROUPS: Final = frozenset({0x52009229, 0x52009230})
MAX_HEADER: Final = 64 * 2**20
"""Bytes before the pixel data: the functional groups of 5,000 frames of the most talkative scanners."""
_MOST_READS: Final = 3_000_000
"""By pydicom of one header: two or three an element. Millions of empty elements are no header, and take minutes."""
_TOO_LONG: Final = f"the header is longer than {MAX_HEADER // 2**20} MB"
_FIRST_READ: Final = 32 * 1024
_SECOND_READ: Final = 2**20
_READ_WHOLE: Final = 256 * 1024
_ITEM: Final = b"\xfe\xff\x00\xe0"
_PIXEL_COUNT: Final = {"NumberOfFrames": 1, "Rows": 0, "Columns": 0, "SamplesPerPixel": 1, "BitsAllocated": 0}
"""Whose product is the bits of uncompressed pixel data; what is absent counts so much."""
_STREAM_START: Final = 4096
"""So much of encapsulated pixel data is read to tell its codec, where the declared one may be wrong."""
_PLAIN_META: Final = b"\0" * 128 + b"DICM" + struct.pack("<HH2sH", 2, 0x10, b"UI", 20) + b"1.2.840.10008.1.2.1\0"


class NotDicomError(AneurysmError):
    """The file is not DICOM, or breaks off before anything of use."""


class DamagedHeaderError(NotDicomError):
    """
    The file is DICOM, and ends within an element before its pixel data, or is not what follows the marker ``DICM``.

    ``values`` are the listed elements before the damage, as in `Header`.
    """

    def __init__(self, message: str, values: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.values = values or {}


@dataclass(slots=True)
class Header:
    """
    The listed elements of one file.

    ``values`` maps keywords to a str, list of str, int, float or list of float; what is absent, empty or not of its
    kind is left out, and the keywords of the last sort stand in ``malformed``. ``pixel_offset`` is the byte at which
    the value of PixelData starts, in the file or, if that is deflated, in the data set that it inflates to, None if
    there is none; ``pixel_length`` its length in bytes by the header, -1 if undefined (encapsulated), 0 if there is no
    PixelData. ``transfer_syntax`` is that of the bytes as they are; ``mismatch`` says what they are and what they are
    declared as, where the two differ.
    """

    path: Path
    name: str = "the file"
    """How messages call the file: never by its name, which may be a patient's."""
    transfer_syntax: str = ""
    mismatch: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    malformed: tuple[str, ...] = ()
    pixel_offset: int | None = None
    pixel_length: int = 0
    pixel_vr: str = "OW"
    file_size: int = 0
    dataset: Dataset | None = None
    """The whole pydicom data set without pixels, only where there are functional groups."""
    modality_lut: bool = False
    """True if a look-up table stands in place of a linear rescale."""
    real_world: list[Dataset] = field(default_factory=list)
    """The items of a RealWorldValueMappingSequence at the top level, read only where there is no RescaleIntercept."""

    def get(self, keyword: str, default: Any = None) -> Any:
        """Return the value of ``keyword``, or ``default``."""
        return self.values.get(keyword, default)


def read_header(path: Path) -> Header:
    """
    Read the header of ``path``.

    Raises
    ------
    NotDicomError
        It is not a DICOM file. `DamagedHeaderError`: it is one, and its header can't be read to the end.
    OSError
        The file can't be read.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        buffer = b""
        # A large image is opened a second time for its pixels; a small file with a long header is read once.
        for limit in (size if size <= _READ_WHOLE else _FIRST_READ, _SECOND_READ, MAX_HEADER):
            buffer += file.read(limit - len(buffer))
            try:
                return _walk_file(path, buffer, size)
            except (struct.error, IndexError):
                if len(buffer) >= size:
                    break
            except UnusualError:
                break
        file.seek(0)
        return _read_with_pydicom(path, size, file)


def _walk_file(path: Path, buffer: bytes, size: int) -> Header:
    declared, position = read_file_meta(buffer)
    header = Header(path, file_size=size)
    encoding = found_encoding(buffer[position : position + 8])
    if encoding is None:
        if declared != DEFLATED and found_encoding(inflate_head(path, 8)) is None:
            raise UnusualError
        header = _inflated_header(header)
        header.mismatch = "" if declared == DEFLATED else _mismatch(["it is deflated"], declared)
        return header
    try:
        _walk(header, buffer, position, size, encoding)
    except (struct.error, IndexError):
        if len(buffer) < size:
            raise
        raise DamagedHeaderError(f"{path} breaks off within its header", header.values) from None
    _resolve_syntax(header, declared, encoding, buffer)
    return header


def _walk(header: Header, buffer: bytes, position: int, size: int, encoding: Encoding) -> None:
    """
    Fill in ``header`` from the data set at ``position`` of a file of ``size`` bytes that begins with ``buffer``.

    Raises `IndexError` or `struct.error` where an element ends beyond them; what comes before is filled in.
    """
    order, implicit = encoding.order, encoding.implicit
    raw: dict[str, tuple[bytes, bytes]] = {}
    try:
        while position < size:
            tag, vr, length, value = read_element(buffer, position, order, implicit=implicit)
            if tag == PIXEL_DATA:
                header.pixel_offset = value
                header.pixel_length = -1 if length == UNDEFINED else length
                header.pixel_vr = vr.decode() if vr else "OW"
                break
            if tag in _FUNCTIONAL_GROUPS or (tag == _REAL_WORLD and "RescaleIntercept" not in raw):
                raise UnusualError
            if length == UNDEFINED:
                position = skip_items(buffer, value, order, implicit=implicit or vr == b"UN", depth=0)
                header.modality_lut |= tag == _MODALITY_LUT and position > value + 8  # more than the end of a sequence
                continue
            header.modality_lut |= tag == _MODALITY_LUT and length > 0
            keyword = KEYWORDS.get(tag)
            if value + length > (len(buffer) if keyword is not None else size):
                raise IndexError
            if keyword is not None:
                raw[keyword] = (vr, buffer[value : value + length])
            position = value + length
    finally:
        header.values, header.malformed = take_values(raw, order)


def _inflated_header(header: Header) -> Header:
    """Return the header of a deflated file, of which no more is inflated than that."""
    for limit in (_FIRST_READ, _SECOND_READ, MAX_HEADER):
        buffer = inflate_head(header.path, limit)
        whole = len(buffer) < limit
        encoding = found_encoding(buffer[:8])
        if encoding is None or encoding.order == ">":
            break
        try:
            _walk(header, buffer, 0, len(buffer) if whole else sys.maxsize, encoding)
        except UnusualError:
            break
        except (struct.error, IndexError):
            if whole:
                raise DamagedHeaderError(f"{header.path} breaks off within its header", header.values) from None
        else:
            header.transfer_syntax = DEFLATED
            return header
    else:
        raise DamagedHeaderError(_TOO_LONG)
    plain = _PLAIN_META + inflate_head(header.path, MAX_HEADER)
    parsed = _read_with_pydicom(header.path, len(plain), BytesIO(plain))
    parsed.transfer_syntax, parsed.mismatch, parsed.file_size = DEFLATED, "", header.file_size
    if parsed.pixel_offset is not None:
        parsed.pixel_offset -= len(_PLAIN_META)
    return parsed


def _resolve_syntax(header: Header, declared: str, encoding: Encoding, start: bytes) -> None:
    """Set the transfer syntax by what elements and pixels are; ``start`` is the beginning of the file."""
    notes = []
    if declared and encoding != declared_encoding(declared):
        notes.append(f"elements are {encoding}")
    if header.pixel_length < 0:
        syntax = codestream_syntax(_codestream(header, start), declared)
    elif declared in NATIVE or not declared or _is_plain(header):
        syntax = encoding.syntax  # pixels of defined length are plain (PS3.5, A.4)
    else:
        syntax = declared
    if declared and syntax != declared and not notes:
        notes.append(f"pixels are {UID(syntax).name}")
    header.transfer_syntax = syntax
    if notes:
        header.mismatch = _mismatch(notes, declared)


def _mismatch(notes: list[str], declared: str) -> str:
    return f"{', '.join(notes)}; declared is {UID(declared).name[:64]}"


def _codestream(header: Header, start: bytes) -> bytes:
    """Return the first bytes of the first frame of encapsulated pixel data, none where no fragment is (PS3.5, A.4)."""
    assert header.pixel_offset is not None
    table = _bytes_at(header, start, header.pixel_offset, 8)
    if len(table) < 8 or table[:4] != _ITEM:
        return b""
    after = header.pixel_offset + 8 + int.from_bytes(table[4:], "little")
    fragment = _bytes_at(header, start, after, 8 + _STREAM_START)
    return fragment[8:] if fragment[:4] == _ITEM else b""


def _bytes_at(header: Header, start: bytes, offset: int, size: int) -> bytes:
    """Return bytes of the file, of whose beginning there is ``start``."""
    if offset + size <= len(start) or len(start) >= header.file_size:
        return start[offset : offset + size]
    with header.path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _is_plain(header: Header) -> bool:
    """Return True if the pixel data is as long as its frames are uncompressed, give or take a byte of padding."""
    bits = math.prod(int(header.get(keyword, default)) for keyword, default in _PIXEL_COUNT.items())
    return bits > 0 and 0 <= header.pixel_length - bits // 8 <= 1


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


class _Bounded:
    """What pydicom reads a header from: `MAX_HEADER` bytes at most, whatever lengths the file gives."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._left, self._reads_left = MAX_HEADER, _MOST_READS
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read, and count; no buffer is larger than what the file can fill."""
        if size < 0:  # pydicom inflates all that it then gets
            raise DamagedHeaderError("a deflated data set behind damaged file meta information")
        size = min(size, max(0, self._size - self.tell()))
        self._left -= size
        self._reads_left -= 1
        if self._left < 0:
            raise DamagedHeaderError(_TOO_LONG)
        if self._reads_left < 0:
            raise DamagedHeaderError("the header has more than a million elements")
        return self._file.read(size)


def _read_with_pydicom(path: Path, size: int, file: BinaryIO) -> Header:
    """Return the header of ``path``, of whose ``size`` bytes ``file`` stands at the first."""
    with quiet_pydicom():
        start = file.read(_FIRST_READ)
        # Without a preamble, only what begins like a data set is taken for one: group 0008, little endian.
        bare = start[128:132] != b"DICM"
        if bare and start[:2] not in (b"\x08\x00", b"\x02\x00"):
            raise NotDicomError(f"{path} is not a DICOM file")
        try:
            bounded: Any = _Bounded(file, size)
            dataset, declared = _parse(bounded, start, bare=bare)
            header, encoding = _from_dataset(path, size, dataset)
        except NotDicomError:
            raise
        except Exception as error:
            if (fault := system_error(error)) is not None:
                raise fault from None
            if bare:
                raise NotDicomError(f"{path} is not a DICOM file: {error}") from error
            raise DamagedHeaderError(f"the header of {path} can't be read: {error}") from error
        _find_pixels(header, file, encoding)
        _resolve_syntax(header, declared, encoding, start)
        return header


def _parse(file: BinaryIO, start: bytes, *, bare: bool) -> tuple[Dataset, str]:
    """Return the data set before its pixels, and the declared transfer syntax or ""; leave ``file`` at the pixels."""
    encoding, declared, position = None, "", 0
    with suppress(UnusualError, struct.error):
        declared, position = read_file_meta(start)
        encoding = found_encoding(start[position : position + 8])
    if encoding is None:
        file.seek(0)
        dataset = pydicom.dcmread(file, stop_before_pixels=True, force=bare)
        return dataset, str(dataset.file_meta.get("TransferSyntaxUID", ""))
    # As it is encoded, whatever the transfer syntax says: pydicom finds out by itself about VRs only.
    file.seek(position)
    return read_dataset(file, encoding.implicit, encoding.order == "<", stop_when=_is_pixels), declared


def _is_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return tag in (PIXEL_DATA, 0x7FE00008, 0x7FE00009)


def _from_dataset(path: Path, size: int, dataset: Dataset) -> tuple[Header, Encoding]:
    header = Header(path, file_size=size)
    elements = [e for e in dataset.values() if isinstance(e, RawDataElement)]
    raw: dict[str, tuple[bytes, bytes]] = {}
    for keyword, (tag, _) in WANTED.items():
        if tag in dataset:
            element = dataset.get_item(tag)
            value = element.value
            if isinstance(value, bytes):
                raw[keyword] = (str(element.VR or "").encode(), value)
            elif not isinstance(value, (list, Dataset)) and value is not None:
                raw[keyword] = (b"LO", str(value).encode("latin-1", "replace"))
    if not raw or not elements:
        raise NotDicomError(f"{path} has no element of an image")
    encoding = Encoding(elements[0].is_implicit_VR, "<" if elements[0].is_little_endian else ">")
    header.values, header.malformed = take_values(raw, encoding.order)
    if any(e.length != UNDEFINED and len(e.value or b"") < e.length for e in elements):
        raise DamagedHeaderError(f"{path} breaks off within its header", header.values)
    if any(tag in dataset for tag in _FUNCTIONAL_GROUPS):
        header.dataset = dataset
    header.modality_lut = _MODALITY_LUT in dataset and bool(dataset.get_item(_MODALITY_LUT).value)
    if "RescaleIntercept" not in header.values:
        header.real_world = items_of(dataset, "RealWorldValueMappingSequence")
    return header, encoding


def _find_pixels(header: Header, file: BinaryIO, encoding: Encoding) -> None:
    """Set where the pixels are, if the next element of ``file`` is theirs."""
    end = file.tell()
    start = file.read(12)
    if len(start) < 12 or struct.unpack_from(encoding.order + "HH", start) != (0x7FE0, 0x0010):
        return
    # pydicom follows a data set that turns to the other way of VRs in its midst.
    _, vr, length, value = read_element(start, 0, encoding.order, implicit=start[4:6] not in VRS)
    header.pixel_offset, header.pixel_vr = end + value, vr.decode() or "OW"
    header.pixel_length = -1 if length == UNDEFINED else length
