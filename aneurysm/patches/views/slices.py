"""Slices: a few slices of a series, evenly spaced, at random, or where the vessels are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from aneurysm.patches.views.view import Picture, Planes, Readable, frame_start, in_plane, rows_and_columns
from aneurysm.types import Triple, triple
from aneurysm.volume.intensity import to_physical

Pick = Literal["even", "random", "vascular", "vesselness"]
Stack = Literal["channels", "bag"]
_COARSE_MM: Final = 2.0
_VESSEL_MM: Final = 1.5
"""The scale, a Gaussian's sigma, of the tubes that "vesselness" looks for."""
_MOST_REMEMBERED: Final = 10_000
_remembered: Final[dict[tuple[str, Triple, tuple[float, float, float]], tuple[NDArray[np.float64], ...]]] = {}
"""The vesselness of series that this process has read: some hundred numbers each."""


@dataclass(frozen=True)
class Slices:
    """
    ``count`` slices across an axis, each a picture of its own or a channel of one.

    Attributes
    ----------
    axis
        Of (z, y, x), across the slices.
    count
        Slices.
    pick
        "even": at 1 / (count + 1), 2 / (count + 1), ... of the head. "random": one anywhere in each of ``count`` equal
        parts of it; in prediction, the middle of each. "vascular": where most blocks of the stored survey look like
        vessels, at least ``apart`` slices from each other; in training moved by up to half a block. "vesselness": the
        same by the tubes that SimpleITK finds at 2 mm, which takes a second a series, once in each process.
    apart
        Slices between two that are picked by vessels.
    neighbours
        So many slices on either side come with each, as channels.
    stack
        "channels": one picture with all as channels. "bag": a picture each.
    size
        Voxels (z, y, x) of the box about the head from which they are cut.
    spacing_mm
        (z, y, x) of a voxel.
    """

    axis: int
    count: int
    pick: Pick
    apart: int
    neighbours: int
    stack: Stack
    size: Triple
    spacing_mm: tuple[float, float, float]
    scope: Literal["series"] = field(default="series", init=False)

    @property
    def shape(self) -> Triple:
        """(pictures, rows, columns)."""
        return (1 if self.stack == "channels" else self.count), *rows_and_columns(self.axis, self.size)

    @property
    def channels(self) -> int:
        """Of each picture."""
        each = 2 * self.neighbours + 1
        return each * self.count if self.stack == "channels" else each

    @property
    def planes(self) -> Planes:
        """See `aneurysm.patches.views.view.Pictures`."""
        return (((self.axis, 0),) * self.shape[0],) * self.channels

    def choose(self, volume: Readable, rng: np.random.Generator | None = None) -> list[list[Picture]]:
        """Return the slices of a volume by channel; see `aneurysm.patches.views.view.Pictures`."""
        frame = frame_start(volume, self.size)
        corner = rows_and_columns(self.axis, frame)
        low, high = volume.survey.head_box(volume.shape)
        first = max(int(low[self.axis]), frame[self.axis], 0)
        last = min(int(high[self.axis]), frame[self.axis] + self.size[self.axis])
        picked = self._picked(volume, first, max(last, first + 1), rng)
        offsets = range(-self.neighbours, self.neighbours + 1)
        # Beyond the volume there is the last slice once more, for air would show the volume's end, and nothing else.
        most = volume.shape[self.axis] - 1
        slices = [
            [Picture(self.axis, at := min(max(p + offset, 0), most), at + 1, corner) for p in picked]
            for offset in offsets
        ]
        if self.stack == "bag":
            return slices
        return [[picture] for at in zip(*slices, strict=True) for picture in at]

    def _picked(self, volume: Readable, first: int, last: int, rng: np.random.Generator | None) -> list[int]:
        parts = np.linspace(first, last, self.count + 1)
        match self.pick:
            case "even":
                return [int(first + (last - first) * (k + 1) / (self.count + 1)) for k in range(self.count)]
            case "random":
                share = np.full(self.count, 0.5) if rng is None else rng.random(self.count)
                return [int(v) for v in parts[:-1] + share * (parts[1:] - parts[:-1])]
            case "vascular":
                scores, move = _vascular(volume, self.axis), volume.survey.edge[self.axis] // 2
            case "vesselness":
                scores, move = _vesselness(volume, self.spacing_mm)[self.axis], 0
        picked = np.array(_spread(scores[first:last], self.count, self.apart)) + first
        if rng is not None and move:
            picked = picked + rng.integers(-move, move + 1, self.count)
        return sorted(picked.clip(first, last - 1).tolist())


def _vascular(volume: Readable, axis: int) -> NDArray[np.float64]:
    """
    Return for each slice across ``axis`` how many blocks about it look like vessels.

    Of MR what stands out in either direction counts: whether blood is bright or dark depends on the sequence, of which
    nothing is known where a series comes without train.csv.
    """
    found = volume.survey
    thin = found.bright if found.dark is None else found.bright | found.dark
    counts = thin.sum(axis=in_plane(axis))
    edge = found.edge[axis]
    middles = np.arange(len(counts)) * edge + (edge - 1) / 2
    return np.asarray(np.interp(np.arange(volume.shape[axis]), middles, counts))


def _spread(scores: NDArray[np.float64], count: int, apart: int) -> list[int]:
    """Return ``count`` places, the highest first and none nearer than ``apart`` to another, or less if they must."""
    while True:
        free, places = scores.copy(), list[int]()
        while len(places) < count and np.isfinite(free).any():
            best = int(np.argmax(free))
            places.append(best)
            free[max(best - apart + 1, 0) : best + apart] = -np.inf
        if len(places) == count:
            return places
        if apart <= 1:  # fewer slices than are wanted
            return [places[k % len(places)] for k in range(count)]
        apart = apart // 2


def _vesselness(volume: Readable, spacing_mm: tuple[float, float, float]) -> tuple[NDArray[np.float64], ...]:
    """Return for each axis how much of each slice looks like tubes."""
    key = (volume.uid, volume.shape, spacing_mm)
    if key not in _remembered:
        while len(_remembered) >= _MOST_REMEMBERED:
            _remembered.pop(next(iter(_remembered)))
        _remembered[key] = _tubes(volume, spacing_mm)
    return _remembered[key]


def _tubes(volume: Readable, spacing_mm: tuple[float, float, float]) -> tuple[NDArray[np.float64], ...]:
    """Return `_vesselness`, by the generalised vesselness of Antiga (Insight Journal 2007)."""
    import SimpleITK as sitk

    intensity = volume.intensity
    low, high = intensity.window
    voxels = volume.read((0, 0, 0), volume.shape).astype(np.float32)
    values = np.clip(to_physical(voxels, intensity.scale, intensity.offset), low, high)
    steps = [max(1, min(round(_COARSE_MM / mm), n)) for mm, n in zip(spacing_mm, volume.shape, strict=True)]
    image = sitk.GetImageFromArray(values)
    image.SetSpacing([float(mm) for mm in spacing_mm[::-1]])
    image = sitk.SmoothingRecursiveGaussian(sitk.Shrink(image, [int(n) for n in steps[::-1]]), _VESSEL_MM)
    total = np.zeros(triple(image.GetSize()[::-1]), np.float64)
    for bright in (True,) if intensity.unit == "HU" else (True, False):
        total += sitk.GetArrayFromImage(sitk.ObjectnessMeasure(image, objectDimension=1, brightObject=bright))
    head = volume.survey.head
    for axis, (edge, step, cells) in enumerate(zip(volume.survey.edge, steps, total.shape, strict=True)):
        head = head.take(np.minimum(np.arange(cells) * step // edge, head.shape[axis] - 1), axis)
    total *= head
    found = []
    for axis, (step, n) in enumerate(zip(steps, volume.shape, strict=True)):
        along = total.sum(axis=in_plane(axis))
        found.append(np.interp(np.arange(n), np.arange(len(along)) * step + (step - 1) / 2, along))
    return tuple(found)
