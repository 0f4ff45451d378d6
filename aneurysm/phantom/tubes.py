"""Vessels and sacs -> distance and owner of each voxel, by visiting only the box around each piece."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aneurysm.phantom.aneurysms import Sac
from aneurysm.phantom.branches import Branch, Floats
from aneurysm.phantom.pose import Points, Pose, Vector
from aneurysm.phantom.shapes import FAR, Array, smooth_minimum

Owners = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Segments:
    """Round cones on the scanner's axes: ``start``, ``stop`` (n, 3) in (u, v, w) mm, radii (n,) mm."""

    start: Points
    stop: Points
    radius_start: Floats
    radius_stop: Floats
    value: npt.NDArray[np.uint8]  # (n,) in a vessel mask

    def __len__(self) -> int:
        return len(self.start)

    @property
    def reach(self) -> Floats:
        """(n,) the larger radius of each."""
        return np.maximum(self.radius_start, self.radius_stop)

    @property
    def radius(self) -> Floats:
        """(n,) the mean radius of each."""
        return (self.radius_start + self.radius_stop) / 2


@dataclass(frozen=True)
class ScannerSac:
    """A lesion on the scanner's axes, in mm."""

    center: Vector
    axes: Floats  # (3, 3): columns are the directions of ``radii``
    radii: Vector
    blebs: tuple[tuple[Vector, float], ...]
    foot: Vector
    neck_radii: tuple[float, float]
    value: int

    @property
    def reach(self) -> float:
        """Radius of a ball around the centre that holds all of it."""
        parts = [float(self.radii.max()), float(np.linalg.norm(self.foot - self.center) + self.neck_radii[0])]
        parts += [float(np.linalg.norm(c - self.center) + r) for c, r in self.blebs]
        return max(parts)


def to_segments(branches: list[Branch], pose: Pose, frame: Floats, stride: int = 1) -> Segments:
    """All branches as cones on the scanner's axes (``frame`` (3, 3): LPS -> (u, v, w))."""
    size = float(np.cbrt(np.prod(pose.scale)))
    starts, stops, first, last, values = [], [], [], [], []
    for branch in branches:
        take = np.unique(np.append(np.arange(0, len(branch.points), stride), len(branch.points) - 1))
        points = pose.to_lps(branch.points[take]) @ frame.T
        radii = branch.radii[take] * size
        starts.append(points[:-1])
        stops.append(points[1:])
        first.append(radii[:-1])
        last.append(radii[1:])
        values.append(np.full(len(points) - 1, branch.value, dtype=np.uint8))
    if not starts:
        nothing = np.zeros((0, 3))
        return Segments(nothing, nothing, np.zeros(0), np.zeros(0), np.zeros(0, np.uint8))
    return Segments(
        np.concatenate(starts),
        np.concatenate(stops),
        np.concatenate(first),
        np.concatenate(last),
        np.concatenate(values),
    )


def to_sac(lesion: Sac, pose: Pose, frame: Floats) -> ScannerSac:
    """Return a lesion on the scanner's axes; its shape is scaled as a whole, so that it stays what the truth says."""
    size = float(np.cbrt(np.prod(pose.scale)))

    def place(point: Vector) -> Vector:
        return np.asarray(frame @ pose.to_lps(point[None])[0], dtype=np.float64)

    center = place(lesion.center)
    turn = frame @ pose.turn
    blebs = tuple((center + turn @ (at - lesion.center) * size, r * size) for at, r in lesion.blebs)
    return ScannerSac(
        center=center,
        axes=turn @ lesion.axes,
        radii=lesion.radii * size,
        blebs=blebs,
        foot=place(lesion.foot),
        neck_radii=(lesion.neck_radii[0] * size, lesion.neck_radii[1] * size),
        value=lesion.value,
    )


class Canvas:
    """
    Distance to the nearest vessel wall, and whose wall it is, for some planes of an image.

    ``corners`` (k, 3) are the (u, v, w) of each plane's first pixel, in ascending w; ``spacing_mm`` is
    (between rows, between columns). ``owner`` is -1, the index of a segment, or ``len(segments)`` + that of a sac.
    """

    def __init__(self, corners: Points, spacing_mm: tuple[float, float], shape: tuple[int, int]) -> None:
        self._spacing = spacing_mm
        self._shape = shape
        self._origin = corners.mean(axis=0)
        # Where the gantry leans, planes are shifted against each other; elsewhere one row of u and of v does for all.
        leaning = bool(np.ptp(corners[:, :2], axis=0).max() > 1e-6)
        at = (corners if leaning else corners[:1]) - self._origin
        u = at[:, 0, None] + np.arange(shape[1]) * spacing_mm[1]
        v = at[:, 1, None] + np.arange(shape[0]) * spacing_mm[0]
        self._leaning = leaning
        self._u: Array = u[:, None, :].astype(np.float32)
        self._v: Array = v[:, :, None].astype(np.float32)
        self._w: Array = (corners[:, 2] - self._origin[2])[:, None, None].astype(np.float32)
        self._planes = corners[:, 2] - self._origin[2]
        self._first = at.min(axis=0), at.max(axis=0)
        self.distance: Array = np.full((len(corners), *shape), FAR, dtype=np.float32)
        self.owner: Owners = np.full((len(corners), *shape), -1, dtype=np.int32)

    def clear(self) -> None:
        """Start again."""
        self.distance.fill(FAR)
        self.owner.fill(-1)

    def vessel_values(self, values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """(k, rows, columns): ``values[owner]`` inside of the vessels, 0 elsewhere."""
        inside = self.distance < 0
        out = np.zeros(self.owner.shape, dtype=np.uint8)
        out[inside] = values[self.owner[inside]]
        return out

    def _boxes(self, low: Points, high: Points) -> npt.NDArray[np.int64]:
        """(n, 6): first and last + 1 plane, row and column that boxes (n, 3) in (u, v, w) touch."""
        low, high = low - self._origin, high - self._origin
        least, most = self._first
        rows, columns = self._shape
        return np.stack(
            [
                np.searchsorted(self._planes, low[:, 2], "left"),
                np.searchsorted(self._planes, high[:, 2], "right"),
                np.maximum(0, np.floor((low[:, 1] - most[1]) / self._spacing[0])),
                np.minimum(rows, np.ceil((high[:, 1] - least[1]) / self._spacing[0]) + 1),
                np.maximum(0, np.floor((low[:, 0] - most[0]) / self._spacing[1])),
                np.minimum(columns, np.ceil((high[:, 0] - least[0]) / self._spacing[1]) + 1),
            ],
            axis=1,
        ).astype(np.int64)

    def _offsets(self, box: tuple[slice, slice, slice], origin: Vector) -> tuple[Array, Array, Array]:
        """u, v, w of the box's voxels relative to a point, ready to broadcast."""
        u, v, w = (origin - self._origin).astype(np.float32)
        planes = box[0] if self._leaning else slice(None)
        return self._u[planes, :, box[2]] - u, self._v[planes, box[1]] - v, self._w[box[0]] - w

    def draw_segments(self, segments: Segments, margin_mm: float) -> None:
        """Draw each cone, correct up to ``margin_mm`` outside of it."""
        if not len(segments):
            return
        reach = (segments.reach + margin_mm)[:, None]
        low = np.minimum(segments.start, segments.stop) - reach
        high = np.maximum(segments.start, segments.stop) + reach
        boxes = self._boxes(low, high)
        axes = (segments.stop - segments.start).astype(np.float32)
        touching = (boxes[:, 1] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 2]) & (boxes[:, 5] > boxes[:, 4])
        for n in np.flatnonzero(touching).tolist():
            k0, k1, i0, i1, j0, j1 = boxes[n].tolist()
            box = slice(k0, k1), slice(i0, i1), slice(j0, j1)
            u, v, w = self._offsets(box, segments.start[n])
            r0, r1 = np.float32(segments.radius_start[n]), np.float32(segments.radius_stop[n])
            self._take(box, _cone(u, v, w, axes[n], r0, r1), n)

    def draw_sac(self, sac: ScannerSac, owner: int, margin_mm: float) -> None:
        """Draw a sac; inside of it every voxel is its own, whatever vessel also passes there."""
        reach = sac.reach + margin_mm
        k0, k1, i0, i1, j0, j1 = self._boxes(sac.center[None] - reach, sac.center[None] + reach)[0].tolist()
        if k1 <= k0 or i1 <= i0 or j1 <= j0:
            return
        box = slice(k0, k1), slice(i0, i1), slice(j0, j1)
        u, v, w = self._offsets(box, sac.center)
        a = sac.axes.astype(np.float32)
        r = sac.radii.astype(np.float32)
        along = [(u * a[0, i] + v * a[1, i]) + w * a[2, i] for i in range(3)]
        k0 = np.sqrt(sum((along[i] / r[i]) ** 2 for i in range(3)))
        k1 = np.sqrt(sum((along[i] / r[i] ** 2) ** 2 for i in range(3)))
        body = np.asarray(k0 * (k0 - 1) / np.maximum(k1, np.float32(1e-6)), dtype=np.float32)
        blend = 0.35 * float(r.min())
        for center, radius in sac.blebs:
            bu, bv, bw = self._offsets(box, center)
            bleb = np.sqrt(bu * bu + bv * bv + bw * bw) - np.float32(radius)
            body = smooth_minimum(body, bleb, blend)
        nu, nv, nw = self._offsets(box, sac.foot)
        axis = (sac.center - sac.foot).astype(np.float32)
        neck = _cone(nu, nv, nw, axis, np.float32(sac.neck_radii[0]), np.float32(sac.neck_radii[1]))
        self._take(box, neck, owner)
        self._take(box, body, owner)
        self.owner[box][body < 0] = owner

    def _take(self, box: tuple[slice, slice, slice], distance: Array, owner: int) -> None:
        there = self.distance[box]
        nearer = distance < there
        np.copyto(there, distance, where=nearer)
        np.copyto(self.owner[box], owner, where=nearer)


def _cone(u: Array, v: Array, w: Array, axis: Array, r0: np.float32, r1: np.float32) -> Array:
    """Distance to a round cone from the origin to ``axis``; u, v, w broadcast to the box."""
    length2 = np.float32(max(float(axis @ axis), 1e-8))
    dot = (v * axis[1] + w * axis[2]) + u * axis[0]
    square = (v * v + w * w) + u * u
    t = dot * (1 / length2)
    np.minimum(t, 1, out=t)
    np.maximum(t, 0, out=t)
    square -= t * (2 * dot - t * length2)
    np.maximum(square, 0, out=square)
    np.sqrt(square, out=square)
    if r0 == r1:
        square -= r0
    else:
        t *= r1 - r0
        t += r0
        square -= t
    return np.asarray(square, dtype=np.float32)
