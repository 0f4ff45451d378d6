"""What the stored values of a stack mean: bits, sign, inversion, rescale and padding, decided for all of its frames.

The header's reading comes first. It is held against a few slices: in CT against what is known of Hounsfield units
(`hounsfield`), and in CT and MR against the bits themselves, since values that wrap around tear neighbours apart. A
plausible reading is left alone. Otherwise each of the known faults is tried, and if exactly one makes the slices what
they should be it is taken, with a decision that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NoReturn

import numpy as np

from aneurysm.dicom.encoding import WHOLE_CELLS
from aneurysm.dicom.frame import Decision, Frame, PixelFormat
from aneurysm.dicom.pixels import PixelReader, Pixels, inverted, used_bits
from aneurysm.errors import PixelError, Reason, SeriesRejectedError
from aneurysm.volume.agreement import agree
from aneurysm.volume.hounsfield import (
    AIR_HU,
    Levels,
    Rescaling,
    doubt,
    has_soft_tissue,
    implausibility,
    slice_levels,
    soft_tissue_hu,
)
from aneurysm.volume.padding import replace_padding, trusted_padding

_PICKED: Final = 5
_LARGE: Final = 2**20
"""Slices of more pixels are thinned out: for evidence, a million of them are enough."""
_LEAST_SPAN_HU: Final = 1000.0
"""From air to tissue: stored values that span less are no CT, but a picture of one."""
_LEAST_EDGES: Final = 20
_SMOOTHER: Final = 0.8
_WRAPPED: Final = 0.05
_NEAR_HU: Final = 300.0
_TORN_HU: Final = (150.0, 2500.0)
"""More than the noise of neighbouring pixels, and no more than lies between bone and air."""
_BRIGHTEST_HU: Final = 3500.0
_BRIGHT: Final = 0.02
_MISSING_INTERCEPTS: Final = (-1024.0, -1000.0)
_BRAIN_HU: Final = 35.0


@dataclass(frozen=True)
class StoredValues:
    """What the stored values of one frame mean: ``format`` is how its bits are read, ``padding`` a range of values."""

    frame: Frame
    format: PixelFormat
    slope: float
    intercept: float
    padding: tuple[int, int] | None

    def read(self, reader: PixelReader, air: float) -> Pixels:
        """Return the pixels, (rows, columns), with padding replaced by the stored value of ``air`` (physical)."""
        return replace_padding(_read_as(reader, self.frame, self.format), self.padding, self.slope, self.intercept, air)

    def clip(self, pixels: Pixels, low: float, high: float) -> Pixels:
        """
        Clip stored values to the physical range ``low`` to ``high``, in integers.

        Before any interpolation: padding of -2000 and metal of 30,000 would bleed into their neighbours.
        """
        a, b = sorted(((low - self.intercept) / self.slope, (high - self.intercept) / self.slope))
        info = np.iinfo(pixels.dtype)
        lower = int(np.clip(np.floor(a), info.min, info.max))
        upper = int(np.clip(np.ceil(b), info.min, info.max))
        return np.clip(pixels, lower, upper)


def _read_as(reader: PixelReader, frame: Frame, fmt: PixelFormat) -> Pixels:
    """Return the stored values of ``frame`` by a format that may differ from the header's."""
    header = frame.format
    if header.transfer_syntax in WHOLE_CELLS or header.signed == fmt.signed:
        return reader.read(replace(frame, format=fmt))
    # The stream has a sign of its own, and a decoder that is given another makes of it what it likes.
    return _by_format(reader.read(replace(frame, format=replace(header, photometric="MONOCHROME2"))), fmt, whole=False)


def _by_format(cells: Pixels, fmt: PixelFormat, *, whole: bool) -> Pixels:
    """Return what ``cells`` are by a format; what a decoder hands out that is not ``whole`` lies in the low bits."""
    placed = fmt if whole else replace(fmt, high_bit=fmt.bits_stored - 1)
    values = used_bits(cells.view(f"{'i' if fmt.signed else 'u'}{cells.itemsize}"), placed)
    return inverted(values, fmt) if fmt.photometric == "MONOCHROME1" else values


@dataclass(frozen=True)
class Meaning:
    """What the stored values of a stack's frames mean, in their order, without the ``damaged`` ones."""

    values: list[StoredValues]
    damaged: list[Frame]
    decisions: list[Decision]


def stored_values(frames: Sequence[Frame], reader: PixelReader, *, ct: bool) -> Meaning:
    """
    Decide what the stored values of ``frames`` mean, which are one stack in order.

    Where frames are ``damaged`` the others are not looked at any further: ask again without them.

    Raises
    ------
    SeriesRejectedError
        The frames don't agree, or what they hold is no CT in HU and not one known fault explains it.
    """
    agreement = agree(frames, reader, ct=ct)
    if agreement.damaged:
        return Meaning([], agreement.damaged, agreement.decisions)
    rescaling = [agreement.rescaling[f.key] for f in frames]
    evidence = _Evidence(frames, rescaling, reader, ct=ct)
    # Without a slice that can be decoded there is none to doubt the header by: resampling finds that out.
    fault = (_fault_of_ct if ct else _fault_of_mr)(evidence) if evidence.frames else None
    decisions = [*agreement.decisions]
    header = frames[0].format
    if header.photometric == "MONOCHROME1" and (fault is None or fault.code != "monochrome1"):
        detail = f"{len(frames)} of {len(frames)} slices inverted within the range of BitsStored"
        decisions.append(Decision("monochrome1", detail))
    if fault is not None:
        decisions.append(Decision(fault.code, fault.detail))
    fault = fault or _Reading()
    values, ignored = [], 0
    for frame, how in zip(frames, rescaling, strict=True):
        fmt = fault.format(frame.format)
        slope, intercept = fault.rescaling(how)
        padding = fault.padding or trusted_padding(frame.padding, fmt, slope, intercept, ct=ct)
        ignored += padding is None and frame.padding is not None
        values.append(StoredValues(frame, fmt, slope, intercept, padding))
    if ignored:
        stated = next(f.padding[0] for f in frames if f.padding is not None)
        detail = f"PixelPaddingValue {stated} lies in the range of tissue, in {ignored} of {len(frames)} slices"
        decisions.append(Decision("padding_ignored", detail))
    if ct and fault.code != "missing_intercept":
        bare = sum(f.rescale.intercept is None and not v.format.signed for f, v in zip(frames, values, strict=True))
        if bare and all(v.intercept == 0 for v in values):
            detail = (
                f"{bare} of {len(frames)} slices are unsigned and have no RescaleIntercept: taken for HU as they are"
            )
            decisions.append(Decision("no_rescale", detail))
    return Meaning(values, [], decisions)


def _as_given(how: Rescaling) -> Rescaling:
    return how


@dataclass(frozen=True)
class _Reading:
    """A way to read stored values that is not the header's: what it changes of the format and of the rescale."""

    code: str = ""
    detail: str = ""
    bits: dict[str, Any] = field(default_factory=dict)
    rescaling: Callable[[Rescaling], Rescaling] = _as_given
    padding: tuple[int, int] | None = None

    def format(self, fmt: PixelFormat) -> PixelFormat:
        return replace(fmt, **self.bits) if self.bits else fmt


_HEADER: Final = _Reading()


class _Evidence:
    """A few slices of the stack, and what they look like by one reading or another. Nothing is read twice."""

    def __init__(
        self, frames: Sequence[Frame], rescaling: Sequence[Rescaling], reader: PixelReader, *, ct: bool
    ) -> None:
        self.ct = ct
        self.format = frames[0].format
        self.whole = self.format.transfer_syntax in WHOLE_CELLS
        self.frames: list[Frame] = []
        self.rescaling: list[Rescaling] = []
        self._cells: list[Pixels] = []
        self._levels: dict[tuple[PixelFormat, tuple[tuple[int, int] | None, ...]], list[Levels]] = {}
        step = max(1, round((self.format.rows * self.format.columns / _LARGE) ** 0.5))
        for i in np.unique(np.linspace(0, len(frames) - 1, _PICKED + 2).round().astype(int)[1:-1]):
            fmt = frames[i].format
            bits = (
                {"bits_stored": fmt.bits_allocated, "high_bit": fmt.bits_allocated - 1, "signed": False}
                if self.whole
                else {}
            )
            try:
                frame = replace(frames[i], format=replace(fmt, photometric="MONOCHROME2", **bits))
                cells = reader.read(frame, keep=True)
            except PixelError:
                continue
            self.frames.append(frames[i])
            self.rescaling.append(rescaling[i])
            self._cells.append(cells[::step, ::step].copy())

    def pixels(self, fmt: PixelFormat) -> list[Pixels]:
        """Return the stored values of the slices by a format."""
        return [_by_format(cells, fmt, whole=self.whole) for cells in self._cells]

    def free_bits(self) -> int:
        """Return how many of the lowest bits are 0 in all cells."""
        used = 0
        for cells in self._cells:
            used |= int(np.bitwise_or.reduce(cells, axis=None))
        return (used & -used).bit_length() - 1 if used else 0

    def all_bits(self) -> list[Pixels]:
        """Return the cells as they are stored."""
        return self._cells

    def levels(self, reading: _Reading) -> tuple[list[Levels], list[Rescaling]]:
        """Return the slices by blocks, and how they are rescaled."""
        fmt = reading.format(self.format)
        rescaling = [reading.rescaling(how) for how in self.rescaling]
        paddings = tuple(
            reading.padding or trusted_padding(f.padding, fmt, *how, ct=self.ct)
            for f, how in zip(self.frames, rescaling, strict=True)
        )
        if (fmt, paddings) not in self._levels:
            self._levels[fmt, paddings] = [slice_levels(p, q) for p, q in zip(self.pixels(fmt), paddings, strict=True)]
        return self._levels[fmt, paddings], rescaling

    def why_not(self, reading: _Reading) -> str:
        """Return why the slices can't be a CT by a reading, "" if they can."""
        slices, rescaling = self.levels(reading)
        fmt = reading.format(self.format)
        span = ((1 << fmt.bits_stored) - 1) * max(abs(slope) for slope, _ in rescaling)
        if span < _LEAST_SPAN_HU:
            return f"{fmt.bits_stored} bits span {span:g} HU, less than lies between air and water"
        return implausibility(slices, rescaling)

    def doubt(self, reading: _Reading) -> str:
        """Return what is unusual of the slices by a reading, "" if there is nothing."""
        return doubt(*self.levels(reading))

    def allows(self, reading: _Reading) -> bool:
        """Return True if the slices can be a CT by a reading other than the header's."""
        return not self.why_not(reading) and not self.doubt(reading) and self.bright(reading) < _BRIGHT

    def bright(self, reading: _Reading) -> float:
        """Return the share of the pixels that are brighter than all but metal."""
        slices, rescaling = self.levels(reading)
        shares = [np.mean(s.means * a + b > _BRIGHTEST_HU) for s, (a, b) in zip(slices, rescaling, strict=True)]
        return float(np.mean(shares))

    def explains(self, reading: _Reading) -> bool:
        """Return True if the slices are a CT of soft tissue by a reading other than the header's."""
        if not self.allows(reading):
            return False
        # Not to invert MONOCHROME1 is another reading of the header rather than a fault.
        return reading.code == "monochrome1" or has_soft_tissue(*self.levels(reading))


def _fault_of_ct(evidence: _Evidence) -> _Reading | None:
    """Return the fault that explains what the header does not, None if the header's reading is plausible."""
    why = evidence.why_not(_HEADER)
    unusual = "" if why else evidence.doubt(_HEADER)
    explained = []
    if why or unusual:
        explained = _distinct([r for r in _candidates(evidence) if evidence.explains(r)], evidence)
    if not why and not explained:
        # A few values that wrap around, or bits without a use, don't make tissue implausible.
        torn = [_named(r, "neighbouring pixels are torn apart") for r in _wrapped(evidence)]
        misplaced = _misplaced(evidence)
        explained = _distinct([r for r in [*torn, *misplaced] if evidence.allows(r)], evidence)
        if len(explained) > 1:
            _refuse_several("the bits that are used are not those of the header", explained)
        if not explained and (doubtful := [r for r in misplaced if r.code == "wrong_high_bit"]):
            raise SeriesRejectedError(Reason.IMPLAUSIBLE_HU, f"{doubtful[0].detail}, but by them there is no head")
        return explained[0] if explained else None
    why = why or unusual
    if not explained:
        explained = [r for r in _bright_padding(evidence) if evidence.explains(r)]
    if len(explained) == 1:
        return _named(explained[0], why)
    if explained:
        _refuse_several(f"by the header {why}", explained)
    if _darkest_only(evidence):
        raise SeriesRejectedError(Reason.NO_SIGNAL, f"by the header nothing is above {AIR_HU:g} HU: there is no image")
    raise SeriesRejectedError(Reason.IMPLAUSIBLE_HU, f"by the header {why}, and no known fault explains it")


def _refuse_several(what: str, readings: Sequence[_Reading]) -> NoReturn:
    codes = ", ".join(r.code for r in readings)
    raise SeriesRejectedError(Reason.IMPLAUSIBLE_HU, f"{what}, and several faults explain it: {codes}")


def _named(reading: _Reading, why: str) -> _Reading:
    return replace(reading, detail=f"{reading.detail}: by the header {why}")


def _darkest_only(evidence: _Evidence) -> bool:
    slices, rescaling = evidence.levels(_HEADER)
    return all((s.means * a + b).max() <= AIR_HU for s, (a, b) in zip(slices, rescaling, strict=True))


def _distinct(readings: Sequence[_Reading], evidence: _Evidence) -> list[_Reading]:
    """Return the first of those that mean the same."""
    found: list[tuple[_Reading, list[Pixels], list[Rescaling]]] = []
    for reading in readings:
        pixels, rescaling = evidence.pixels(reading.format(evidence.format)), evidence.levels(reading)[1]
        if not any(
            rescaling == r and all(np.array_equal(a, b) for a, b in zip(pixels, p, strict=True)) for _, p, r in found
        ):
            found.append((reading, pixels, rescaling))
    return [reading for reading, _, _ in found]


def _candidates(evidence: _Evidence) -> list[_Reading]:
    """Return what the known faults of CT would be."""
    fmt = evidence.format
    found = [r for r in _bits(evidence) if not (r.code == "wrong_sign" and _edges(evidence, r).votes < 0.5)]
    found += _places(evidence)
    if fmt.photometric == "MONOCHROME1":
        found.append(
            _Reading("monochrome1", "not inverted, values are HU as they are stored", {"photometric": "MONOCHROME2"})
        )
    else:
        found.append(_Reading("inverted", "values are stored upside down", {"photometric": "MONOCHROME1"}))
    slope, intercept = evidence.rescaling[0]
    if (slope, intercept) != (1.0, 0.0):
        detail = f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g} are not applied"
        found.append(_Reading("already_hu", detail, rescaling=lambda _: (1.0, 0.0)))
    if abs(slope) >= 200 and 0 < abs(intercept) <= 10:
        detail = f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g} are swapped"
        found.append(_Reading("swapped_rescale", detail, rescaling=lambda how: (how[1], how[0])))
    elif intercept > 200:
        detail = f"RescaleIntercept {intercept:g} lacks its sign"
        found.append(_Reading("intercept_sign", detail, rescaling=lambda how: (how[0], -how[1])))
    elif abs(intercept) < 200:
        found.append(_missing_intercept(evidence))
    return found


def _missing_intercept(evidence: _Evidence) -> _Reading:
    """
    Return the reading with the intercept that puts brain at 35 HU: -1024, or else -1000.

    They are as far apart as cerebrospinal fluid and grey matter; air says nothing, since -1024 is often stored for it.
    """

    def reading(value: float) -> _Reading:
        detail = f"the RescaleIntercept is missing, and taken for {value:g}"
        return _Reading("missing_intercept", detail, rescaling=lambda how: (how[0], value))

    def off(value: float) -> float:
        return abs(soft_tissue_hu(*evidence.levels(reading(value))) - _BRAIN_HU)

    return reading(min(_MISSING_INTERCEPTS, key=off))


def _bright_padding(evidence: _Evidence) -> list[_Reading]:
    """Return the reading for which the one bright value that fills the corners of all slices is padding."""
    slices, rescaling = evidence.levels(_HEADER)
    corners = {levels.corner for levels in slices}
    if len(corners) != 1 or (corner := corners.pop()) is None:
        return []
    slope, intercept = rescaling[0]
    detail = f"the value {corner} in the corners is taken for padding"
    return [_Reading("padding_assumed", detail, padding=(corner, corner))] if corner * slope + intercept > 1500 else []


def _bits(evidence: _Evidence) -> list[_Reading]:
    """Return the readings in which values wrap around elsewhere: with another sign, or with all allocated bits."""
    fmt = evidence.format
    now = "signed" if fmt.signed else "unsigned"
    detail = f"PixelRepresentation says {now}, and the pixels are not"
    found = [_Reading("wrong_sign", detail, {"signed": not fmt.signed})]
    more = any(int(cells.max()) >> fmt.bits_stored for cells in evidence.all_bits())
    if evidence.whole and more and fmt.high_bit == fmt.bits_stored - 1:
        detail = f"values have more bits than BitsStored {fmt.bits_stored}"
        bits = {"bits_stored": fmt.bits_allocated, "high_bit": fmt.bits_allocated - 1}
        found.append(_Reading("wrong_bits_stored", detail, bits))
    return found


def _places(evidence: _Evidence) -> list[_Reading]:
    """Return the readings in which the bits that are used lie elsewhere in a cell."""
    fmt = evidence.format
    if not evidence.whole:
        return []
    if fmt.high_bit != fmt.bits_stored - 1:
        detail = f"HighBit {fmt.high_bit} contradicts BitsStored {fmt.bits_stored}: the low bits are used"
        return [_Reading("wrong_high_bit", detail, {"high_bit": fmt.bits_stored - 1})]
    found = []
    for free in range(2, evidence.free_bits() + 1):
        detail = f"values are shifted by {free} bits, and the lowest are 0"
        bits = {"bits_stored": fmt.bits_allocated - free, "high_bit": fmt.bits_allocated - 1}
        found.append(_Reading("shifted_bits", detail, bits))
    return found


def _misplaced(evidence: _Evidence) -> list[_Reading]:
    """Return those of `_places` for which the cells themselves speak, whatever the values mean."""
    fmt = evidence.format
    places = _places(evidence)
    if not places:
        return []
    cells = evidence.all_bits()
    above = [c.astype(np.int64) >> fmt.bits_stored for c in cells]
    signs = (1 << (fmt.bits_allocated - fmt.bits_stored)) - 1
    only_signs = all(bool(np.isin(a, (0, signs) if fmt.signed else (0,)).all()) for a in above)
    if fmt.high_bit != fmt.bits_stored - 1:
        below = (1 << (fmt.high_bit + 1 - fmt.bits_stored)) - 1
        values = np.unique(np.concatenate([c.ravel() for c in cells]))
        return places if only_signs and float(np.mean((values & below) != 0)) > 0.3 else []
    if evidence.free_bits() < 3:
        return []
    return places if not only_signs or (evidence.ct and evidence.bright(_HEADER) > _BRIGHT) else []


@dataclass(frozen=True)
class _Edges:
    """
    Pairs of pixels beside each other of which another reading changes one.

    ``votes`` is the share of pairs that are closer together by it, ``unchanged`` the header's values of the pixels
    that stay as they are, ``changed`` the share of all pixels that don't, ``torn`` and ``apart`` the median distance of
    the two by the header's reading and by the other.
    """

    votes: float
    count: int
    changed: float
    unchanged: list[Pixels]
    torn: float
    apart: float


def _edges(evidence: _Evidence, reading: _Reading) -> _Edges:
    closer, count, changed, size = 0, 0, 0, 0
    unchanged, torn, apart = [], [], []
    for a, b in zip(evidence.pixels(evidence.format), evidence.pixels(reading.format(evidence.format)), strict=True):
        size += a.size
        differ = a != b if a.dtype == b.dtype else a.astype(np.int64) != b.astype(np.int64)
        if not differ.any():
            unchanged.append(a[:0, 0])
            continue
        changed += int(np.count_nonzero(differ))
        rows, columns = np.nonzero(differ[:, 1:] != differ[:, :-1])
        left, right = (rows, columns), (rows, columns + 1)
        a_apart = np.abs(a[left].astype(np.int64) - a[right])
        b_apart = np.abs(b[left].astype(np.int64) - b[right])
        torn.append(a_apart)
        apart.append(b_apart)
        closer += int(np.count_nonzero(b_apart < a_apart))
        count += len(rows)
        unchanged.append(np.where(differ[left], a[right], a[left]))
    middles = [float(np.median(np.concatenate(d))) if count else 0.0 for d in (torn, apart)]
    return _Edges(closer / max(count, 1), count, changed / max(size, 1), unchanged, *middles)


def _wrapped(evidence: _Evidence) -> list[_Reading]:
    """Return the readings by which neighbouring pixels are closer together than by the header's."""
    found = []
    for reading in _bits(evidence):
        edges = _edges(evidence, reading)
        slope = abs(evidence.rescaling[0][0])
        if edges.count < _LEAST_EDGES:
            continue
        if evidence.ct and reading.code == "wrong_bits_stored" and _torn(edges, slope):
            # Bone that wraps around is as far from brain as before where pixels are large. Bits of overlays, or without
            # a meaning, leave the pixels beside each other alike.
            found.append(reading)
            continue
        if edges.votes < _SMOOTHER:
            continue
        if reading.code == "wrong_sign" and evidence.ct and not evidence.format.signed and edges.changed < _WRAPPED:
            # Metal has sharp edges, too, and is the brightest there is: it must not become the darkest.
            if edges.apart * slope >= _NEAR_HU and not _in_air(edges, evidence):
                continue
        elif reading.code == "wrong_sign" and not evidence.ct and not _leaves_a_gap(evidence):
            continue
        found.append(reading)
    return found


def _torn(edges: _Edges, slope: float) -> bool:
    return edges.torn * slope > _TORN_HU[0] and edges.apart * slope < _TORN_HU[1]


def _in_air(edges: _Edges, evidence: _Evidence) -> bool:
    """Return True if most of the pixels beside those that change are air."""
    dark = [
        values * slope + intercept < -700
        for values, (slope, intercept) in zip(edges.unchanged, evidence.rescaling, strict=True)
    ]
    return bool(np.mean(np.concatenate(dark)) > 0.5)


def _leaves_a_gap(evidence: _Evidence) -> bool:
    """
    Return True if values of the two signs are far apart by the header, and so meet at 0 by another sign.

    Signal fills its range; a few negative values (undershoot of a filter) without a sign are all at the range's upper
    end. A text burnt in at the upper end is one value.
    """
    fmt = evidence.format
    half = 1 << (fmt.bits_stored - 1)
    values = np.concatenate([p.ravel() for p in evidence.pixels(replace(fmt, signed=False, photometric="MONOCHROME2"))])
    upper = values[values >= half]
    near_top = upper >= half + half * 3 // 4
    if fmt.signed:
        return not near_top.any()
    return bool(near_top.all()) and len(np.unique(upper)) > 2


def _fault_of_mr(evidence: _Evidence) -> _Reading | None:
    """Return the fault in the bits of MR, None if there is none: of its values nothing is known."""
    found = [replace(r, detail=f"{r.detail}: neighbouring pixels are torn apart") for r in _wrapped(evidence)]
    found += _misplaced(evidence)
    found = _distinct(found, evidence)
    if len(found) > 1:
        raise SeriesRejectedError(
            Reason.UNSUPPORTED_PIXELS, f"several faults explain the bits: {', '.join(r.code for r in found)}"
        )
    return found[0] if found else None
