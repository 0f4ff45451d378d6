"""Header of one file -> its PixelFormat, or what is wrong with it."""

from __future__ import annotations

from typing import Final

from aneurysm.dicom.encoding import NATIVE, RLE, WHOLE_CELLS
from aneurysm.dicom.frame import MAX_MATRIX, PixelFormat
from aneurysm.dicom.header import Header

_MEANING: Final = (
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
)
"""Elements without which stored values mean something else: to go on as if they were absent would be a wrong image."""


def pixel_format(header: Header) -> PixelFormat | str:
    """Return the pixel format, or what is wrong with it."""
    needed = ("Rows", "Columns", "BitsAllocated")
    if missing := [k for k in needed if k not in header.values]:
        return f"{', '.join(missing)} absent or malformed"
    if malformed := [k for k in _MEANING if k in header.malformed]:
        return f"{', '.join(malformed)} malformed"
    if header.modality_lut:
        return "a ModalityLUTSequence in place of a linear rescale"
    rows, columns, bits = (header.values[k] for k in needed)
    if not (0 < rows <= MAX_MATRIX and 0 < columns <= MAX_MATRIX):
        return f"a matrix of {rows} x {columns}"
    if bits not in (8, 16, 32):
        return f"BitsAllocated is {bits}: 8, 16 and 32 are read"
    if bits == 32 and header.transfer_syntax not in (*NATIVE, RLE):
        return f"BitsAllocated is 32 in transfer syntax {header.transfer_syntax}"  # gdcm ends the process over it
    samples = header.get("SamplesPerPixel", 1)
    if not 1 <= samples <= 4:
        return f"SamplesPerPixel is {samples}"
    stored = header.get("BitsStored", bits)
    if not 0 < stored <= bits:
        return f"BitsStored is {stored} with BitsAllocated {bits}"
    high = header.get("HighBit", stored - 1)
    if not stored - 1 <= high < bits:
        return f"HighBit is {high} with BitsStored {stored}"
    if high != stored - 1 and header.transfer_syntax not in WHOLE_CELLS:
        return f"HighBit is {high} with BitsStored {stored} in transfer syntax {header.transfer_syntax}"
    representation = header.get("PixelRepresentation", 0)
    if representation not in (0, 1):
        return f"PixelRepresentation is {representation}"
    return PixelFormat(
        rows=rows,
        columns=columns,
        samples=samples,
        photometric=str(header.get("PhotometricInterpretation", "MONOCHROME2")),
        bits_allocated=bits,
        bits_stored=stored,
        high_bit=high,
        signed=representation == 1,
        transfer_syntax=header.transfer_syntax,
    )
