"""Where the pixels of an acquisition lie in the patient (LPS, mm), for any orientation, tilt and spacing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tests.support.pattern import Pattern

LEFT, POSTERIOR, SUPERIOR = np.eye(3)
PLANES = {
    # Direction of growing column index, direction of growing row index.
    "axial": (LEFT, POSTERIOR),
    "coronal": (LEFT, -SUPERIOR),
    "sagittal": (POSTERIOR, -SUPERIOR),
}


@dataclass(frozen=True)
class Acquisition:
    """Slices in the order in which they were acquired.

    Attributes
    ----------
    row_direction, column_direction:
        Unit vectors of ImageOrientationPatient: along a row (x, growing column index), and down a column (y).
    positions:
        (n, 3) ImagePositionPatient: the centre of the first pixel of each slice.
    spacing_mm:
        PixelSpacing: between rows (y), between columns (x).
    shape:
        rows, columns.
    """

    row_direction: np.ndarray
    column_direction: np.ndarray
    positions: np.ndarray
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.row_direction, self.column_direction)

    @property
    def orientation(self) -> list[float]:
        return [*self.row_direction, *self.column_direction]

    def __len__(self) -> int:
        return len(self.positions)

    def lps(self, index: int, x: float, y: float) -> np.ndarray:
        """The patient point of column ``x``, row ``y`` of slice ``index``; whole numbers are pixel centres."""
        return (
            self.positions[index]
            + x * self.spacing_mm[1] * self.row_direction
            + y * self.spacing_mm[0] * self.column_direction
        )

    def points(self) -> np.ndarray:
        """LPS of every pixel centre: (slices, rows, columns, 3)."""
        rows, columns = self.shape
        down = np.arange(rows)[:, None, None] * self.spacing_mm[0] * self.column_direction
        along = np.arange(columns)[None, :, None] * self.spacing_mm[1] * self.row_direction
        return self.positions[:, None, None, :] + (down + along)[None]

    def sample(self, pattern: Pattern) -> np.ndarray:
        """Values of the pattern at every pixel centre: (slices, rows, columns)."""
        return pattern(self.points())

    @property
    def centre(self) -> np.ndarray:
        """The middle of the field of view (of an even, untilted stack)."""
        rows, columns = self.shape
        ends = [self.lps(i, (columns - 1) / 2, (rows - 1) / 2) for i in (0, len(self) - 1)]
        along_normal = self.positions @ self.normal
        middle = (along_normal.min() + along_normal.max()) / 2
        plain = (ends[0] + ends[1]) / 2
        return plain + (middle - plain @ self.normal) * self.normal if len(self) > 1 else plain

    @property
    def extent_mm(self) -> float:
        along_normal = self.positions @ self.normal
        return float(max(np.ptp(along_normal), *(n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))))

    def take(self, indices: Sequence[int]) -> Acquisition:
        """The same acquisition with only these slices, in this order."""
        return replace(self, positions=self.positions[np.asarray(indices, dtype=int)])

    def is_interior(self, points: np.ndarray, margin_mm: float) -> np.ndarray:
        """Whether every sample within ``margin_mm`` of a point was acquired: what is beyond is clamped, not known."""
        points = np.asarray(points, dtype=np.float64)
        along_normal = self.positions @ self.normal
        order = np.argsort(along_normal)
        stations = along_normal[order]
        height = points @ self.normal
        reach = margin_mm + self.gap_mm(points, margin_mm)
        # Seen along the normal, a tilted slice lies elsewhere than its neighbours: all that contribute must be there.
        inside = (height >= stations[0] + margin_mm - 1e-6) & (height <= stations[-1] - margin_mm + 1e-6)
        for station, position in zip(stations, self.positions[order], strict=True):
            relative = points - position
            fits = np.ones(points.shape[:-1], dtype=bool)
            for direction, spacing, count in (
                (self.row_direction, self.spacing_mm[1], self.shape[1]),
                (self.column_direction, self.spacing_mm[0], self.shape[0]),
            ):
                offset = relative @ direction
                edge = max(spacing, margin_mm)
                fits &= (offset >= edge - 1e-6) & (offset <= (count - 1) * spacing - edge + 1e-6)
            inside &= fits | (np.abs(station - height) > reach)
        return inside

    def gap_mm(self, points: np.ndarray, margin_mm: float) -> np.ndarray:
        """The widest gap between slices that plays a part at each point."""
        stations = np.sort(self.positions @ self.normal)
        height = np.asarray(points) @ self.normal
        widest = np.zeros(height.shape)
        for low, high in itertools.pairwise(stations):
            plays = (height >= low - margin_mm) & (height <= high + margin_mm)
            np.maximum(widest, np.where(plays, high - low, 0.0), out=widest)
        return widest


def rotation(axis: Sequence[float], degrees: float) -> np.ndarray:
    """The 3x3 matrix that turns by ``degrees`` about ``axis`` (Rodrigues' formula)."""
    axis = np.asarray(axis, dtype=np.float64) / np.linalg.norm(axis)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def acquire(
    plane: str | tuple[np.ndarray, np.ndarray] = "axial",
    *,
    slices: int = 24,
    shape: tuple[int, int] = (32, 28),
    spacing_mm: tuple[float, float] = (1.0, 1.0),
    gap_mm: float = 1.0,
    offsets_mm: Sequence[float] | None = None,
    reverse: bool = False,
    tilt_deg: float = 0.0,
    turn: np.ndarray | None = None,
    middle: Sequence[float] = (-7.3, 21.7, 143.1),
) -> Acquisition:
    """Lay out an acquisition whose first-slice-to-last-slice middle is ``middle``.

    Parameters
    ----------
    plane:
        A name of ``PLANES``, or the two direction vectors themselves (feet first, decubitus).
    offsets_mm:
        Positions of the slices along the direction of table travel; ``slices`` steps of ``gap_mm`` where not given.
    reverse:
        Run against the slice normal instead of along it.
    tilt_deg:
        Gantry tilt: the slices are turned about the row direction, while the table still travels along the untilted
        normal. Positions are then sheared, and the gap along the normal is ``gap_mm * cos(tilt)``.
    turn:
        A rotation of everything, for oblique planes.
    """
    row_direction, column_direction = PLANES[plane] if isinstance(plane, str) else plane
    row_direction, column_direction = np.asarray(row_direction, float), np.asarray(column_direction, float)
    travel = np.cross(row_direction, column_direction)
    column_direction = rotation(row_direction, tilt_deg) @ column_direction
    if turn is not None:
        row_direction, column_direction, travel = turn @ row_direction, turn @ column_direction, turn @ travel
    offsets = np.asarray(np.arange(slices) * gap_mm if offsets_mm is None else offsets_mm, dtype=np.float64)
    offsets = offsets - (offsets.min() + offsets.max()) / 2
    corner = (
        np.asarray(middle, dtype=np.float64)
        - (shape[1] - 1) / 2 * spacing_mm[1] * row_direction
        - (shape[0] - 1) / 2 * spacing_mm[0] * column_direction
    )
    positions = corner + (-offsets if reverse else offsets)[:, None] * travel
    return Acquisition(row_direction, column_direction, positions, spacing_mm, shape)
