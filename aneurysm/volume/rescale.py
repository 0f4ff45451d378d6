"""Stored values -> physical values: rescale by slice, padding, and the fault of CT whose pixels are HU already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from aneurysm.dicom.pixels import PixelReader, Pixels
from aneurysm.dicom.series import Decision, Frame
from aneurysm.errors import PixelError, Reason, SeriesRejectedError

_GE_PADDING: Final = -2000
_MIDDLE_HU: Final = -500.0
"""Between air and all of the head."""
_LOOKED_AT: Final = 5
_SPREAD: Final = 0.005
_HOUNSFIELD: Final = frozenset({"", "HU", "HU_MOD", "US", "UNSPECIFIED"})
"""Values of RescaleType whose pixels are taken for HU: of ordinary and of dual-energy CT, and unspecified ones."""


def check_unit(frames: Sequence[Frame]) -> None:
    """
    Raise `SeriesRejectedError` where CT pixels are no HU: maps of iodine or of effective atomic number are CT, too.

    They are told by RescaleType (PS3.3 C.11.1.1.2).
    """
    for frame in frames:
        unit = frame.rescale_type.strip().upper()
        if unit not in _HOUNSFIELD:
            raise SeriesRejectedError(Reason.UNSUPPORTED_PIXELS, f"RescaleType is {unit[:16]!r}, and CT is read in HU")


def is_suspect(frame: Frame) -> bool:
    """Say whether the pixels of a CT ``frame`` may be HU although there is a rescale."""
    return frame.format.signed and frame.intercept < -100


def as_stored(frames: Sequence[Frame], reader: PixelReader) -> list[Frame] | None:
    """
    Return CT ``frames`` of MONOCHROME1 as MONOCHROME2 if their stored values are the ones to be rescaled, else None.

    By the standard MONOCHROME1 inverts the display alone (PS3.3 C.7.6.3.1.2); other writers, and SimpleITK, invert the
    values. The border of an image is air in one way only; where it is in neither, values are inverted.
    """
    inverted = [f for f in frames if f.format.photometric == "MONOCHROME1"]
    shown, stored = [], []
    for i in np.linspace(0, len(inverted) - 1, _LOOKED_AT if inverted else 0).astype(int):
        frame = inverted[i]
        try:
            pixels = reader.read(frame)
        except PixelError:
            continue
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).astype(float)
        if (padding := trusted_padding(frame, frame.slope, frame.intercept, ct=True)) is not None:
            border = border[(border < padding[0]) | (border > padding[1])]
        shown.append(border * frame.slope + frame.intercept)
        stored.append((_inversion_top(frame) - border) * frame.slope + frame.intercept)
    if not sum(map(len, shown)) or not (
        np.median(np.concatenate(stored)) < _MIDDLE_HU < np.median(np.concatenate(shown))
    ):
        return None
    return [replace(f, format=replace(f.format, photometric="MONOCHROME2")) for f in frames]


def _inversion_top(frame: Frame) -> int:
    """Return what a value and its inverse make together: in two's complement ~v is -1 - v."""
    return -1 if frame.format.signed else (1 << frame.format.bits_stored) - 1


def already_hu(frames: Sequence[Frame], reader: PixelReader) -> Decision | None:
    """
    Say whether CT pixels are HU although the header has a rescale, which must then not be applied again.

    Looked at are a few slices through the stack, without padding. Signed pixels below -100 can't be raw values that are
    rescaled by about -1024 to HU (nothing is darker than air); and a rescale that leaves no tissue at all is wrong
    as well. The first is what users of the RSNA data do (raw minimum at least -100, or GE's padding of -2000), made
    robust by a percentile; and one value alone, which pads a round field, is no air.
    """
    suspects = [f for f in frames if is_suspect(f)]
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
        if (padding := trusted_padding(frame, 1.0, 0.0, ct=False)) is not None:
            raw = raw[(raw < padding[0]) | (raw > padding[1])]
        values.append(raw)
    sample = np.concatenate(values) if values else np.empty(0)
    if len(sample) == 0:
        return None
    dark, bright = np.percentile(sample, [2, 99])
    slope, intercept = suspects[0].slope, suspects[0].intercept
    if dark < -100 and np.mean((sample > sample.min()) & (sample < -100)) > _SPREAD:
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

    Some CT files name 0 as padding where 0 is water: a value between air and bone is not believed. Where pixels lose
    bits that are not used, or are inverted, so does, or is, padding.
    """
    if frame.padding is None:
        return None
    low, high = frame.padding
    fmt = frame.format
    if fmt.photometric == "MONOCHROME1":
        top = _inversion_top(frame)
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


def header_decisions(
    frames: Sequence[Frame], rescale: Callable[[Frame], tuple[float, float]], *, ct: bool
) -> list[Decision]:
    """Return what was decided about the stored values of ``frames``; ``rescale`` says what is applied to one."""
    decisions = []
    if inverted := sum(f.format.photometric == "MONOCHROME1" for f in frames):
        detail = "inverted within the range of BitsStored"
        decisions.append(Decision("monochrome1", f"{inverted} of {len(frames)} slices {detail}"))
    ignored = [f for f in frames if f.padding is not None and trusted_padding(f, *rescale(f), ct=ct) is None]
    if ignored and (first := ignored[0].padding) is not None:
        detail = f"PixelPaddingValue {first[0]} lies in the range of tissue, in {len(ignored)} of {len(frames)} slices"
        decisions.append(Decision("padding_ignored", detail))
    bare = sum(not f.rescaled and not f.format.signed for f in frames) if ct else 0
    if bare:
        detail = f"{bare} of {len(frames)} slices are unsigned and have no RescaleIntercept: taken for HU as they are"
        decisions.append(Decision("no_rescale", detail))
    return decisions


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
