"""How a file's elements and pixels are encoded, by their bytes: transfer syntaxes are wrong often enough (PS3.5, A)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from aneurysm.dicom.elements import UNDEFINED, VRS

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
RLE: Final = "1.2.840.10008.1.2.5"
NATIVE: Final = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED})
"""Transfer syntaxes whose pixels are plain."""

_JPEG: Final = "1.2.840.10008.1.2.4."
_KINDS: Final = {
    "lossy": ("51", "50"),
    "lossless": ("70", "57"),
    "JPEG-LS": ("80", "81"),
    "JPEG 2000": ("90", "91", "92", "93", "201", "202", "203"),
}
"""Kinds of codestream that a decoder tells apart by itself; the first stands for one that was declared as another."""
_LONGEST_FIRST: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Encoding:
    """Of a data set: VRs are left out (``implicit``) or not, and the byte order, ``<`` or ``>``."""

    implicit: bool
    order: str

    @property
    def syntax(self) -> str:
        """The transfer syntax of plain pixels in such a data set."""
        if self.order == ">":
            return EXPLICIT_BIG
        return IMPLICIT_LITTLE if self.implicit else EXPLICIT_LITTLE

    def __str__(self) -> str:
        return f"{'implicit' if self.implicit else 'explicit'} {'little' if self.order == '<' else 'big'} endian"


def declared_encoding(syntax: str) -> Encoding:
    """Return how a data set of a transfer syntax is to be encoded: all but two are explicit little endian."""
    return Encoding(syntax == IMPLICIT_LITTLE, ">" if syntax == EXPLICIT_BIG else "<")


def found_encoding(start: bytes) -> Encoding | None:
    """Return how a data set is encoded, by its first 8 bytes; None if none begins so, as one that is deflated."""
    # Groups of a first element are below 0x100, whatever the file is: one byte is 0, and shows the byte order.
    if len(start) < 8 or (start[0] == 0) == (start[1] == 0):
        return None
    order = "<" if start[1] == 0 else ">"
    if start[4:6] in VRS:
        return Encoding(implicit=False, order=order)
    (length,) = struct.unpack_from(f"{order}I", start, 4)
    return Encoding(implicit=True, order=order) if length < _LONGEST_FIRST or length == UNDEFINED else None


def codestream_syntax(stream: bytes, declared: str) -> str:
    """
    Return the transfer syntax of a compressed frame by its first bytes.

    ``declared`` where they are of its kind, or of none that is known.
    """
    kind = _codestream_kind(stream)
    if kind is None or declared == kind:
        return declared
    if kind == RLE:
        return RLE
    syntaxes = [_JPEG + number for number in _KINDS[kind]]
    return declared if declared in syntaxes else syntaxes[0]


def _codestream_kind(stream: bytes) -> str | None:
    if stream.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")):
        return "JPEG 2000"
    if stream.startswith(b"\xff\xd8\xff"):
        return _jpeg_kind(stream)
    if len(stream) >= 64:
        # The RLE header (PS3.5, G.5): the number of segments, and where each begins.
        segments, *offsets = struct.unpack_from("<16I", stream)
        used, unused = offsets[:segments], offsets[segments:]
        if 1 <= segments <= 15 and used[0] == 64 and used == sorted(set(used)) and not any(unused):
            return RLE
    return None


def _jpeg_kind(stream: bytes) -> str | None:
    """Return the kind of a stream that begins like JPEG, by the marker of its frame header."""
    at = 2
    while at + 4 <= len(stream):
        if stream[at : at + 2] == b"\xff\xff":
            at += 1  # a marker may be preceded by any number of FF
            continue
        marker, length = struct.unpack_from(">HH", stream, at)
        if marker == 0xFFF7:
            return "JPEG-LS"
        if marker == 0xFFC3:
            return "lossless"
        if 0xFFC0 <= marker <= 0xFFC2:
            return "lossy"
        if marker >> 8 != 0xFF:
            return None
        at += 2 + length
    return None
