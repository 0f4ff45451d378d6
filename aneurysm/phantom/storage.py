"""Signal -> stored integers: rescale, bits, sign, padding, inversion, and the faults that occur in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aneurysm.phantom.plan import SeriesPlan
from aneurysm.phantom.shapes import Array

PADDING = -2000
"""What GE stores outside of the round field of view of a CT."""


@dataclass(frozen=True)
class PixelStorage:
    """
    How one series stores its pixels.

    ``gain`` turns an MR signal (1 = the brightest tissue) into the scanner's units, and is 1 for CT. ``intercept`` is
    what the header says, ``true_intercept`` what the pixels obey: they differ where the pixels are HU already.
    """

    signed: bool
    bits_stored: int
    slope: float
    intercept: float
    true_intercept: float
    gain: float
    padding: bool
    inverted: bool

    @property
    def limits(self) -> tuple[int, int]:
        """Least and greatest stored value."""
        if self.signed:
            return -(1 << (self.bits_stored - 1)), (1 << (self.bits_stored - 1)) - 1
        return 0, (1 << self.bits_stored) - 1

    def store(self, image: Array, slope: float) -> npt.NDArray[Any]:
        """(rows, columns) signal or HU -> stored values, int16 or uint16; ``slope`` is that of the slice."""
        low, high = self.limits
        values = image * np.float32(self.gain / slope) - np.float32(self.true_intercept / slope)
        if not self.signed:
            low = max(low, 0)
        elif self.true_intercept < 0:
            low = 0  # A reconstruction clips at -1024 HU, whatever the pixels could hold.
        else:
            low = max(low, -1024)
        stored = np.clip(np.rint(values, out=values), low, high).astype(np.int32)
        if self.padding:
            stored[_outside_circle(stored.shape)] = PADDING
        if self.inverted:
            stored = ~stored if self.signed else self.limits[1] - stored
        return np.asarray(stored, dtype=np.int16 if self.signed else np.uint16)


def _outside_circle(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    rows, columns = shape
    y = (np.arange(rows) - (rows - 1) / 2) / (rows / 2)
    x = (np.arange(columns) - (columns - 1) / 2) / (columns / 2)
    return np.asarray(y[:, None] ** 2 + x**2 > 1.0)


def draw_storage(plan: SeriesPlan) -> PixelStorage:
    """Draw the storage of a series: vendors differ, and quirks overrule."""
    rng = plan.streams("storage")
    inverted = plan.has("monochrome1")
    if plan.modality != "CTA":
        gain = float(np.exp(rng.uniform(np.log(250), np.log(3000))))
        bits = 12 if gain < 2400 and rng.random() < 0.7 else 16
        signed = bits == 16 and rng.random() < 0.4
        return PixelStorage(signed, bits, 1.0, 0.0, 0.0, gain, padding=False, inverted=inverted)
    if plan.has("padding"):
        return PixelStorage(True, 16, 1.0, -1024.0, -1024.0, 1.0, padding=True, inverted=False)
    if plan.has("already_hu"):
        return PixelStorage(True, 16, 1.0, -1024.0, 0.0, 1.0, padding=False, inverted=False)
    styles = [
        PixelStorage(False, 12, 1.0, -1024.0, -1024.0, 1.0, padding=False, inverted=inverted),
        PixelStorage(False, 16, 1.0, -1024.0, -1024.0, 1.0, padding=False, inverted=inverted),
        PixelStorage(True, 16, 1.0, -1024.0, -1024.0, 1.0, padding=False, inverted=inverted),
        PixelStorage(True, 16, 1.0, 0.0, 0.0, 1.0, padding=False, inverted=inverted),
    ]
    return styles[int(rng.integers(len(styles)))]


def slice_slope(plan: SeriesPlan, storage: PixelStorage, k: int) -> float:
    """RescaleSlope of a slice, as it stands in the header (16 characters at most)."""
    if not plan.has("slice_rescale"):
        return storage.slope
    return round(float(plan.streams("slope", k).uniform(0.5, 2.0)), 6)
