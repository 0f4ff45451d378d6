"""
Signed distances of the solids that a head is made of, on a coarse grid.

A distance field of a smooth surface is nearly linear, so 2 mm are enough to hold it: the renderer interpolates the
*distance* to the image's own pixels and makes the edge there, as sharp as the scanner's point spread allows. Each solid
is evaluated only in its own box; everywhere else the field keeps ``FAR``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from aneurysm.phantom.pose import Vector

Array = npt.NDArray[np.float32]

FAR = 40.0
_MARGIN_MM = 7.0  # A field is right up to this far outside of its solid, and FAR beyond.


class Shape(Protocol):
    """A solid in template millimetres."""

    def bound(self) -> tuple[Vector, float]:
        """Centre and radius of a sphere around it."""
        ...

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """Signed distance in mm, negative inside; exact near the surface."""
        ...


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid along the template's axes."""

    center: tuple[float, float, float]
    radii: tuple[float, float, float]

    def bound(self) -> tuple[Vector, float]:
        """Return centre and radius of a sphere around it."""
        return np.array(self.center), max(self.radii)

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """Return the signed distance in mm of each point."""
        # k0 (k0 - 1) / k1 with k0 = |p / r| and k1 = |p / r^2| is exact to first order at the surface (I. Quilez).
        cx, cy, cz = (np.float32(v) for v in self.center)
        rx, ry, rz = (np.float32(v) for v in self.radii)
        px, py, pz = (x - cx) / rx, (y - cy) / ry, (z - cz) / rz
        k0 = np.sqrt(px * px + py * py + pz * pz)
        px /= rx
        py /= ry
        pz /= rz
        k1 = np.sqrt(px * px + py * py + pz * pz)
        return np.asarray(k0 * (k0 - 1) / np.maximum(k1, np.float32(1e-6)), dtype=np.float32)


@dataclass(frozen=True)
class Capsule:
    """A rod with round ends, of radius ``radius_a`` at ``a`` and ``radius_b`` at ``b``."""

    a: tuple[float, float, float]
    b: tuple[float, float, float]
    radius_a: float
    radius_b: float

    def bound(self) -> tuple[Vector, float]:
        """Return centre and radius of a sphere around it."""
        a, b = np.array(self.a), np.array(self.b)
        return (a + b) / 2, float(np.linalg.norm(b - a) / 2 + max(self.radius_a, self.radius_b))

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """Return the signed distance in mm of each point."""
        a, b = np.array(self.a, np.float32), np.array(self.b, np.float32)
        axis = b - a
        length2 = np.float32(max(float(axis @ axis), 1e-9))
        px, py, pz = x - a[0], y - a[1], z - a[2]
        t = np.clip((px * axis[0] + py * axis[1] + pz * axis[2]) / length2, 0, 1)
        px -= t * axis[0]
        py -= t * axis[1]
        pz -= t * axis[2]
        radius = np.float32(self.radius_a) + t * np.float32(self.radius_b - self.radius_a)
        return np.asarray(np.sqrt(px * px + py * py + pz * pz) - radius, dtype=np.float32)


@dataclass(frozen=True)
class HalfSpace:
    """Everything on the side of the plane through ``point`` that ``normal`` points away from."""

    point: tuple[float, float, float]
    normal: tuple[float, float, float]

    def bound(self) -> tuple[Vector, float]:
        """Return centre and radius of a sphere around it."""
        return np.array(self.point), np.inf

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """Return the signed distance in mm of each point."""
        n = np.array(self.normal, np.float32)
        n /= np.float32(np.linalg.norm(n))
        offset = np.float32(n @ np.array(self.point, np.float32))
        return np.asarray(x * n[0] + y * n[1] + z * n[2] - offset, dtype=np.float32)


def tube(points: npt.ArrayLike, radii: npt.ArrayLike) -> list[Shape]:
    """Capsules along a polyline; ``points`` (n, 3), ``radii`` (n,) or a number."""
    pts = np.asarray(points, dtype=np.float64)
    r = np.broadcast_to(np.asarray(radii, dtype=np.float64), (len(pts),))
    ends = [tuple(map(float, p)) for p in pts]
    return [
        Capsule(ends[i], ends[i + 1], float(r[i]), float(r[i + 1]))  # type: ignore[arg-type]
        for i in range(len(pts) - 1)
    ]


class SampleGrid:
    """
    A regular grid over the scanner's axes (w, v, u) whose points know their place in the template.

    ``to_index`` (3, 3) and ``offset`` (3,) map template mm to (w, v, u) indices.
    """

    def __init__(self, shape: tuple[int, int, int], to_index: npt.NDArray[np.float64], offset: Vector) -> None:
        self.shape = shape
        self.to_index = to_index
        self.offset = offset
        self._inverse = np.linalg.inv(to_index)
        self._reach = np.linalg.norm(to_index, axis=1)  # Index units per template mm, for a sphere.

    def box(self, center: Vector, radius: float) -> tuple[slice, slice, slice] | None:
        """Return the part of the grid that a sphere touches, or None."""
        if not np.isfinite(radius):
            return (slice(0, self.shape[0]), slice(0, self.shape[1]), slice(0, self.shape[2]))
        middle = self.to_index @ center + self.offset
        low = np.maximum(np.floor(middle - radius * self._reach), 0).astype(int)
        high = np.minimum(np.ceil(middle + radius * self._reach).astype(int) + 1, self.shape)
        if np.any(high <= low):
            return None
        return (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))

    def coordinates(self, box: tuple[slice, slice, slice]) -> tuple[Array, Array, Array]:
        """Template x, y, z of the points of a box, each of the box's shape."""
        w, v, u = (np.arange(s.start, s.stop) for s in box)
        m = self._inverse
        base = -m @ self.offset
        x, y, z = (
            (
                (base[i] + m[i, 0] * w)[:, None, None].astype(np.float32)
                + (m[i, 1] * v)[:, None].astype(np.float32)
                + (m[i, 2] * u).astype(np.float32)
            )
            for i in range(3)
        )
        return x, y, z

    def everywhere(self) -> tuple[slice, slice, slice]:
        """Return the box that is the whole grid."""
        return (slice(0, self.shape[0]), slice(0, self.shape[1]), slice(0, self.shape[2]))


class Solid:
    """A distance field on a grid, put together from shapes."""

    def __init__(self, grid: SampleGrid) -> None:
        self.grid = grid
        self.distance: Array = np.full(grid.shape, FAR, dtype=np.float32)

    def add(self, *shapes: Shape, blend_mm: float = 0.0) -> Solid:
        """Unite with each shape; ``blend_mm`` rounds the crease between them."""
        for shape in shapes:
            center, radius = shape.bound()
            box = self.grid.box(center, radius + _MARGIN_MM + blend_mm)
            if box is not None:
                there = self.distance[box]
                there[...] = smooth_minimum(there, shape.distance(*self.grid.coordinates(box)), blend_mm)
        return self

    def cut(self, *shapes: Shape, blend_mm: float = 0.0, keep_mm: float = 0.0) -> Solid:
        """Take each shape out, and ``keep_mm`` of clearance around it."""
        for shape in shapes:
            center, radius = shape.bound()
            box = self.grid.box(center, radius + keep_mm + _MARGIN_MM + blend_mm)
            if box is not None:
                there = self.distance[box]
                inside = shape.distance(*self.grid.coordinates(box)) - np.float32(keep_mm)
                there[...] = -smooth_minimum(-there, inside, blend_mm)
        return self

    def copy(self, grow_mm: float = 0.0) -> Solid:
        """Return a solid of its own, larger by ``grow_mm`` on all sides."""
        other = Solid.__new__(Solid)
        other.grid = self.grid
        other.distance = self.distance - np.float32(grow_mm)
        return other


def smooth_minimum(a: Array, b: Array, blend_mm: float) -> Array:
    """Return the polynomial smooth minimum: differs from min(a, b) only where they are within ``blend_mm``."""
    if blend_mm <= 0:
        return np.minimum(a, b)
    k = np.float32(blend_mm)
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.asarray(np.minimum(a, b) - h * h * k * np.float32(0.25), dtype=np.float32)
