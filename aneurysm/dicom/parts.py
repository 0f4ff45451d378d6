"""Kinds of frames -> the parts of one volume: blocks of slices one behind the other, each of its own tilt or spacing.

A head CT is often taken in two blocks: the posterior fossa in thin slices with the gantry tilted, the cerebrum in thick
upright ones. To leave out the smaller block as a scout would lose a part of the head. A scout, by contrast, has few
slices, far apart, in crossing planes, or lies within what the majority covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.dicom.frame import CONTRAST_TAGS, Frame
from aneurysm.dicom.geometry import common_orientation, common_spacing, plane_axes
from aneurysm.dicom.tolerances import SAME_PLACE_MM
from aneurysm.errors import Reason, SeriesRejectedError
from aneurysm.spec import SlicePolicy

_LEAST_SLICES: Final = 3
_LEAST_MM: Final = 10.0
"""So much beyond what the majority covers is a part of the head; of fewer slices, or less, it is a scout or a stray."""
_MOST_APART_MM: Final = 10.0
"""Slices of one block lie closer; those of an axial scout lie further apart."""
_MOST_TURNED: Final = np.cos(np.radians(45))
"""Planes that are turned further against each other cross."""
_SAME_NUMBER: Final = 0.02
_NO_CONTRAST: Final = frozenset({"ImageType", "KVP"})
"""What may differ between two blocks: the type of image is named freely, and MR has no voltage."""


@dataclass(frozen=True)
class _Block:
    """Frames of one kind, by the centres of their slices along the normal of the majority."""

    frames: Sequence[Frame]
    axes: NDArray[np.float64]
    centre: NDArray[np.float64]
    stations_mm: NDArray[np.float64]
    gap_mm: float
    """Between neighbours, along the block's own normal."""
    width_mm: float
    """The larger side of a slice."""

    def slices_beyond(self, other: _Block) -> int:
        """Return how many slices lie further out than another block reaches, half a gap beyond its outermost ones."""
        low, high = other.stations_mm[[0, -1]] + np.array([-1, 1]) * other.gap_mm / 2
        return int(np.count_nonzero((self.stations_mm < low) | (self.stations_mm > high)))

    def reach_mm(self, other: _Block) -> float:
        """Return how many mm of the body it shows beyond another block."""
        return self.slices_beyond(other) * self.gap_mm

    def distance(self, other: _Block) -> float:
        """Return the gap to another block along the normal of the majority, 0 where they overlap."""
        return float(max(self.stations_mm[0] - other.stations_mm[-1], other.stations_mm[0] - self.stations_mm[-1], 0.0))


@dataclass(frozen=True)
class Parts:
    """
    Groups of frames.

    Attributes
    ----------
    parts
        Those that make up one volume, the largest first.
    strays
        Those that are few, and cut off from the parts by a gap beyond the limit.
    minority
        Scouts, and what else is no part of it.
    """

    parts: list[list[Frame]]
    strays: list[list[Frame]]
    minority: list[list[Frame]]


def find_parts(groups: Sequence[list[Frame]], policy: SlicePolicy) -> Parts:
    """
    Tell the parts of one volume from scouts; ``groups`` are frames of one kind each, the largest first.

    Raises
    ------
    SeriesRejectedError
        A group continues the head beyond the largest one, and can't be put into one volume with it.
    """
    main = _block(groups[0], groups[0])
    found = Parts([groups[0]], [], [])
    joined, waiting = [main], []
    for group in groups[1:]:
        block = _block(group, groups[0])
        if _continues(block, main):
            waiting.append(block)
        else:
            found.minority.append(group)
    # One part may lie behind another: the nearest is joined first.
    while waiting:
        waiting.sort(key=lambda b: min(b.distance(j) for j in joined))
        block = waiting.pop(0)
        nearest = min(joined, key=block.distance)
        gap, limit = block.distance(nearest), gap_limit([block.gap_mm, nearest.gap_mm], policy)
        few = len(block.frames) <= policy.max_stray_fraction * sum(map(len, groups))
        difference = _difference(block, main)
        if gap <= limit + 1e-6 and difference is None:
            joined.append(block)
            found.parts.append(list(block.frames))
        elif few:
            (found.minority if difference else found.strays).append(list(block.frames))
        else:
            why = difference or f"they lie {gap:.1f} mm from the others, at most {limit:.1f} mm are allowed"
            raise SeriesRejectedError(Reason.SEPARATE_PARTS, f"{_described(block, main)}; {why}")
    return found


def gap_limit(gaps_mm: Sequence[float], policy: SlicePolicy) -> float:
    """Return the widest gap in mm that is interpolated across, of parts with these distances between slices."""
    return min(policy.max_gap_ratio * max(gaps_mm), policy.max_gap_mm)


def described_parts(parts: Sequence[Sequence[Frame]]) -> list[str]:
    """Return what each part but the first is, and how far it reaches beyond the first."""
    main = _block(parts[0], parts[0])
    blocks = [_block(p, parts[0]) for p in parts[1:]]
    gaps = [min(block.distance(b) for b in (main, *blocks) if b is not block) for block in blocks]
    return [f"{_described(block, main)}, {gap:.1f} mm from the next" for block, gap in zip(blocks, gaps, strict=True)]


def _block(frames: Sequence[Frame], majority: Sequence[Frame]) -> _Block:
    axes, normal = plane_axes(common_orientation(frames)), plane_axes(common_orientation(majority))
    assert axes is not None
    assert normal is not None
    spacing, fmt = common_spacing(frames), frames[0].format
    sides = np.array([(fmt.columns - 1) * spacing[1], (fmt.rows - 1) * spacing[0]])
    centres = np.array([f.position for f in frames], float) + sides / 2 @ axes[:2]
    own = _places(centres @ axes[2])
    gap = float(np.median(np.diff(own))) if len(own) > 1 else np.inf
    return _Block(frames, axes, centres.mean(axis=0), _places(centres @ normal[2]), gap, float(sides.max()))


def _places(along: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the places in rising order, one for those at which there are several frames."""
    ordered = np.sort(along)
    return np.asarray(ordered[np.append(True, np.diff(ordered) > SAME_PLACE_MM)])


def _continues(block: _Block, main: _Block) -> bool:
    """Return True if a block of slices shows a part of the body that the majority does not reach."""
    one, other = block.frames[0], main.frames[0]
    alike = (
        one.format.is_monochrome
        and other.format.is_monochrome
        and (one.modality == other.modality or not one.modality or not other.modality)
    )
    if not alike or abs(block.axes[2] @ main.axes[2]) < _MOST_TURNED or block.gap_mm > _MOST_APART_MM:
        return False
    beside = block.centre - main.centre
    if np.linalg.norm(beside - (beside @ main.axes[2]) * main.axes[2]) > max(block.width_mm, main.width_mm) / 2:
        return False
    return block.slices_beyond(main) >= _LEAST_SLICES and block.reach_mm(main) >= _LEAST_MM


def _difference(block: _Block, main: _Block) -> str | None:
    """Return in what two parts of MR differ, so that their values mean different things; None if they don't."""
    if (block.frames[0].modality or main.frames[0].modality) != "MR":
        return None
    for name in CONTRAST_TAGS:
        if name in _NO_CONTRAST:
            continue
        one, other = ({dict(f.distinguishing_tags).get(name) for f in b.frames} - {None} for b in (block, main))
        if one and other and not any(_same(a, b) for a in one for b in other):
            values = " and ".join(str(min(v, key=str)) for v in (one, other))
            return f"{name} is {values}: their values can't be compared"
    return None


def _same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= _SAME_NUMBER * max(abs(a), abs(b))
    return a == b


def _described(block: _Block, main: _Block) -> str:
    fmt, spacing = block.frames[0].format, common_spacing(block.frames)
    angle = np.degrees(np.arccos(min(1.0, abs(float(block.axes[2] @ main.axes[2])))))
    return (
        f"{len(block.frames)} slices of {fmt.rows} x {fmt.columns}, {spacing[0]:.4g} x {spacing[1]:.4g} "
        f"mm, {block.gap_mm:.4g} mm apart, turned by {angle:.1f} degrees, show "
        f"{block.reach_mm(main):.1f} mm beyond the {len(main.frames)} others"
    )
