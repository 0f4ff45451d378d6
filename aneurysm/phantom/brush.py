"""Layers -> one slice: interpolated and painted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aneurysm.phantom.pose import Points
from aneurysm.phantom.scanner import SliceStack
from aneurysm.phantom.shapes import Array, SampleGrid


@dataclass(frozen=True)
class Part:
    """A layer's distance on the part of a slice where it matters."""

    rows: slice
    columns: slice
    distance: Array


class Brush:
    """Interpolates layers to one slice and paints with them."""

    def __init__(self, image: Array, stack: SliceStack, start: Points, step: float, edge: float) -> None:
        self._image = image
        self._level = int(np.floor(start[2]))
        self._rise = np.float32(start[2] - self._level)
        self._columns = start[0] + np.arange(stack.shape[1]) * (stack.spacing_mm[1] / step)
        self._rows = start[1] + np.arange(stack.shape[0]) * (stack.spacing_mm[0] / step)
        self._left = np.floor(self._columns).astype(np.intp)
        self._top = np.floor(self._rows).astype(np.intp)
        self._across = (self._columns - self._left).astype(np.float32)
        self._down = (self._rows - self._top).astype(np.float32)[:, None]
        self._edge = np.float32(edge)

    def _plane(self, layer: Array) -> Array:
        low, high = layer[self._level], layer[self._level + 1]
        return np.asarray(low + (high - low) * self._rise, dtype=np.float32)

    def _enlarge(self, plane: Array, rows: slice, columns: slice) -> Array:
        """Linear interpolation of a coarse plane to the pixels of a part of the slice."""
        top = self._top[rows]
        strip = plane[top[0] : top[-1] + 2]
        left = self._left[columns]
        wide = strip.take(left, axis=1)
        wide += (strip.take(left + 1, axis=1) - wide) * self._across[columns]
        top = top - top[0]
        out = (wide[1:] - wide[:-1]).take(top, axis=0)
        out *= self._down[rows]
        out += wide.take(top, axis=0)
        return np.asarray(out, dtype=np.float32)

    def part(self, layer: Array) -> Part | None:
        """Return the layer where it is inside, or nearly."""
        plane = self._plane(layer)
        near = plane < 3.0
        coarse_rows = np.flatnonzero(near.any(axis=1))
        if not len(coarse_rows):
            return None
        coarse_columns = np.flatnonzero(near.any(axis=0))
        rows = _span(self._rows, coarse_rows)
        columns = _span(self._columns, coarse_columns)
        if rows.stop <= rows.start or columns.stop <= columns.start:
            return None
        return Part(rows, columns, self._enlarge(plane, rows, columns))

    def same(self, layer: Array, part: Part) -> Array:
        """Another layer on the same part."""
        return self._enlarge(self._plane(layer), part.rows, part.columns)

    def midline(self, grid: SampleGrid, part: Part) -> Array:
        """Return the template's x on a part, (rows, columns): linear in the indices, so computed rather than stored."""
        m = np.linalg.inv(grid.to_index)[0]
        base = -m @ grid.offset + m[0] * (self._level + float(self._rise))
        rows = (base + m[1] * self._rows[part.rows]).astype(np.float32)
        return np.asarray(rows[:, None] + (m[2] * self._columns[part.columns]).astype(np.float32))

    def cover(self, part: Part, distance: Array, value: float | Array) -> None:
        """Paint a value where the distance is negative, with a soft edge."""
        there = self._image[part.rows, part.columns]
        cover = distance * (-1 / self._edge)
        cover += np.float32(0.5)
        np.clip(cover, 0, 1, out=cover)
        difference = np.subtract(value if isinstance(value, np.ndarray) else np.float32(value), there)
        difference *= cover
        there += difference

    def paint(self, layer: Array, value: float) -> None:
        """Paint a value all over a layer."""
        if (part := self.part(layer)) is not None:
            self.cover(part, part.distance, value)


def _span(at: npt.NDArray[np.float64], coarse: npt.NDArray[np.intp]) -> slice:
    """Return the pixels between the outer ones of some coarse indices."""
    return slice(int(np.searchsorted(at, coarse[0] - 1, "left")), int(np.searchsorted(at, coarse[-1] + 1, "right")))
