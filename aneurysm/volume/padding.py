"""Padding of a frame: which stored values stand for no measurement, and how they become air."""

from __future__ import annotations

import numpy as np

from aneurysm.dicom.frame import PixelFormat
from aneurysm.dicom.pixels import Pixels


def trusted_padding(
    declared: tuple[int, int] | None, fmt: PixelFormat, slope: float, intercept: float, *, ct: bool
) -> tuple[int, int] | None:
    """
    Return the range of padding values, of those ``declared``, None if there is none or it can't be padding.

    Some CT files name 0 as padding where 0 is water: a value between air and bone is not believed. Where pixels lose
    bits that are not used, or are inverted, so does, or is, padding.
    """
    if declared is None:
        return None
    low, high = declared
    if fmt.photometric == "MONOCHROME1":
        top = -1 if fmt.signed else (1 << fmt.bits_stored) - 1  # in two's complement ~v is -1 - v
        low, high = top - high, top - low
    if ct:
        physical = sorted((low * slope + intercept, high * slope + intercept))
        if physical[1] > -900 and physical[0] < 3000:
            return None
    if low == high:
        low &= (1 << fmt.bits_stored) - 1
        if fmt.signed and low >> (fmt.bits_stored - 1):
            low -= 1 << fmt.bits_stored
        high = low
    return low, high


def is_padding(pixels: Pixels, padding: tuple[int, int]) -> np.ndarray | None:
    """Return where ``pixels`` are within the range of padding values, None if they are nowhere."""
    low, high = padding
    info = np.iinfo(pixels.dtype)
    if low > info.max:
        return None
    inside = (pixels >= max(low, info.min)) & (pixels <= min(high, info.max))
    return inside if inside.any() else None


def replace_padding(
    pixels: Pixels, padding: tuple[int, int] | None, slope: float, intercept: float, air: float
) -> Pixels:
    """Replace padding by the stored value of ``air`` (physical)."""
    inside = None if padding is None else is_padding(pixels, padding)
    if inside is None:
        return pixels
    info = np.iinfo(pixels.dtype)
    stored_air = int(np.clip(round((air - intercept) / slope), info.min, info.max))
    return np.where(inside, pixels.dtype.type(stored_air), pixels)
