"""SeriesFacts: what is known of a series before it is read, by its folder and by one header: what its costs go by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.dicom.header import Header

_MOST_FRAMES: Final = 2**24
_MOST_VOXELS: Final = 2**44
"""Headers lie: bounds far beyond any series, so that sums of such numbers stay numbers."""
_ROW: Final = np.dtype(
    [("files", np.int32), ("bytes", np.int64), ("frames", np.int32), ("voxels", np.int64), ("syntax", np.int32)]
)


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """
    What a series has, as far as it is known.

    Attributes
    ----------
    files, bytes
        How many files it has, and about how many bytes: a disk is asked for the size of the middle file alone. 0 and 0
        if they can't be listed.
    frames, voxels
        If all files are as the middle one: voxels are those that are decoded. 0 if that is not known.
    syntax
        UID of the transfer syntax of the middle file, or "".
    """

    files: int = 0
    bytes: int = 0
    frames: int = 0
    voxels: int = 0
    syntax: str = ""

    def same_extent(self, other: SeriesFacts) -> bool:
        """Return True if both have as many files and bytes."""
        return (self.files, self.bytes) == (other.files, other.bytes)

    def with_header(self, header: Header) -> SeriesFacts:
        """Return these facts and what the header of the middle file says of the others."""
        if not header.pixel_length:
            return self
        each, rows, columns, samples = (
            max(0, int(header.get(keyword, default)))
            for keyword, default in (("NumberOfFrames", 1), ("Rows", 0), ("Columns", 0), ("SamplesPerPixel", 1))
        )
        frames = min(self.files * each, _MOST_FRAMES)
        voxels = min(frames * rows * columns * samples, _MOST_VOXELS)
        return replace(self, frames=frames, voxels=voxels, syntax=header.transfer_syntax)


class FactsTable:
    """Facts of ``count`` series by index, in 28 bytes each; of those that nobody filled in nothing is known."""

    def __init__(self, count: int) -> None:
        self._rows = np.zeros(count, _ROW)
        self._syntaxes = [""]
        self._codes = {"": 0}

    def fill(self, indices: Iterable[int], facts: Iterable[SeriesFacts]) -> None:
        """Set the facts of the series of ``indices``, as many as there are."""
        for index, of in zip(indices, facts, strict=True):
            if (code := self._codes.get(of.syntax)) is None:
                code = self._codes[of.syntax] = len(self._syntaxes)
                self._syntaxes.append(of.syntax)
            self._rows[index] = (of.files, of.bytes, of.frames, of.voxels, code)

    def __getitem__(self, index: int) -> SeriesFacts:
        files, size, frames, voxels, code = self._rows[index].item()
        return SeriesFacts(files, size, frames, voxels, self._syntaxes[code])

    @property
    def bytes(self) -> NDArray[np.int64]:
        """(series,), 0 where they are not known."""
        sizes: NDArray[np.int64] = self._rows["bytes"]
        return sizes
