"""Vessel masks of a data folder: where they are, and their voxels, read within bounds of time and memory."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aneurysm.dicom.frame import Decision

MASKS: Final = "segmentations"
MASK_ENDINGS: Final = ("_cowseg.nii", "_cowseg.nii.gz")


def find_masks(root: Path) -> dict[str, Path]:
    """Return by series UID the vessel masks below ``root``/segmentations, flat or each in a folder of its own."""
    masks: dict[str, Path] = {}
    folder = root / MASKS
    if not folder.is_dir():
        return masks
    names = sorted(p.name for p in folder.iterdir())
    for ending in MASK_ENDINGS:
        flat = ((name.removesuffix(ending), folder / name) for name in names if name.endswith(ending))
        nested = ((name, folder / name / f"{name}{ending}") for name in names)
        for uid, path in (*flat, *nested):  # the first found counts
            if uid not in masks and path.is_file():
                masks[uid] = path
    return masks


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

    @property
    def bytes(self) -> int:
        """Of all voxels; 0 where they are no numbers."""
        return math.prod(self.shape) * _ITEM_SIZES.get(self.kind, 0)


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
    unusable = Decision("mask_unusable", f"values from {low:g} to {high:g}, not whole numbers 0 to {highest}")
    if low < 0 or high > highest:
        return unusable
    if values.dtype == np.uint8:
        return image, values
    small = values.astype(np.uint8)
    if not all(np.array_equal(*planes) for planes in zip(small, values, strict=True)):
        return unusable
    narrow = sitk.GetImageFromArray(small)
    narrow.CopyInformation(image)
    return narrow, small


def _problem(path: Path) -> tuple[str, str] | None:
    """Return code and detail of what keeps the file from being read, by its header and its length, or None."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_MOST_COMPRESSED)
        compressed = start[:2] == b"\x1f\x8b"
        header = _header(_inflated(start) if compressed else start)
        if header is None or compressed != (path.suffix == ".gz"):
            return "mask_unreadable", "the file is not NIfTI, or its header breaks off"
        if problem := _not_an_image(header):
            return "mask_unusable", problem
        if not 0 <= header.offset <= _MOST_OFFSET:  # nor NaN
            return "mask_unreadable", f"the header places the voxels at byte {header.offset:g}"
        end = int(header.offset) + header.bytes
        if (size > 2 * end) if compressed else (size < end):
            return "mask_unreadable", f"the file has {size} bytes, by its header {end} are needed"
        left = min(size, end)
        while left > 0 and (piece := file.read(_PIECE)):  # ITK does not tell a disk that fails from a damaged file
            left -= len(piece)
    return None


def _not_an_image(header: _Header) -> str:
    shape = " x ".join(str(n) for n in header.shape)
    if min(header.shape, default=0) < 1 or sum(n > 1 for n in header.shape) > 3:
        return f"{shape or 'no'} voxels, not a 3D image"
    if header.bytes == 0:
        return f"data type {header.kind}, not numbers"
    if math.prod(header.shape) > MOST_VOXELS or header.bytes > MOST_BYTES:
        return f"{shape} voxels in {header.bytes} bytes, larger than any head: {MOST_VOXELS} in {MOST_BYTES} are read"
    return ""


def _inflated(start: bytes) -> bytes:
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(start, 540)
    except zlib.error:
        return b""


def _header(start: bytes) -> _Header | None:
    """Return the header of a single NIfTI file that begins with ``start``, None if there is none."""
    layouts = ((348, b"n+1\0", 344, "8h", 40, 70, "f", 108), (540, b"n+2\0", 4, "8q", 16, 12, "q", 168))
    for order in "<>":
        for size, magic, magic_at, dims, dims_at, kind_at, offset, offset_at in layouts:
            if start[:4] == struct.pack(f"{order}i", size) and start[magic_at : magic_at + 4] == magic:
                if len(start) < size:
                    return None
                rank, *shape = struct.unpack_from(order + dims, start, dims_at)
                (kind,) = struct.unpack_from(f"{order}h", start, kind_at)
                return _Header(
                    tuple(shape[: max(0, rank)]), kind, *struct.unpack_from(order + offset, start, offset_at)
                )
    return None
