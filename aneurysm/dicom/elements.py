"""Bytes -> data elements: where a tag, its length and its value are, without making sense of the value (PS3.5, 7.1)."""

from __future__ import annotations

import struct
from typing import Final

UNDEFINED: Final = 0xFFFFFFFF
_LONG_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT_VRS: Final = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
VRS: Final = _LONG_VRS | _SHORT_VRS
# By byte order: tag, VR and short length at once; and a long length.
_STRUCTS: Final = {order: (struct.Struct(f"{order}HH2sH"), struct.Struct(f"{order}I")) for order in "<>"}
_MAX_DEPTH: Final = 32


class UnusualError(Exception):
    """The bytes are not what ordinary files have: a VR that is none, items where none should be."""


def read_element(buffer: bytes, at: int, order: str, *, implicit: bool) -> tuple[int, bytes, int, int]:
    """Return tag, VR (empty if implicit), length and the offset of the value of the element at ``at``."""
    short, long = _STRUCTS[order]
    group, number, vr, length = short.unpack_from(buffer, at)
    tag = group << 16 | number
    if implicit or group == 0xFFFE:
        return tag, b"", long.unpack_from(buffer, at + 4)[0], at + 8
    if vr in _SHORT_VRS:
        return tag, vr, length, at + 8
    if vr in _LONG_VRS:
        return tag, vr, long.unpack_from(buffer, at + 8)[0], at + 12
    raise UnusualError


def read_file_meta(buffer: bytes) -> tuple[str, int]:
    """
    Return the transfer syntax of a file ("" if it has none), and the offset of its data set (PS3.10, 7.1).

    Raises
    ------
    UnusualError
        There is no preamble.
    struct.error
        ``buffer`` ends before the data set begins.
    """
    if buffer[128:132] != b"DICM":
        raise UnusualError
    position, syntax = 132, b""
    while buffer[position : position + 2] == b"\x02\x00":
        tag, _, length, value = read_element(buffer, position, "<", implicit=False)
        if tag == 0x00020010:
            syntax = buffer[value : value + length]
        position = value + length
    if position > len(buffer):
        raise struct.error("the file meta information breaks off")
    return syntax.rstrip(b"\0 ").decode("ascii", "replace"), position


def skip_items(buffer: bytes, at: int, order: str, *, implicit: bool, depth: int) -> int:
    """Return the offset behind a sequence of undefined length whose first item is at ``at``."""
    if depth > _MAX_DEPTH:
        raise UnusualError
    while True:
        tag, _, length, value = read_element(buffer, at, order, implicit=True)
        if tag == 0xFFFEE0DD:
            return value
        if tag != 0xFFFEE000:
            raise UnusualError
        if length != UNDEFINED:
            at = value + length
            continue
        at = value
        while True:
            tag, vr, length, value = read_element(buffer, at, order, implicit=implicit)
            if tag == 0xFFFEE00D:
                at = value
                break
            if length == UNDEFINED:
                inner = implicit or vr == b"UN"
                at = skip_items(buffer, value, order, implicit=inner, depth=depth + 1)
            else:
                at = value + length
