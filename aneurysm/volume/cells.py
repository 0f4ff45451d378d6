"""Voxels <-> cells of about 2 mm: boxes of whole voxels, coarse enough for morphology on a whole head to cost little.

A cell (i, j, k) holds the voxels from (i, j, k) * ``edge`` on, so its centre lies half a cell less half a voxel from
the centre of its first voxel; `cells_affine` says where. The cells at the far faces may reach beyond the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.types import Triple, triple

CELL_MM: Final = 2.0


def cell_edge(shape: Sequence[int], spacing_mm: Sequence[float]) -> Triple:
    """Return how many voxels of ``spacing_mm`` make up a cell along (z, y, x), in a volume of ``shape``."""
    return triple(min(n, max(1, round(CELL_MM / s))) for n, s in zip(shape, spacing_mm, strict=True))


def cells_shape(shape: Sequence[int], edge: Sequence[int]) -> Triple:
    """Return how many cells of ``edge`` voxels cover a volume of ``shape``."""
    return triple(-(-n // e) for n, e in zip(shape, edge, strict=True))


def cells_affine(affine_lps: NDArray[np.float64], edge: Sequence[int]) -> NDArray[np.float64]:
    """Return the affine of cells, (z, y, x, 1) to LPS mm at their centres, of that of their voxels."""
    to_voxels = np.diag([*map(float, edge), 1.0])
    to_voxels[:3, 3] = (np.array(edge) - 1) / 2
    return np.asarray(affine_lps @ to_voxels)


def expand_cells(cells: NDArray[Any], edge: Sequence[int], offset: Sequence[int], shape: Sequence[int]) -> NDArray[Any]:
    """
    Return a box of ``shape`` whose voxels have the values of their cells.

    Parameters
    ----------
    cells
        Those that the box touches, (z, y, x).
    edge
        Voxels of a cell along (z, y, x).
    offset
        Of the box's first voxel within the first cell, (z, y, x).
    """
    for axis, (n, o, e) in reversed(list(enumerate(zip(shape, offset, edge, strict=True)))):
        cells = cells.take((np.arange(n) + o) // e, axis)
    return cells


def fold(reduce: np.ufunc, values: NDArray[Any], factor: Sequence[int], dtype: Any = None) -> NDArray[Any]:
    """Reduce boxes of ``factor`` voxels to one each; what is left over at the far faces is dropped."""
    for axis, f in enumerate(factor):
        n = values.shape[axis] // f * f
        parts = [values[(slice(None),) * axis + (slice(k, n, f),)] for k in range(f)]
        values = parts[0].astype(dtype or values.dtype)
        for part in parts[1:]:
            reduce(values, part, out=values)
    return values
