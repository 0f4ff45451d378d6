"""How a file's elements and pixels are encoded, by their bytes: transfer syntaxes are wrong often enough (PS3.5, A)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
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
_BASELINE, JPEG_EXTENDED, _LOSSLESS, _LOSSLESS_FIRST_ORDER = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
JPEG: Final = frozenset({_BASELINE, JPEG_EXTENDED, _LOSSLESS, _LOSSLESS_FIRST_ORDER})
"""JPEG of the first standard."""
JPEG_LS: Final = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_2000: Final = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
WHOLE_CELLS: Final = NATIVE | JPEG | {RLE}
"""Transfer syntaxes that hand out whole cells; the others know only the bits that the header says are used."""

_KINDS: Final = {
    "lossy": (JPEG_EXTENDED, _BASELINE),
    "lossless": (_LOSSLESS_FIRST_ORDER, _LOSSLESS),
    "JPEG-LS": JPEG_LS,
    "JPEG 2000": (*JPEG_2000, *(f"1.2.840.10008.1.2.4.{n}" for n in (92, 93, 201, 202, 203))),
    "RLE": (RLE,),
}
"""Kinds of codestream that a decoder tells apart by itself; the first stands for one that was declared as another."""
_JPEG_KINDS: Final = dict.fromkeys((0xFFC0, 0xFFC1, 0xFFC2), "lossy") | {0xFFC3: "lossless", 0xFFF7: "JPEG-LS"}
"""By the marker of the frame header."""
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
    syntaxes = _KINDS.get(_codestream_kind(stream), (declared,))
    return declared if declared in syntaxes else syntaxes[0]


def _codestream_kind(stream: bytes) -> str:
    if stream.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")):
        return "JPEG 2000"
    if stream.startswith(b"\xff\xd8\xff"):
        with suppress(struct.error):
            return next((kind for marker, _ in jpeg_segments(stream) if (kind := _JPEG_KINDS.get(marker))), "")
    if len(stream) >= 64:
        # The RLE header (PS3.5, G.5): the number of segments, and where each begins.
        segments, *offsets = struct.unpack_from("<16I", stream)
        used, unused = offsets[:segments], offsets[segments:]
        if 1 <= segments <= 15 and used[0] == 64 and used == sorted(set(used)) and not any(unused):
            return "RLE"
    return ""


def jpeg_segments(stream: bytes) -> Iterator[tuple[int, int]]:
    """
    Yield the marker of each segment of JPEG or JPEG-LS, and where its content begins, up to what is no segment.

    Raises `struct.error` where the stream breaks off.
    """
    at = 2
    while True:
        while stream[at : at + 2] == b"\xff\xff":
            at += 1  # a marker may be preceded by any number of FF
        marker, length = struct.unpack_from(">HH", stream, at)
        if marker >> 8 != 0xFF or length < 2:
            return
        yield marker, at + 4
        at += 2 + length
