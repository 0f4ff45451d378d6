"""Pixels of frames -> how unlike two of them are. Asked only where geometry and tags leave a doubt."""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from aneurysm.dicom.frame import Frame, FrameKey
from aneurysm.dicom.pixels import PixelReader
from aneurysm.errors import PixelError

_COARSE: Final = 32
"""Cells along a side: enough for the anatomy, and each is the mean of so many pixels that noise is gone."""
_KEPT: Final = 4096
"""Coarse images that are kept, of 4 KB each."""

Coarse = NDArray[np.float32]


class FrameContent(Protocol):
    """What is asked of pixels while frames become a stack."""

    def same_pixels(self, a: Frame, b: Frame) -> bool:
        """Return True if two frames hold the same values; frames that can't be read hold none."""

    def coarse(self, frame: Frame) -> Coarse | None:
        """Return physical values on a coarse grid, flat; None where they can't be read or nobody may look."""


class PixelContent:
    """The content of frames as ``reader`` reads them."""

    def __init__(self, reader: PixelReader) -> None:
        self._reader = reader
        self._coarse: dict[FrameKey, Coarse | None] = {}

    def same_pixels(self, a: Frame, b: Frame) -> bool:
        """Return True if two frames hold the same values; frames that can't be read hold none."""
        return self._reader.same_pixels(a, b)

    def coarse(self, frame: Frame) -> Coarse | None:
        """Return physical values on a coarse grid, flat; None where they can't be read."""
        if frame.key not in self._coarse:
            if len(self._coarse) >= _KEPT:
                self._coarse.clear()
            try:
                pixels = self._reader.read(frame, keep=True)
                self._coarse[frame.key] = None if frame.rescale.is_absurd else _shrunk(pixels, *frame.rescale.line)
            except PixelError:
                self._coarse[frame.key] = None
        return self._coarse[frame.key]


class HeadersOnly:
    """Stands for the content where pixels must not be decoded: frames at one place are alike, and nothing is unlike."""

    def same_pixels(self, a: Frame, b: Frame) -> bool:  # noqa: ARG002 - the protocol's
        """Return True."""
        return True

    def coarse(self, frame: Frame) -> Coarse | None:  # noqa: ARG002 - the protocol's
        """Return None."""
        return None


def unlikeness(a: Coarse | None, b: Coarse | None) -> float:
    """
    Return 0 for images that differ by a factor alone, up to 1 for those that have nothing in common.

    It is the square root of 1 - cosine of the angle between them, above the darkest cell of both: proportional to how
    far apart two slices of smooth anatomy lie. Brightness does not count, since the outer slices of MR are darker and
    those taken by turns may differ. 0 where one of them is not known: no evidence.
    """
    if a is None or b is None or len(a) != len(b):
        return 0.0
    floor = min(float(a.min()), float(b.min()))
    above_a, above_b = a - floor, b - floor
    size = float(np.linalg.norm(above_a)) * float(np.linalg.norm(above_b))
    if size == 0:
        return float(np.any(above_a) != np.any(above_b))
    return float(np.sqrt(max(0.0, 1.0 - float(above_a @ above_b) / size)))


def _shrunk(pixels: NDArray[Any], slope: float, intercept: float) -> Coarse:
    rows, columns = pixels.shape
    edges = [np.unique(np.linspace(0, n, min(_COARSE, n) + 1).astype(int)[:-1]) for n in (rows, columns)]
    sums = np.add.reduceat(np.add.reduceat(pixels, edges[0], axis=0, dtype=np.float64), edges[1], axis=1)
    counts = np.outer(np.diff([*edges[0], rows]), np.diff([*edges[1], columns]))
    return np.asarray((sums / counts * slope + intercept).ravel(), np.float32)
