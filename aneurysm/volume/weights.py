"""Sample positions -> sparse weights, and slices -> target grid: separable, anti-aliased, slice by slice.

On the acquisition's own axes the map to the target grid is separable: one small matrix for columns, one for rows, one
across slices. A gantry tilt is an in-plane shift by slice; uneven slices are uneven weights.

The weights of one axis. Between samples the signal is taken to be linear (at their true positions). Where samples lie
closer (gap g) than the target voxels (t), that line is smoothed by a triangle of half-width h = sqrt(t^2 - g^2): a
triangle of half-width w has the variance w^2 / 6, linear interpolation is a triangle of half-width g, and variances of
filters add, so in all the filter has the width of the target's own triangle. Nothing is smoothed where g >= t. Being a
symmetric average of linear interpolants, it reproduces a linear ramp exactly: structures do not move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]

# Midpoints of 12 equally likely parts of a triangle distribution on [-1, 1], scaled to its variance of 1/6 exactly.
_PARTS: Final = 12
_CDF: Final = (np.arange(_PARTS) + 0.5) / _PARTS
_OFFSETS: Final = np.where(_CDF < 0.5, np.sqrt(2 * _CDF) - 1, 1 - np.sqrt(2 * (1 - _CDF)))
_TRIANGLE: Final = _OFFSETS * np.sqrt(1 / 6 / np.mean(_OFFSETS**2))


def axis_weights(samples_mm: _Floats, targets_mm: _Floats, spacing_mm: float, *, margin_mm: float) -> Any:
    """
    Return the weights that turn samples along one axis into target voxels.

    Parameters
    ----------
    samples_mm
        (n,): positions of the samples, rising. Any gaps.
    targets_mm
        (m,): positions of the target voxels.
    spacing_mm
        Of the target voxels: what lies closer than this is averaged.
    margin_mm
        How far the outermost samples stand for what lies beyond them, half a gap as a rule. Targets further out
        get no weight at all: their row is empty.

    Returns
    -------
    scipy.sparse.csr_array
        (m, n) float32; a row sums to 1, or to 0 where there is nothing to see.
    """
    n, m = len(samples_mm), len(targets_mm)
    inside = (targets_mm >= samples_mm[0] - margin_mm - 1e-6) & (targets_mm <= samples_mm[-1] + margin_mm + 1e-6)
    if n == 1:
        return scipy.sparse.csr_array(inside[:, None].astype(np.float32))
    gaps = np.diff(samples_mm)
    here = np.clip(np.searchsorted(samples_mm, targets_mm, side="right") - 1, 0, n - 2)
    half_width = np.sqrt(np.maximum(0.0, spacing_mm**2 - gaps[here] ** 2))
    # Near the rim the triangle is narrowed, not cut off on one side: that would show what lies further in.
    room = np.minimum(targets_mm - samples_mm[0], samples_mm[-1] - targets_mm)
    half_width = np.minimum(half_width, np.maximum(room, 0.0) / _TRIANGLE.max())
    points = targets_mm[:, None] + half_width[:, None] * _TRIANGLE
    points = np.clip(points, samples_mm[0], samples_mm[-1])
    left = np.clip(np.searchsorted(samples_mm, points, side="right") - 1, 0, n - 2)
    fraction = (points - samples_mm[left]) / gaps[left]
    share = np.repeat(inside / _PARTS, _PARTS).reshape(m, _PARTS)
    rows = np.repeat(np.arange(m), _PARTS).reshape(m, _PARTS)
    weights = scipy.sparse.coo_array(
        (
            np.concatenate([(share * (1 - fraction)).ravel(), (share * fraction).ravel()]),
            (np.concatenate([rows.ravel()] * 2), np.concatenate([left.ravel(), left.ravel() + 1])),
        ),
        shape=(m, n),
    ).tocsr()
    weights.data[weights.data < 1e-6] = 0
    weights.eliminate_zeros()
    sums = np.asarray(weights.sum(axis=1)).ravel()
    weights = scipy.sparse.diags_array(np.divide(1.0, sums, where=sums > 0, out=np.zeros(m))) @ weights
    result = weights.astype(np.float32).tocsr()
    result.sort_indices()
    return result


@dataclass(frozen=True)
class TargetAxis:
    """Positions of the target voxels along one acquisition axis, in mm from the first sample."""

    start_mm: float
    spacing_mm: float
    size: int

    @property
    def positions_mm(self) -> _Floats:
        """(size,) voxel centres."""
        return self.start_mm + self.spacing_mm * np.arange(self.size, dtype=np.float64)


def target_axis(low_mm: float, high_mm: float, spacing_mm: float) -> TargetAxis:
    """
    Return the voxels that cover the field of view from ``low_mm`` to ``high_mm`` (its edges, not voxel centres).

    As few as cover it, centred on it; so every voxel centre lies within.
    """
    extent = high_mm - low_mm
    size = max(1, int(np.ceil(extent / spacing_mm - 1e-4)))
    return TargetAxis((low_mm + high_mm - (size - 1) * spacing_mm) / 2, spacing_mm, size)


class InPlane:
    """Shrinks slices to the target's rows and columns; weights are made once for each in-plane shift."""

    def __init__(
        self, shape: tuple[int, int], spacing_mm: tuple[float, float], rows: TargetAxis, columns: TargetAxis
    ) -> None:
        self._shape, self._spacing_mm, self._axes = shape, spacing_mm, (rows, columns)
        self._weights: tuple[dict[float, tuple[Any, _Bools]], ...] = ({}, {})
        # Reused for every slice: fresh pages cost as much as the arithmetic.
        # Rows of 512 floats lie a power of two apart, and transposing them would use a few cache lines only.
        self._pixels = np.zeros((shape[0], shape[1] + 16), np.float32)
        self._transposed = np.empty((shape[1], rows.size), np.float32)

    def _along(self, axis: int, shift_mm: float) -> tuple[Any, _Bools]:
        """Return the weights of an axis, and which target voxels have any."""
        # A hundredth of a millimetre is far below what shows, and lets slices whose positions jitter share weights.
        key = round(shift_mm, 2)
        if key not in self._weights[axis]:
            step, target = self._spacing_mm[axis], self._axes[axis]
            samples = key + step * np.arange(self._shape[axis], dtype=np.float64)
            weights = axis_weights(samples, target.positions_mm, target.spacing_mm, margin_mm=step / 2)
            if len(self._weights[axis]) > 1:
                self._weights[axis].clear()  # under a tilt every slice has its own
            self._weights[axis][key] = weights, np.diff(weights.indptr) > 0
        return self._weights[axis][key]

    def __call__(self, pixels: NDArray[Any], shift_mm: tuple[float, float]) -> NDArray[np.float32]:
        """
        Return ``pixels`` (rows, columns) on the target grid, transposed: (columns, rows).

        ``shift_mm`` is the slice's offset (along increasing row, along increasing column). Target voxels beyond the
        slice are 0; `covered` tells which they are.
        """
        columns = self._shape[1]
        self._pixels[:, :columns] = pixels
        over_rows = self._along(0, shift_mm[0])[0] @ self._pixels
        np.copyto(self._transposed, over_rows[:, :columns].T)
        return np.asarray(self._along(1, shift_mm[1])[0] @ self._transposed)

    def covered(self, shift_mm: tuple[float, float]) -> tuple[_Bools, _Bools]:
        """Return which target rows and which target columns the slice reaches."""
        return self._along(0, shift_mm[0])[1], self._along(1, shift_mm[1])[1]
