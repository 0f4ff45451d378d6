"""One file's header: the listed top-level elements, and where its pixel data starts.

A series has hundreds of files, and parsing a header with pydicom takes longer than decoding its pixels. So ordinary
files (little or big endian, explicit or implicit) are walked here, element by element, reading values of listed tags
only. Whatever is not ordinary (no preamble, functional groups, a VR that isn't one) goes to pydicom, which knows every
corner; a parity test holds the two together. Neither reads more than `MAX_HEADER` bytes: files lie about lengths.
"""

from __future__ import annotations

import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from aneurysm.dicom.deflated import inflate_head
from aneurysm.dicom.elements import UNDEFINED, UnusualError, read_element, read_file_meta, skip_items
from aneurysm.dicom.values import KEYWORDS, WANTED, take_values
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
MAX_HEADER: Final = 64 * 2**20
"""Bytes before the pixel data: the functional groups of 5,000 frames of the most talkative scanners."""
_TOO_LONG: Final = f"the header is longer than {MAX_HEADER // 2**20} MB"
_FIRST_READ: Final = 32 * 1024
_SECOND_READ: Final = 2**20
_READ_WHOLE: Final = 256 * 1024
_PLAIN_META: Final = b"\0" * 128 + b"DICM" + struct.pack("<HH2sH", 2, 0x10, b"UI", 20) + b"1.2.840.10008.1.2.1\0"


class NotDicomError(AneurysmError):
    """The file is not DICOM, or breaks off before anything of use."""


@dataclass(slots=True)
class Header:
    """
    The listed elements of one file.

    ``values`` maps keywords to a str, list of str, int, float or list of float; what is absent, empty or not of its
    kind is left out, and the keywords of the last sort stand in ``malformed``. ``pixel_offset`` is the byte at which
    the value of PixelData starts, in the file or, if that is deflated, in the data set that it inflates to, None if
    there is none; ``pixel_length`` its length in bytes by the header, -1 if undefined (encapsulated), 0 if there is no
    PixelData.
    """

    path: Path
    name: str = "the file"
    """How messages call the file: never by its name, which may be a patient's."""
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
    syntax, position = read_file_meta(buffer)
    if not syntax:
        raise UnusualError
    header = Header(path, transfer_syntax=syntax, file_size=size)
    if syntax == DEFLATED:
        return _inflated_header(header)
    _walk(header, buffer, position, size)
    return header


def _walk(header: Header, buffer: bytes, position: int, size: int) -> None:
    """Fill in ``header`` from the data set at ``position`` of a file of ``size`` bytes that begins with ``buffer``."""
    implicit = header.transfer_syntax == IMPLICIT_LITTLE
    order = ">" if header.transfer_syntax == EXPLICIT_BIG else "<"
    raw: dict[str, tuple[bytes, bytes]] = {}
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
        keyword = KEYWORDS.get(tag)
        if keyword is not None:
            if value + length > len(buffer):
                raise IndexError
            raw[keyword] = (vr, buffer[value : value + length])
        position = value + length
    header.values, header.malformed = take_values(raw, order)


def _inflated_header(header: Header) -> Header:
    """Return the header of a deflated file, of which no more is inflated than that."""
    for limit in (_FIRST_READ, _SECOND_READ, MAX_HEADER):
        buffer = inflate_head(header.path, limit)
        whole = len(buffer) < limit
        try:
            _walk(header, buffer, 0, len(buffer) if whole else sys.maxsize)
        except UnusualError:
            break
        except (struct.error, IndexError):
            if whole:
                break
        else:
            return header
    else:
        raise NotDicomError(_TOO_LONG)
    plain = _PLAIN_META + inflate_head(header.path, MAX_HEADER)
    parsed = _read_with_pydicom(header.path, len(plain), BytesIO(plain))
    parsed.transfer_syntax, parsed.file_size = DEFLATED, header.file_size
    if parsed.pixel_offset is not None:
        parsed.pixel_offset -= len(_PLAIN_META)
    return parsed


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
    """What pydicom reads a header from: it gets at most `MAX_HEADER` bytes, whatever lengths the file gives."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._left = MAX_HEADER
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read, and count; no buffer is larger than what the file can fill."""
        there = max(0, self._size - self.tell())
        size = there if size < 0 else min(size, there)
        self._left -= size
        if self._left < 0:
            raise NotDicomError(_TOO_LONG)
        return self._file.read(size)


def _read_with_pydicom(path: Path, size: int, file: BinaryIO) -> Header:
    """Return the header of ``path``, of whose ``size`` bytes ``file`` stands at the first."""
    with quiet_pydicom():
        start = file.read(132)
        # Without a preamble, only what begins like a data set is taken for one: group 0008, little endian.
        bare = start[128:] != b"DICM"
        if bare and start[:2] not in (b"\x08\x00", b"\x02\x00"):
            raise NotDicomError(f"{path} is not a DICOM file")
        file.seek(0)
        try:
            bounded: Any = _Bounded(file, size)
            dataset = pydicom.dcmread(bounded, stop_before_pixels=True, force=bare)
            return _from_dataset(path, size, dataset, file)
        except NotDicomError:
            raise
        except (InvalidDicomError, EOFError) as error:
            raise NotDicomError(f"{path} is not a DICOM file: {error}") from error
        except Exception as error:
            if (fault := system_error(error)) is not None:
                raise fault from None
            raise NotDicomError(f"the header of {path} can't be read: {error}") from error


def _from_dataset(path: Path, size: int, dataset: Dataset, file: BinaryIO) -> Header:
    end = file.tell()
    header = Header(path, file_size=size)
    meta = getattr(dataset, "file_meta", None) or Dataset()
    implicit, little = dataset.is_implicit_VR, dataset.is_little_endian
    header.transfer_syntax = str(meta.get("TransferSyntaxUID", "")) or (
        IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG
    )
    order = "<" if little else ">"
    raw: dict[str, tuple[bytes, bytes]] = {}
    for keyword, (tag, _) in WANTED.items():
        if tag in dataset:
            element = dataset.get_item(tag)
            value = element.value
            if isinstance(value, bytes):
                raw[keyword] = (b"" if implicit else str(element.VR).encode(), value)
            elif not isinstance(value, (list, Dataset)) and value is not None:
                raw[keyword] = (b"LO", str(value).encode("latin-1", "replace"))
    if len(raw) == 0:
        raise NotDicomError(f"{path} has no element of an image")
    header.values, header.malformed = take_values(raw, order)
    if any(tag in dataset for tag in _FUNCTIONAL_GROUPS):
        header.dataset = dataset
    start = file.read(12)
    if len(start) == 12 and struct.unpack_from(order + "HH", start) == (0x7FE0, 0x0010):
        _, vr, length, value = read_element(start, 0, order, implicit=bool(implicit))
        header.pixel_offset, header.pixel_vr = end + value, vr.decode() or "OW"
        header.pixel_length = -1 if length == UNDEFINED else length
    return header
