"""Stored values -> physical values: rescale by slice, padding, and the fault of CT whose pixels are HU already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from aneurysm.dicom.pixels import PixelReader, Pixels
from aneurysm.dicom.series import Decision, Frame
from aneurysm.errors import PixelError

_GE_PADDING: Final = -2000
_AIR_HU: Final = -1000.0
_LOOKED_AT: Final = 5


def already_hu(frames: Sequence[Frame], reader: PixelReader) -> Decision | None:
    """
    Say whether CT pixels are HU although the header has a rescale, which must then not be applied again.

    Looked at are a few slices through the stack, without padding. Signed pixels below -100 can't be raw values that are
    rescaled by about -1024 to HU (nothing is darker than air); and a rescale that leaves no tissue at all is wrong
    as well. The first is what users of the RSNA data do (raw minimum at least -100, or GE's padding of -2000), made
    robust by a percentile.
    """
    suspects = [f for f in frames if f.format.signed and f.intercept < -100]
    if len(suspects) * 2 <= len(frames):
        return None
    picked = [suspects[i] for i in np.linspace(0, len(suspects) - 1, _LOOKED_AT + 2).astype(int)[1:-1]]
    values = []
    for frame in picked:
        try:
            raw = reader.read(frame)[::4, ::4].ravel()
        except PixelError:
            continue
        raw = raw[raw > _GE_PADDING]
        if frame.padding is not None:
            raw = raw[(raw < frame.padding[0]) | (raw > frame.padding[1])]
        values.append(raw)
    sample = np.concatenate(values) if values else np.empty(0)
    if len(sample) == 0:
        return None
    dark, bright = np.percentile(sample, [2, 99])
    slope, intercept = suspects[0].slope, suspects[0].intercept
    if dark < -100:
        why = f"2 % of the stored values lie below {dark:.0f}"
    elif bright * slope + intercept < -300 and bright > -300:
        why = f"99 % of the rescaled values would lie below {bright * slope + intercept:.0f} HU"
    else:
        return None
    return Decision("already_hu", f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g} are not applied: {why}")


def clip_stored(pixels: Pixels, low: float, high: float, slope: float, intercept: float) -> Pixels:
    """
    Clip stored values to the physical range ``low`` to ``high``, in integers.

    Before any interpolation: padding of -2000 and metal of 30,000 would bleed into their neighbours.
    """
    a, b = sorted(((low - intercept) / slope, (high - intercept) / slope))
    info = np.iinfo(pixels.dtype)
    lower = int(np.clip(np.floor(a), info.min, info.max))
    upper = int(np.clip(np.ceil(b), info.min, info.max))
    return np.clip(pixels, lower, upper)


def trusted_padding(frame: Frame, slope: float, intercept: float, *, ct: bool) -> tuple[int, int] | None:
    """
    Return the range of padding values of ``frame``, None if there is none or it can't be padding.

    Some CT files name 0 as padding where 0 is water: a value between air and bone is not believed.
    """
    if frame.padding is None:
        return None
    low, high = frame.padding
    if ct:
        physical = sorted((low * slope + intercept, high * slope + intercept))
        if physical[1] > -900 and physical[0] < 3000:
            return None
    return low, high


def without_padding(
    pixels: Pixels, padding: tuple[int, int] | None, slope: float, intercept: float, air: float
) -> Pixels:
    """Replace padding by the stored value of ``air`` (physical)."""
    if padding is None:
        return pixels
    low, high = padding
    info = np.iinfo(pixels.dtype)
    is_padding = (pixels >= max(low, info.min)) & (pixels <= min(high, info.max)) if low <= info.max else None
    if is_padding is None or not is_padding.any():
        return pixels
    stored_air = int(np.clip(round((air - intercept) / slope), info.min, info.max))
    return np.where(is_padding, pixels.dtype.type(stored_air), pixels)
