"""Pictures -> their pixels, as stored integers: read from chunks, and projected before anything is windowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aneurysm.patches.views.view import Picture, Readable, across, in_plane, rows_and_columns
from aneurysm.types import Triple, triple

_CHUNK: Final = 32
"""Voxels of a chunk along each axis, as a rule: to read less of it decodes no less."""


class _Held(NamedTuple):
    """A box of the volume that was read."""

    start: Triple
    voxels: NDArray[Any]


def read_pictures(volume: Readable, pictures: Sequence[Sequence[Picture]], out: NDArray[Any]) -> None:
    """
    Fill ``out`` (channels, pictures, rows, columns) with pictures of a volume, by channel.

    Projections are of stored integers. A window is monotone, so the maximum of what is windowed is the window of the
    maximum, and of far fewer pixels. What lies outside the volume has no part in a projection; a picture that lies
    outside as a whole is air. A minimum is over the voxels inside the head: any ray meets air somewhere.

    Raises
    ------
    CacheError
        The volume can't be read.
    """
    rows, columns = out.shape[2:]
    todo: dict[int, list[tuple[Picture, NDArray[Any]]]] = {}
    for channel, row in enumerate(pictures):
        for number, picture in enumerate(row):
            todo.setdefault(picture.axis, []).append((picture, out[channel, number]))
    boxes = [
        (axis, first, last, corner)
        for axis, wanted in todo.items()
        for first, last, corner in _ranges([picture for picture, _ in wanted], volume.shape[axis])
    ]
    held = _read(volume, [(axis, first, last, corner, (rows, columns)) for axis, first, last, corner in boxes])
    for wanted in todo.values():
        for picture, pixels in wanted:
            _draw(volume, picture, held, pixels)


def _ranges(pictures: Sequence[Picture], length: int) -> list[tuple[int, int, tuple[int, int]]]:
    """Return (first, last, corner) of slices that are to be read, those of the same chunks as one."""
    merged: list[tuple[int, int, tuple[int, int]]] = []
    for corner, first, last in sorted((p.corner, max(p.first, 0), min(p.last, length)) for p in pictures):
        if first >= last:
            continue
        if merged and merged[-1][2] == corner and first // _CHUNK <= (merged[-1][1] - 1) // _CHUNK:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last), corner)
        else:
            merged.append((first, last, corner))
    return merged


def _read(
    volume: Readable, wanted: Sequence[tuple[int, int, int, tuple[int, int], tuple[int, int]]]
) -> list[tuple[int, _Held]]:
    """Read boxes, each by itself or, where that decodes no fewer chunks, all that they lie in; return (axis, box)."""
    boxes = []
    for axis, first, last, (row, column), (rows, columns) in wanted:
        start, shape = across(axis, first, row, column), across(axis, last - first, rows, columns)
        low = np.clip(start, 0, volume.shape)
        high = np.clip(np.add(start, shape), low, volume.shape)
        boxes.append((axis, low, high))
    if not boxes:
        return []
    low, high = np.min([b[1] for b in boxes], axis=0), np.max([b[2] for b in boxes], axis=0)
    if sum(_chunks(a, b) for _, a, b in boxes) >= _chunks(low, high):
        whole = _Held(triple(low), volume.read(triple(low), triple(high - low)))
        return [(axis, whole) for axis in {axis for axis, _, _ in boxes}]
    return [(axis, _Held(triple(a), volume.read(triple(a), triple(b - a)))) for axis, a, b in boxes]


def _chunks(low: NDArray[np.int64], high: NDArray[np.int64]) -> int:
    return int(np.prod(-(-high // _CHUNK) - low // _CHUNK))


def _draw(volume: Readable, picture: Picture, held: Sequence[tuple[int, _Held]], pixels: NDArray[Any]) -> None:
    """Fill the pixels of one picture from the box that holds its slices."""
    axis = picture.axis
    first, last = max(picture.first, 0), min(picture.last, volume.shape[axis])
    corner = across(axis, first, *picture.corner)
    high = np.add(corner, across(axis, last - first, *pixels.shape))
    pixels.fill(volume.fill)
    for of_axis, box in held:
        low, end = np.maximum(corner, box.start), np.minimum(high, np.add(box.start, box.voxels.shape))
        if of_axis != axis or first >= last or low[axis] != first or end[axis] != last or (low >= end).any():
            continue
        part = box.voxels[tuple(slice(a - s, b - s) for a, b, s in zip(low, end, box.start, strict=True))]
        inside = [slice(low[a] - corner[a], end[a] - corner[a]) for a in in_plane(axis)]
        pixels[tuple(inside)] = _reduced(volume, part, picture, triple(low))
        return


def _reduced(volume: Readable, part: NDArray[Any], picture: Picture, start: Triple) -> NDArray[Any]:
    axis = picture.axis
    if part.shape[axis] == 1:
        return np.asarray(part.take(0, axis) if picture.how != "std" else _as_width(volume, part, axis))
    match picture.how:
        case "max":
            return np.asarray(part.max(axis))
        case "min":
            return _least(volume, part, axis, start)
        case "mean":
            return np.asarray(np.rint(part.mean(axis, dtype=np.float32)), part.dtype)
        case _:
            return _as_width(volume, part, axis)


def _as_width(volume: Readable, part: NDArray[Any], axis: int) -> NDArray[Any]:
    """
    Return standard deviations as stored integers: 0 is the lower end of the window, and so black.

    Then a window, which is made for intensities, shows a deviation of its whole width as white.
    """
    intensity, kind = volume.intensity, np.iinfo(part.dtype)
    black = (intensity.window[0] - intensity.offset) / intensity.scale
    return np.asarray(np.clip(np.rint(part.std(axis, dtype=np.float32) + black), kind.min, kind.max), part.dtype)


def _least(volume: Readable, part: NDArray[Any], axis: int, start: Triple) -> NDArray[Any]:
    """Return the least of the voxels well inside the head, air where a ray meets none."""
    inner = _inside_head(volume, start, triple(part.shape))
    least = np.where(inner, part, np.iinfo(part.dtype).max).min(axis)
    return np.asarray(np.where(inner.any(axis), least, volume.fill), part.dtype)


def _inside_head(volume: Readable, start: Triple, shape: Triple) -> NDArray[np.bool_]:
    """Return which voxels of a box lie in blocks of the head that have none but such about them."""
    from scipy import ndimage  # here, not above: it takes a while to load, and other projections do without it

    inner = ndimage.binary_erosion(volume.survey.head)
    for axis, (edge, first, length) in enumerate(zip(volume.survey.edge, start, shape, strict=True)):
        inner = inner.take(np.arange(first, first + length) // edge, axis)
    return np.asarray(inner)


def voxel_of(volume: Readable, picture: Picture, row: float, column: float) -> tuple[float, float, float]:
    """
    Return (z, y, x) of what a pixel of a picture shows; of a projection the voxel whose value it has.

    Of a mean or a deviation nobody can say which voxel that is: it is the middle of the ray.
    """
    axis = picture.axis
    first, last = max(picture.first, 0), min(picture.last, volume.shape[axis])
    at = picture.corner[0] + row, picture.corner[1] + column
    depth = (first + last - 1) / 2
    if last - first > 1 and picture.how in ("max", "min"):
        nearest = [min(max(round(c), 0), n - 1) for c, n in zip(at, rows_and_columns(axis, volume.shape), strict=True)]
        start, shape = across(axis, first, *nearest), across(axis, last - first, 1, 1)
        ray = volume.read(start, shape).reshape(-1).astype(np.int64)
        if picture.how == "min":
            ray = np.where(_inside_head(volume, start, shape).reshape(-1), -ray, np.iinfo(np.int64).min)
        ties = np.flatnonzero(ray == ray.max())
        depth = float(first + ties[len(ties) // 2])
    values = list(at)
    values.insert(axis, depth)
    return values[0], values[1], values[2]
