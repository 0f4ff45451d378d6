"""Evidence for Hounsfield units: what a few slices would show if stored values were rescaled in one way or another.

What every CT of a head has: air or padding at the border of slices and soft tissue within, 1,000 HU apart. Much of it
may be absent: heads fill the field of view, are cropped or stripped of skull, stacks reach into the chest, bone and
contrast agent vary. So a reading is implausible only where it shows what no CT shows; each of the rules below stands
for what one of the known faults makes of air, tissue and bone. They look at means of small blocks of pixels, since the
noise of a sharp kernel reaches 100 HU, and most of it is gone within 8 x 8 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.dicom.pixels import Pixels
from aneurysm.volume.padding import is_padding

_Floats = NDArray[np.float32]
_Bools = NDArray[np.bool_]
Rescaling = tuple[float, float]
"""Slope and intercept."""

AIR_HU: Final = -1000.0
_BELOW_AIR_HU: Final = (-12_000.0, -1200.0)
"""No matter is darker than air; further down is what can't be one of the known faults, and is clipped."""
_HEAD_ABOVE_HU: Final = -900.0
_BODY_ABOVE_HU: Final = -500.0
_LEAST_BODY: Final = 0.005
_ONE_AIR_HU: Final = 20.0
_BODY_HU: Final = (-200.0, 800.0)
"""The median of all that is no air lies between these: fat, and vessels full of contrast agent."""
_SOFT_HU: Final = 150.0
"""Fat, fluid, brain, muscle and blood lie between plus and minus this."""
_AIR_TO_TISSUE_HU: Final = (940.0, 1160.0)
_COARSEST_HU: Final = 50.0
_FLAT_HU: Final = 60.0
_LEAST_BLOCKS: Final = 64


@dataclass(frozen=True)
class Levels:
    """
    One slice by blocks of pixels.

    ``means`` are stored values (block rows, block columns), ``usable`` where a block is free of padding. ``corner`` is
    the one value that fills the corners, if there is one, and ``in_corner`` where a block holds it.
    """

    means: _Floats
    usable: _Bools
    corner: int | None
    in_corner: _Bools

    def without_corner(self) -> Levels:
        """Return the slice without the blocks that hold the value of its corners."""
        return Levels(self.means, self.usable & ~self.in_corner, None, np.zeros_like(self.in_corner))


def slice_levels(pixels: Pixels, padding: tuple[int, int] | None) -> Levels:
    """Return the mean stored values of blocks of ``pixels`` (rows, columns); ``padding`` is a range of values."""
    # At least 24 blocks across, unless they would be single pixels: those are as noisy as the image.
    edge = int(np.clip(min(pixels.shape) // 24, min(2, max(1, min(pixels.shape) // 16)), 8))
    rows, columns = pixels.shape[0] // edge, pixels.shape[1] // edge
    whole = pixels[: rows * edge, : columns * edge]
    total = whole.reshape(rows, edge, columns * edge).sum(axis=1, dtype=np.int64 if whole.itemsize > 2 else np.int32)
    means = total.reshape(rows, columns, edge).sum(axis=2).astype(np.float32) / np.float32(edge * edge)

    def blocks(mask: _Bools) -> _Bools:
        return np.asarray(mask[: rows * edge, : columns * edge].reshape(rows, edge, columns, edge).any(axis=(1, 3)))

    padded = None if padding is None else is_padding(pixels, padding)
    usable = np.ones(means.shape, bool) if padded is None else ~blocks(padded)
    corners = [int(pixels[i, j]) for i in (0, -1) for j in (0, -1)]
    corner = max(set(corners), key=corners.count)
    same = pixels == corner
    if corners.count(corner) < 3 or np.count_nonzero(same) < 0.01 * pixels.size:
        return Levels(means, usable, None, np.zeros(means.shape, bool))
    return Levels(means, usable, corner, blocks(same))


def implausibility(slices: Sequence[Levels], rescaling: Sequence[Rescaling]) -> str:
    """Return why ``slices`` can't be a CT in HU if each is rescaled as given, "" if they can."""
    maps = _Maps(slices, rescaling)
    hu = maps.hu
    if len(hu) < _LEAST_BLOCKS:
        return ""
    if (slope := max(abs(slope) for slope, _ in rescaling)) > _COARSEST_HU:
        return f"values are {slope:g} HU apart"
    below = float(np.mean((hu > _BELOW_AIR_HU[0]) & (hu < _BELOW_AIR_HU[1])))
    if below > 0.01:
        return f"{below:.0%} of the pixels lie below {_BELOW_AIR_HU[1]:g} HU, where there is no matter"
    if np.mean(hu > _HEAD_ABOVE_HU) < 0.001:
        return f"nothing is above {_HEAD_ABOVE_HU:g} HU"
    body = hu[hu > _BODY_ABOVE_HU]
    if len(body) < _LEAST_BODY * len(hu):
        # A head that is all dark still has its shape; what has none says nothing, and is unusual: see `doubt`.
        air = float(np.median(maps.border))
        solid = maps.solidity(air + _ONE_AIR_HU)
        return f"what stands out of the air lies below {_BODY_ABOVE_HU:g} HU" if solid > 0.5 else ""
    middle = float(np.median(body))
    if not _BODY_HU[0] <= middle <= _BODY_HU[1]:
        return f"the median of what is no air is {middle:.0f} HU"
    if (high := float(np.percentile(body, 95))) < 0:
        return f"95 % of the pixels lie below {high:.0f} HU"
    if _lacks_soft_tissue(maps) and (apart := _two_airs(maps)) > _ONE_AIR_HU:
        return f"what is dark within lies {apart:.0f} HU above the air around it, and there is no soft tissue"
    if (edge := float(np.median(maps.border))) > _BODY_HU[1]:
        return f"the border of the slices is at {edge:.0f} HU"
    if edge > _BODY_ABOVE_HU and np.mean(hu < _BODY_ABOVE_HU) > 0.03 and np.percentile(hu, 99.8) < _SOFT_HU:
        return "there is air within, and no bone"
    return _misplaced_air(maps) or _misplaced_air(_Maps([levels.without_corner() for levels in slices], rescaling))


def doubt(slices: Sequence[Levels], rescaling: Sequence[Rescaling]) -> str:
    """
    Return what is unusual of a CT that is not implausible, "" if there is nothing.

    A hollow phantom or a dry skull has no soft tissue, either: this is a reason to try other readings, and none to
    refuse the header's.
    """
    maps = _Maps(slices, rescaling)
    if len(maps.hu) < _LEAST_BLOCKS:
        return ""
    if (share := float(np.mean(maps.hu > _BODY_ABOVE_HU))) < _LEAST_BODY:
        return f"{share:.1%} of the pixels lie above {_BODY_ABOVE_HU:g} HU"
    return "there is air, and no soft tissue within" if _lacks_soft_tissue(maps) else ""


def has_soft_tissue(slices: Sequence[Levels], rescaling: Sequence[Rescaling]) -> bool:
    """
    Return True if there is soft tissue, and no border of water around it.

    That much is asked of a reading other than the header's.
    """
    maps = _Maps(slices, rescaling)
    body = maps.hu[maps.hu > _BODY_ABOVE_HU]
    if len(maps.hu) < _LEAST_BLOCKS or np.mean(np.abs(body) < _SOFT_HU) < 0.2:
        return False
    middle = float(np.median(maps.border))
    return not (abs(middle) < 300 and float(np.mean(np.abs(maps.border - middle) < 20)) > 0.5)


def soft_tissue_hu(slices: Sequence[Levels], rescaling: Sequence[Rescaling]) -> float:
    """Return the median of soft tissue, in HU."""
    hu = np.concatenate([_in_hu(levels, *how)[0].ravel() for levels, how in zip(slices, rescaling, strict=True)])
    return float(np.median(hu[np.abs(hu - 20) < 100])) if np.any(np.abs(hu - 20) < 100) else np.nan


def level_difference(a: Levels, of_a: Rescaling, b: Levels, of_b: Rescaling) -> float:
    """Return the median of the difference a - b of two slices beside each other."""
    both = a.usable & b.usable
    difference = (a.means * of_a[0] + of_a[1]) - (b.means * of_b[0] + of_b[1])
    return float(np.median(difference[both])) if both.any() else 0.0


def level_ratio(a: Levels, of_a: Rescaling, b: Levels, of_b: Rescaling) -> float:
    """Return the median of the ratio a / b of two slices beside each other, where both have signal."""
    x, y = a.means * of_a[0] + of_a[1], b.means * of_b[0] + of_b[1]
    bright = a.usable & b.usable & (y > 0.3 * np.percentile(y, 99)) & (y > 0)
    return float(np.median(x[bright] / y[bright])) if bright.any() else 1.0


class _Maps:
    """Slices by blocks, in HU: ``hu`` are all that are usable, ``border`` the outermost of them."""

    def __init__(self, slices: Sequence[Levels], rescaling: Sequence[Rescaling]) -> None:
        self.slices = [_in_hu(levels, *how) for levels, how in zip(slices, rescaling, strict=True)]
        self.hu = np.concatenate([values[usable] for values, usable in self.slices])
        self.border = np.concatenate([values[_outermost(usable)] for values, usable in self.slices])

    def solidity(self, low: float, high: float = np.inf) -> float:
        """Return the share of what lies between two values in the box about its middle 90 %, over slices."""
        held, room = 0, 0
        for values, usable in self.slices:
            mask = usable & (values > low) & (values < high)
            if np.count_nonzero(mask) < 4:
                continue
            box = tuple(slice(int(np.percentile(at, 5)), int(np.percentile(at, 95)) + 1) for at in np.nonzero(mask))
            held += int(np.count_nonzero(mask[box]))
            room += int(np.count_nonzero(usable[box]))
        return held / max(room, 1)


def _lacks_soft_tissue(maps: _Maps) -> bool:
    """Return True if there is much air, and what is of the level of soft tissue is a shell: bone read too dark."""
    if np.mean(maps.hu < -700) <= 0.3 or maps.solidity(_BODY_ABOVE_HU) >= 0.7:
        return False
    few = np.mean(np.abs(maps.hu) < _SOFT_HU) < 0.01
    return bool(few or maps.solidity(-_SOFT_HU, _SOFT_HU) < 0.3)


def _two_airs(maps: _Maps) -> float:
    """Return by how much what is dark in the middle of a body is brighter than what is dark at the border, in HU."""
    outer, inner = [], []
    for values, usable in maps.slices:
        dark = usable & (values < -700)
        body = np.nonzero(usable & (values > _BODY_ABOVE_HU))
        outer.append(values[_outermost(usable) & dark])
        if len(body[0]) >= 4:
            box = tuple(slice(int(np.percentile(at, 30)), int(np.percentile(at, 70)) + 1) for at in body)
            inner.append(values[box][dark[box]])
    if not sum(map(len, outer)) or not sum(map(len, inner)):
        return 0.0
    return float(np.median(np.concatenate(inner)) - np.median(np.concatenate(outer)))


def _in_hu(levels: Levels, slope: float, intercept: float) -> tuple[_Floats, _Bools]:
    usable = levels.usable
    if levels.corner is not None and levels.corner * slope + intercept < _BELOW_AIR_HU[1]:
        usable = usable & ~levels.in_corner  # padding that nobody declared: GE's -2000
    return np.asarray(levels.means * np.float32(slope) + np.float32(intercept)), usable


def _outermost(usable: _Bools) -> _Bools:
    """Return the first and last usable block of each row and column."""
    border = np.zeros_like(usable)
    rows, columns = np.flatnonzero(usable.any(axis=1)), np.flatnonzero(usable.any(axis=0))
    border[rows, usable[rows].argmax(axis=1)] = True
    border[rows, usable.shape[1] - 1 - usable[rows, ::-1].argmax(axis=1)] = True
    border[usable[:, columns].argmax(axis=0), columns] = True
    border[usable.shape[0] - 1 - usable[::-1, columns].argmax(axis=0), columns] = True
    return border


def _misplaced_air(maps: _Maps) -> str:
    """
    Return what is wrong where a flat border and solid matter within lie as far apart as air and tissue do.

    The border is then air: it must be where air is. Bone about a brain that fills the field of view is as far from
    brain, but it is not solid.
    """
    if len(maps.hu) < _LEAST_BLOCKS:
        return ""
    for sign, percentile in ((1.0, 10), (-1.0, 90)):
        level = float(np.percentile(maps.border, percentile))
        in_place = -1200 <= level <= -800 if sign > 0 else level < 300
        if in_place or np.mean(np.abs(maps.border - level) < _FLAT_HU) < 0.25:
            continue
        apart = sign * (maps.hu - level)
        near, far = _AIR_TO_TISSUE_HU
        beyond = apart > 500
        within = (apart > near) & (apart < far)
        if np.mean(beyond) < 0.02 or np.count_nonzero(within) < 0.4 * np.count_nonzero(beyond):
            continue
        if maps.solidity(*sorted((level + sign * near, level + sign * far))) >= 0.5:
            return f"air at the border is at {level:.0f} HU"
    return ""
