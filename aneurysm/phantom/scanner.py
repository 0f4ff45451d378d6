"""The scanner: in which planes, how far apart and how finely a head is imaged."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from aneurysm.phantom.pose import Points, Pose, Vector, rotation

PLANES: dict[str, tuple[Vector, Vector]] = {
    # Directions of a row (column index grows) and of a column (row index grows), LPS.
    "axial": (np.array([1.0, 0, 0]), np.array([0.0, 1, 0])),
    "sagittal": (np.array([0.0, 1, 0]), np.array([0.0, 0, -1])),
    "coronal": (np.array([1.0, 0, 0]), np.array([0.0, 0, -1])),
}
SIZES = ("tiny", "small", "full")


@dataclass(frozen=True)
class SliceStack:
    """
    Parallel slices in patient space.

    ``positions_lps`` (n, 3) is the centre of the first pixel of each slice, in the order in which they are stored;
    ``row`` and ``column`` are the unit directions of growing column and row index; ``spacing_mm`` is (between rows,
    between columns), as in PixelSpacing; ``shape`` is (rows, columns).
    """

    positions_lps: Points
    row: Vector
    column: Vector
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    thickness_mm: float

    def __len__(self) -> int:
        return len(self.positions_lps)

    @property
    def normal(self) -> Vector:
        """(3,): row x column."""
        return np.asarray(np.cross(self.row, self.column), dtype=np.float64)

    @property
    def frame(self) -> npt.NDArray[np.float64]:
        """(3, 3) rotation: LPS -> scanner (u along a row, v along a column, w along the normal)."""
        return np.stack([self.row, self.column, self.normal])

    @property
    def corners_uvw(self) -> Points:
        """(n, 3): each slice's first pixel on the scanner's axes."""
        return np.asarray(self.positions_lps @ self.frame.T, dtype=np.float64)

    @property
    def gap_mm(self) -> float:
        """Median distance of neighbouring planes."""
        w = np.sort(self.corners_uvw[:, 2])
        return float(np.median(np.diff(w))) if len(w) > 1 else self.thickness_mm

    def locate(self, point_lps: Vector) -> tuple[int, float, float]:
        """Nearest slice, and the column (x) and row (y) in it, of a point."""
        uvw = self.frame @ point_lps
        corners = self.corners_uvw
        k = int(np.argmin(np.abs(corners[:, 2] - uvw[2])))
        return (
            k,
            float((uvw[0] - corners[k, 0]) / self.spacing_mm[1]),
            float((uvw[1] - corners[k, 1]) / self.spacing_mm[0]),
        )

    def point(self, k: int, x: float, y: float) -> Vector:
        """LPS of column ``x``, row ``y`` of slice ``k``."""
        return np.asarray(
            self.positions_lps[k] + self.row * (x * self.spacing_mm[1]) + self.column * (y * self.spacing_mm[0])
        )

    def keep(self, indices: npt.ArrayLike) -> SliceStack:
        """Return the given slices, in the given order."""
        return replace(self, positions_lps=self.positions_lps[np.asarray(indices)])


@dataclass(frozen=True)
class Protocol:
    """What is set at the console: extents in template mm about the circle of Willis, and sampling in mm."""

    shape: tuple[int, int]  # rows, columns
    pixel_mm: tuple[float, float]  # between rows, between columns
    gap_mm: float
    thickness_mm: float
    below_mm: float
    above_mm: float

    @property
    def slices(self) -> int:
        """How many slices that makes."""
        return max(2, round((self.below_mm + self.above_mm) / self.gap_mm) + 1)


_FINENESS = {"tiny": 2.3, "small": 1.0, "full": 0.45}
"""Millimetres per pixel about which the sizes lie."""


def draw_protocol(modality: str, size: str, plane: str, rng: np.random.Generator) -> Protocol:
    """Draw an ordinary protocol for the modality; ``size`` sets how fine it is."""
    choose = {"CTA": _cta, "MRA": _mra, "MRI T2": _t2, "MRI T1post": _t1post}[modality]
    fov, gap, thickness, below, above, pixels = choose(size, rng)
    if size != "full":
        pixels = max(64, 16 * round(fov / _FINENESS[size] / 16))
    if plane != "axial" and modality != "MRA":
        # Sagittal and coronal fields of view hold the whole head in height; slices run across it instead.
        fov = max(fov, 235.0)
        below, above = (76.0, 76.0) if plane == "sagittal" else (88.0, 108.0)
    if plane != "axial" and modality == "MRA":
        below, above = 45.0, 45.0
    pixel = fov / pixels
    return Protocol((pixels, pixels), (pixel, pixel), gap, thickness, below, above)


_Drawn = tuple[float, float, float, float, float, int]


def _cta(size: str, rng: np.random.Generator) -> _Drawn:
    fov = float(rng.choice([200, 220, 230, 250]))
    gap, thickness = {
        "full": [(0.5, 0.5), (0.5, 1.0), (0.625, 0.625), (0.6, 0.75), (0.75, 1.0), (1.0, 1.0)],
        "small": [(1.0, 1.0), (1.0, 1.25), (1.25, 1.25)],
        "tiny": [(3.0, 3.0), (2.5, 2.5)],
    }[size][int(rng.integers({"full": 6, "small": 3, "tiny": 2}[size]))]
    below = float(rng.uniform(55, 85)) if size != "full" else float(rng.uniform(60, 105))
    above = float(rng.uniform(68, 80)) if size != "full" else float(rng.uniform(90, 118))
    return fov, gap, thickness, below, above, 512


def _mra(size: str, rng: np.random.Generator) -> _Drawn:
    fov = float(rng.choice([180, 200, 210, 220]))
    gap, thickness = {
        "full": [(0.5, 0.5), (0.5, 1.0), (0.55, 1.1), (0.6, 0.6), (0.7, 1.4)],
        "small": [(0.8, 0.8), (1.0, 1.0), (0.8, 1.2)],
        "tiny": [(2.5, 2.5), (2.0, 2.0)],
    }[size][int(rng.integers({"full": 5, "small": 3, "tiny": 2}[size]))]
    pixels = int(rng.choice([320, 384, 512, 512, 576]))
    return fov, gap, thickness, float(rng.uniform(48, 56)), float(rng.uniform(38, 62)), pixels


def _t2(size: str, rng: np.random.Generator) -> _Drawn:
    fov = float(rng.choice([220, 230, 240]))
    gap, thickness = [(5.0, 5.0), (5.5, 5.0), (6.0, 5.0), (4.4, 4.0)][int(rng.integers(4))]
    if size != "tiny" and rng.random() < 0.12:
        gap, thickness = (1.0, 1.0) if size == "small" else (0.8, 0.8)  # The rare volumetric T2.
    pixels = int(rng.choice([320, 384, 448, 512, 512, 640]))
    return fov, gap, thickness, float(rng.uniform(52, 62)), float(rng.uniform(84, 96)), pixels


def _t1post(size: str, rng: np.random.Generator) -> _Drawn:
    fov = float(rng.choice([230, 240, 256]))
    gap, thickness = {"full": (1.0, 1.0), "small": (1.2, 1.2), "tiny": (3.0, 3.0)}[size]
    if rng.random() < 0.4:
        gap, thickness = [(5.0, 5.0), (6.0, 5.0)][int(rng.integers(2))]
    pixels = int(rng.choice([256, 256, 320, 512]))
    return fov, gap, thickness, float(rng.uniform(56, 70)), float(rng.uniform(80, 100)), pixels


def plan_stack(
    protocol: Protocol,
    pose: Pose,
    plane: str,
    rng: np.random.Generator,
    *,
    descending: bool = False,
    tilt_deg: float = 0.0,
    oblique_deg: float = 0.0,
    cover_lps: Points | None = None,
) -> SliceStack:
    """
    Lay the slices of a protocol over a head.

    Parameters
    ----------
    protocol, pose, plane
        What to image, where it lies, and along which of ``PLANES``.
    rng
        For the technician's aim, a few millimetres off, and the direction of obliqueness.
    descending
        Slices run against the normal of the image plane.
    tilt_deg
        Gantry tilt: the planes lean about the patient's x axis, and the table still moves along z.
    oblique_deg
        The whole stack is turned by this much about two axes: no shear.
    cover_lps
        (n, 3) points that must lie at least 8 mm inside of the stack; more slices are added where needed.
    """
    row, column = PLANES[plane]
    if oblique_deg:
        turn = rotation((oblique_deg * float(rng.choice([-1, 1])), oblique_deg * 0.4 * float(rng.choice([-1, 1])), 0.0))
        row, column = turn @ row, turn @ column
    if tilt_deg:
        column = rotation((tilt_deg, 0, 0)) @ column
    normal = np.cross(row, column)
    travel = np.array([0.0, 0.0, 1.0]) if tilt_deg else normal
    middle = pose.origin_lps + _aim(plane, pose, rng)

    low, high = -protocol.below_mm, protocol.above_mm
    if plane == "sagittal":
        low, high = -protocol.above_mm, protocol.below_mm  # The normal points to the right.
    if plane == "coronal":
        low, high = -protocol.below_mm, protocol.above_mm
    if cover_lps is not None and len(cover_lps):
        # Along the direction of travel, in units of its own length, which differs from w where the gantry leans.
        along = ((np.asarray(cover_lps) - middle) @ normal) / float(travel @ normal)
        low, high = min(low, float(along.min()) - 8), max(high, float(along.max()) + 8)
    n = max(2, round((high - low) / protocol.gap_mm) + 1)
    steps = low + protocol.gap_mm * np.arange(n)
    if descending:
        steps = steps[::-1]
    rows, columns = protocol.shape
    half = row * ((columns - 1) / 2 * protocol.pixel_mm[1]) + column * ((rows - 1) / 2 * protocol.pixel_mm[0])
    positions = middle + steps[:, None] * travel - half
    return SliceStack(positions, row, column, protocol.pixel_mm, protocol.shape, protocol.thickness_mm)


def _aim(plane: str, pose: Pose, rng: np.random.Generator) -> Vector:
    """Offset of the middle of the field of view from the circle of Willis, LPS mm."""
    ahead = {"axial": (0.0, 18.0, 0.0), "sagittal": (0.0, 18.0, 15.0), "coronal": (0.0, 0.0, 15.0)}[plane]
    return np.asarray(pose.turn @ np.array(ahead) + rng.normal(0, 2.0, 3))


def regular_grid(stack: SliceStack, step_mm: float) -> SliceStack:
    """Return a stack of even, unsheared slices over the same room: what a NIfTI file can hold."""
    corners = stack.corners_uvw
    low, high = corners.min(axis=0), corners.max(axis=0)
    size = (
        np.array([(stack.shape[1] - 1) * stack.spacing_mm[1], (stack.shape[0] - 1) * stack.spacing_mm[0]])
        + (high - low)[:2]
    )
    columns, rows = (np.floor(size / step_mm).astype(int) + 1).tolist()
    n = int((high[2] - low[2]) / step_mm) + 1
    start = stack.frame.T @ low
    positions = start + np.arange(n)[:, None] * step_mm * stack.normal
    return SliceStack(positions, stack.row, stack.column, (step_mm, step_mm), (rows, columns), step_mm)
