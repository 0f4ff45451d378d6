"""Frames of one stack -> the rescaling of each: they must agree, and the few that don't count as damaged slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from aneurysm.dicom.frame import Decision, Frame, FrameKey, Rescale, listed
from aneurysm.dicom.pixels import PixelReader
from aneurysm.errors import PixelError, Reason, SeriesRejectedError
from aneurysm.volume.hounsfield import Levels, Rescaling, level_difference, level_ratio, slice_levels
from aneurysm.volume.padding import trusted_padding

DAMAGED: Final = "inconsistent_slices"
"""The decision about slices that contradict the others."""
_HOUNSFIELD: Final = frozenset({"", "HU", "HU_MOD"})
"""Units of pixels that are taken for HU: of ordinary and of dual-energy CT, and none."""
_REPAIRED: Final = 0.1
"""Up to this share of the slices may have their neighbours' rescale; more without one is no accident."""
_COMPARED: Final = 32
_SAME_HU: Final = 150.0
_SAME_RATIO: Final = 1.5
_SLOPE_RATIO: Final = 1000.0


@dataclass
class Agreement:
    """The rescaling of each frame by its key, the frames that count as damaged, and what was decided."""

    rescaling: dict[FrameKey, Rescaling] = field(default_factory=dict)
    damaged: list[Frame] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)


def agree(frames: Sequence[Frame], reader: PixelReader, *, ct: bool) -> Agreement:
    """
    Return the rescaling of ``frames``, which are one stack in order.

    Slopes and intercepts may differ from slice to slice, as they do in MR; that some slices have none where others
    have, or another unit, other bits or another sign, is damage. A few slices that merely lack the one rescale that
    all others have get it, if that makes them fit their neighbours. In CT a rescale that differs from most others'
    must make its slice fit its neighbours, too.

    Raises
    ------
    SeriesRejectedError
        No majority agrees, or CT is in another unit than HU.
    """
    found = Agreement()
    rescales = _usable_rescales(frames, found, ct=ct)
    traits = _traits(frames, rescales, ct=ct)
    common, count = Counter(traits).most_common(1)[0]
    if count * 2 <= len(frames):
        raise SeriesRejectedError(
            Reason.UNSUPPORTED_PIXELS,
            f"the slices differ in {_differences(traits, common)}, and {count} of {len(frames)} at most are alike",
        )
    unit = dict(common)["unit"]
    if ct and unit != "HU":
        raise SeriesRejectedError(
            Reason.UNSUPPORTED_PIXELS, f"the unit of the pixels is {unit[:16]!r}, and CT is read in HU"
        )
    odd = [i for i, trait in enumerate(traits) if trait != common]
    alike = [i for i, trait in enumerate(traits) if trait == common]
    if dict(common)["rescale"] == "absurd":
        slope, intercept = rescales[alike[0]].line
        raise SeriesRejectedError(
            Reason.UNSUPPORTED_PIXELS, f"RescaleSlope is {slope:g}, RescaleIntercept {intercept:g}"
        )
    found.rescaling = {f.key: r.line for f, r in zip(frames, rescales, strict=True)}
    neighbours = _Neighbours(frames, reader, found.rescaling, alike, ct=ct)
    if odd and (repaired := _repaired(odd, rescales, traits, common, neighbours)):
        # One rescale for all of them, or there would be no repair.
        for i in repaired:
            found.rescaling[frames[i].key] = found.rescaling[frames[alike[0]].key]
        found.decisions.append(
            _decision("rescale_from_neighbours", "have no rescale, and got the others'", frames, repaired)
        )
        odd = [i for i in odd if i not in repaired]
    if odd:
        names = _differences([traits[i] for i in odd], common)
        found.decisions.append(_decision(DAMAGED, f"differ from the others in {names}: left out", frames, odd))
    strays = _at_another_level(alike, neighbours) if ct else _far_slopes(alike, rescales)
    if strays:
        why = "have another rescale than the others, and don't fit their neighbours: left out"
        found.decisions.append(_decision(DAMAGED, why, frames, strays))
    found.damaged = [frames[i] for i in sorted({*odd, *strays})]
    return found


def _usable_rescales(frames: Sequence[Frame], found: Agreement, *, ct: bool) -> list[Rescale]:
    rescales = [f.rescale for f in frames]
    mapped = [(r.slope, r.intercept) for r in rescales if r.real_world]
    if mapped and not ct and len(set(mapped)) == 1:
        # MR has no unit to lose, and what all slices have in common changes nothing.
        rescales = [Rescale() if r.real_world else r for r in rescales]
    elif mapped:
        detail = (
            f"{len(mapped)} of {len(frames)} slices have no rescale; their mapping to real world values was applied"
        )
        found.decisions.append(Decision("real_world_values", detail))
    if zero := sum(r.slope == 0 for r in rescales):
        found.decisions.append(
            Decision("zero_slope", f"RescaleSlope is 0 in {zero} of {len(frames)} slices: not applied")
        )
        rescales = [replace(r, slope=None) if r.slope == 0 else r for r in rescales]
    return rescales


Trait = tuple[tuple[str, Any], ...]


def _traits(frames: Sequence[Frame], rescales: Sequence[Rescale], *, ct: bool) -> list[Trait]:
    """Return of each frame what must be the same in all."""
    # Absent, and present as 1 and 0, are the same.
    scaled = any(r.slope not in (None, 1) for r in rescales)
    shifted = any(r.intercept for r in rescales)
    traits: list[Trait] = []
    for frame, rescale in zip(frames, rescales, strict=True):
        fmt = frame.format
        has = (rescale.slope is not None and scaled, rescale.intercept is not None and shifted, rescale.real_world)
        traits.append(
            (
                ("rescale", "absurd" if rescale.is_absurd else has),
                ("unit", "HU" if ct and rescale.unit in _HOUNSFIELD else rescale.unit),
                ("BitsAllocated", fmt.bits_allocated),
                ("BitsStored", fmt.bits_stored),
                ("HighBit", fmt.high_bit),
                ("PixelRepresentation", fmt.signed),
                ("PhotometricInterpretation", fmt.photometric),
            )
        )
    return traits


def _differences(traits: Sequence[Trait], common: Trait) -> str:
    return ", ".join(name for k, (name, value) in enumerate(common) if any(t[k][1] != value for t in traits))


def _repaired(
    odd: Sequence[int], rescales: Sequence[Rescale], traits: Sequence[Trait], common: Trait, neighbours: _Neighbours
) -> list[int]:
    """Return those of ``odd`` that lack nothing but the rescale which all others have, and fit them with it."""
    alike = neighbours.alike
    bare = [i for i in odd if not rescales[i].present and traits[i][2:] == common[2:]]
    one = {rescales[i].line for i in alike}
    if len(one) > 1 or not bare or len(bare) > _REPAIRED * len(rescales):
        return []
    how = one.pop()
    return [i for i in bare if neighbours.fits(i, how)]


def _at_another_level(alike: Sequence[int], neighbours: _Neighbours) -> list[int]:
    """Return the CT slices whose own rescale makes them another level than the nearest slice of the commonest one."""
    frames, rescaling = neighbours.frames, neighbours.rescaling
    kinds = Counter(rescaling[frames[i].key] for i in alike)
    if len(kinds) == 1:
        return []
    common, count = kinds.most_common(1)[0]
    others = [i for i in alike if rescaling[frames[i].key] != common]
    if count * 2 > len(alike) and len(others) <= _COMPARED:
        usual = replace(neighbours, alike=[i for i in alike if rescaling[frames[i].key] == common])
        return [i for i in others if not usual.fits(i, rescaling[frames[i].key])]
    # Every slice has its own: a few are compared with the one beside it.
    for i in np.unique(np.linspace(0, len(alike) - 2, _COMPARED // 2).astype(int)):
        here, beside = alike[i], alike[i + 1]
        if not replace(neighbours, alike=[beside]).fits(here, rescaling[frames[here].key]):
            raise SeriesRejectedError(
                Reason.IMPLAUSIBLE_HU,
                f"{frames[here].name} and {frames[beside].name} lie beside each other, and differ by more than "
                f"{_SAME_HU:g} HU by their rescales",
            )
    return []


def _far_slopes(alike: Sequence[int], rescales: Sequence[Rescale]) -> list[int]:
    slopes = np.abs([rescales[i].line[0] for i in alike])
    ratio = slopes / np.median(slopes)
    return [i for i, r in zip(alike, ratio, strict=True) if not 1 / _SLOPE_RATIO < r < _SLOPE_RATIO]


@dataclass
class _Neighbours:
    """Compares slices with the nearest of those that are ``alike``."""

    frames: Sequence[Frame]
    reader: PixelReader
    rescaling: dict[FrameKey, Rescaling]
    alike: Sequence[int]
    ct: bool

    def fits(self, i: int, how: Rescaling) -> bool:
        """Return True if slice ``i`` rescaled like that is of the level of the nearest alike."""
        j = min((k for k in self.alike if k != i), key=lambda k: abs(k - i))
        usual = self.rescaling[self.frames[j].key]
        try:
            a, b = self._levels(self.frames[i], how), self._levels(self.frames[j], usual)
        except PixelError:
            return False
        if self.ct:
            return abs(level_difference(a, how, b, usual)) < _SAME_HU
        return 1 / _SAME_RATIO < level_ratio(a, how, b, usual) < _SAME_RATIO

    def _levels(self, frame: Frame, how: Rescaling) -> Levels:
        padding = trusted_padding(frame.padding, frame.format, *how, ct=self.ct)
        return slice_levels(self.reader.read(frame, keep=True), padding)


def _decision(code: str, what: str, frames: Sequence[Frame], which: Sequence[int]) -> Decision:
    names = listed([frames[i].name for i in which], 4)
    return Decision(code, f"{len(which)} of {len(frames)} slices {what} ({names})")
