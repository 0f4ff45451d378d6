"""A tiny image in every kind of transfer syntax that is read: are the decoders there, and right."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path
from typing import Final

import numpy as np
from pydicom.encaps import encapsulate

from aneurysm.dicom.encoding import EXPLICIT_BIG, EXPLICIT_LITTLE
from aneurysm.dicom.frame import Frame, PixelFormat, Rescale
from aneurysm.dicom.pixels import PixelReader
from aneurysm.errors import PixelError, words_of

_IMAGE: Final = np.kron(np.array([[300, 1300], [2300, 3300]], np.uint16), np.ones((8, 8), np.uint16))
"""Of 12 bits, one value in each block of 8 x 8 pixels, which lossy JPEG keeps as well."""
_STREAMS: Final = {
    "JPEG baseline": (
        "1.2.840.10008.1.2.4.50",
        8,
        (
            "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoK"
            "CgoKBggLDAsKDAkKCgr/wAALCAAQABABAREA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUF"
            "BAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVW"
            "V1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi"
            "4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEBAAA/APxHr78r74r78r//2Q=="
        ),
    ),
    "JPEG extended": (
        "1.2.840.10008.1.2.4.51",
        12,
        (
            "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
            "AQEBAQEBAQEBAQEBAQH/wQALDAAQABABAREA/8QAFQABAQAAAAAAAAAAAAAAAAAADQ7/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/9oA"
            "CAEBAAA/AIlfPoB9APoD/9k="
        ),
    ),
    "JPEG lossless": (
        "1.2.840.10008.1.2.4.70",
        12,
        (
            "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALDAAQABABAREA/8QAFgABAQEAAAAAAAAAAAAAAAAAAAoL/9oACAEBAAEAAMSsBfQAAL6A"
            "ABfQAAL6AABfQAAL6AABfQAAL6AG+gAvoAAF9AAAvoAAF9AAAvoAAF9AAAvoAAF9AD//2Q=="
        ),
    ),
    "JPEG-LS": (
        "1.2.840.10008.1.2.4.80",
        12,
        (
            "/9j/6AAgU1BJRkYAAgAAAQAAABAAAAAQChAGAQAAASwAAAEs/+gACAAAAAH/2P/3AAsQABAAEAEBEQD/+AANAf//ABIAQwEUAED/"
            "2gAIAQEAAAAAZXgBAEAQCAQCAAADPgUCgUCgUCgUAPsAP1AHiAOkA4QDCAYQCA8/BQUBAQEBAAehAQEBAQEBAQBnAcIDCAwgMIDC"
            "AwgI/9k="
        ),
    ),
    "JPEG 2000": (
        "1.2.840.10008.1.2.4.90",
        12,
        (
            "/0//UQApAAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABCwEB/1IADAAAAAEAAQQEAAH/XAAHQGBoaHD/ZAAlAAFD"
            "cmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAB8AAH/k9/hQCTZAxc/O0d0x4+El8RsHjUY8i4CrVnStjYg"
            "l2B29yezZDPc0AAYEFSJKqaTFsNq0AtM+3fR8/ZDeN5+dqvKEBF5i6boD2WfqtKRivHpWnd3wfmFQ/YKACFuB/l09gTAPRsA1MBZ"
            "ZrgNuZ8A/9k="
        ),
    ),
    "RLE": (
        "1.2.840.10008.1.2.5",
        12,
        (
            "AgAAAEAAAACAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAPkB+QX5AfkF+QH5"
            "BfkB+QX5AfkF+QH5BfkB+QX5AfkF+Qj5DPkI+Qz5CPkM+Qj5DPkI+Qz5CPkM+Qj5DPkI+Qz5LPkU+Sz5FPks+RT5LPkU+Sz5FPks"
            "+RT5LPkU+Sz5FPn8+eT5/Pnk+fz55Pn8+eT5/Pnk+fz55Pn8+eT5/Pnk"
        ),
    ),
}
"""Transfer syntax, bits and codestream of the image, by the name of the kind; of 8 bits are the upper 8 of the 12."""


def decoder_faults(folder: Path) -> dict[str, str]:
    """Return what is wrong with decoding each kind of transfer syntax, empty if nothing; writes to ``folder``."""
    faults = {}
    for name, (syntax, bits, stream) in _STREAMS.items():
        content = encapsulate([b64decode(stream)], has_bot=False)
        faults[name] = _fault(folder / "image", content, -1, _format(syntax, bits))
    for name, syntax, order in (("raw", EXPLICIT_LITTLE, "<"), ("raw big-endian", EXPLICIT_BIG, ">")):
        content = _IMAGE.astype(f"{order}u2").tobytes()
        faults[name] = _fault(folder / "image", content, len(content), _format(syntax, 12))
    return faults


def _format(syntax: str, bits: int) -> PixelFormat:
    rows, columns = _IMAGE.shape
    return PixelFormat(rows, columns, 1, "MONOCHROME2", 8 if bits == 8 else 16, bits, bits - 1, False, syntax)


def _fault(path: Path, content: bytes, length: int, fmt: PixelFormat) -> str:
    path.write_bytes(content)
    frame = Frame(
        path=path, index=0, sop_uid="1.2", format=fmt, pixel_offset=0, pixel_length=length, pixel_vr="OW",
        position=None, orientation=None, spacing_mm=None, rescale=Rescale(), padding=None, instance_number=0.0,
    )  # fmt: skip
    try:
        pixels = PixelReader().read(frame)
    except PixelError as error:
        return str(error).removeprefix(f"{frame.name} ")
    except Exception as error:  # noqa: BLE001 - a library that is not as it should be
        return words_of(error)
    expected = _IMAGE >> (12 - fmt.bits_stored)
    return "" if np.array_equal(pixels, expected) else "its pixels come out wrong"
