"""NIfTI file -> ITK image of small whole numbers. Its header says what will be allocated, so that is looked at first."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aneurysm.dicom.series import Decision

MOST_VOXELS: Final = 2**29
"""512 x 512 x 2,048: more slices than any head has."""
MOST_BYTES: Final = 2**31
"""Of the voxels as they are stored: 8-byte numbers for half of them."""
_MOST_OFFSET: Final = 2**24
"""Extensions of the header, such as the history of a tool, lie before the voxels."""
_MOST_COMPRESSED: Final = 2**20
"""Bytes of a compressed file that are read for its header."""
_ITEM_SIZES: Final = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}
"""Bytes of a voxel by data type code: integers and floating-point numbers. The rest are colours and complex numbers."""
_PIECE: Final = 2**20


class _Header(NamedTuple):
    """Of NIfTI-1 or NIfTI-2: the shape (x, y, z, ...), the code of the data type, and where the voxels begin."""

    shape: tuple[int, ...]
    kind: int
    offset: float


def read_small_numbers(path: Path, highest: int) -> tuple[Any, NDArray[np.uint8]] | Decision:
    """
    Return a 3D image of whole numbers from 0 to ``highest`` as an ITK image and as its voxels (z, y, x), or why not.

    Raises
    ------
    OSError
        The operating system can't read the file.
    MemoryError
        There is too little for it.
    """
    import SimpleITK as sitk

    if problem := _problem(path):
        return Decision(*problem)
    sitk.ProcessObject.GlobalWarningDisplayOff()
    try:
        image = sitk.ReadImage(str(path), imageIO="NiftiImageIO")
    except RuntimeError as error:
        if "alloc" in str(error):
            raise MemoryError from error
        # What ITK says holds the file's name, which may be a patient's.
        return Decision("mask_unreadable", "SimpleITK can't read the mask")
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        return Decision("mask_unusable", f"{image.GetDimension()} dimensions, not a 3D image")
    values = sitk.GetArrayViewFromImage(image)
    low, high = float(values.min()), float(values.max())
    small = np.zeros(values.shape, np.uint8)
    if low >= 0 and high <= highest:  # nor NaN
        small[...] = values
    if not np.array_equal(small, values):
        return Decision("mask_unusable", f"values from {low:g} to {high:g}, not whole numbers 0 to {highest}")
    if values.dtype != np.uint8:
        narrow = sitk.GetImageFromArray(small)
        narrow.CopyInformation(image)
        image = narrow
    return image, small


def _problem(path: Path) -> tuple[str, str] | None:
    """Return code and detail of what keeps the file from being read, by its header and its length, or None."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_MOST_COMPRESSED)
        compressed = start[:2] == b"\x1f\x8b"
        header = _header(_inflated(start) if compressed else start)
        if header is None or compressed != (path.suffix == ".gz"):
            return "mask_unreadable", "the file is not NIfTI, or its header breaks off"
        voxels = math.prod(header.shape)
        stored = voxels * _ITEM_SIZES.get(header.kind, 0)
        shape = " x ".join(str(n) for n in header.shape)
        if min(header.shape, default=0) < 1 or len([n for n in header.shape if n > 1]) > 3:
            return "mask_unusable", f"an image of {shape or 'no'} voxels, not a 3D image"
        if stored == 0:
            return "mask_unusable", f"data type {header.kind}, not numbers"
        if voxels > MOST_VOXELS or stored > MOST_BYTES:
            return (
                "mask_unusable",
                f"{shape} voxels, {stored} bytes: larger than any head ({MOST_VOXELS}, {MOST_BYTES})",
            )
        if not 0 <= header.offset <= _MOST_OFFSET:  # nor NaN
            return "mask_unreadable", f"the header places the voxels at byte {header.offset:g}"
        least, most = (0, 2 * (header.offset + stored)) if compressed else (header.offset + stored, math.inf)
        if not least <= size <= most:
            return (
                "mask_unreadable",
                f"the file has {size} bytes, by its header {header.offset + stored:.0f} are needed",
            )
        left = min(size, header.offset + stored)
        while left > 0 and (piece := file.read(_PIECE)):  # ITK does not tell a disk that fails from a damaged file
            left -= len(piece)
    return None


def _inflated(start: bytes) -> bytes:
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(start, 540)
    except zlib.error:
        return b""


def _header(start: bytes) -> _Header | None:
    """Return the header of a single NIfTI file that begins with ``start``, None if there is none."""
    for order in "<>":
        try:
            match struct.unpack_from(f"{order}i", start)[0]:
                case 348 if start[344:348] == b"n+1\0":
                    dim = struct.unpack_from(f"{order}8h", start, 40)
                    kind, offset = (
                        struct.unpack_from(f"{order}h", start, 70)[0],
                        struct.unpack_from(f"{order}f", start, 108)[0],
                    )
                case 540 if start[4:8] == b"n+2\0":
                    dim = struct.unpack_from(f"{order}8q", start, 16)
                    kind, offset = (
                        struct.unpack_from(f"{order}h", start, 12)[0],
                        struct.unpack_from(f"{order}q", start, 168)[0],
                    )
                case _:
                    continue
        except struct.error:
            return None
        return _Header(dim[1 : max(0, dim[0]) + 1], kind, offset)
    return None
