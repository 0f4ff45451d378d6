"""Where a head lies in the scanner: template millimetres -> patient space (LPS)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Points = npt.NDArray[np.float64]


def rotation(degrees_xyz: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    """Rotation matrix: first about x, then y, then z, right-handed."""
    ax, ay, az = np.radians(degrees_xyz)
    rx = np.array([[1, 0, 0], [0, np.cos(ax), -np.sin(ax)], [0, np.sin(ax), np.cos(ax)]])
    ry = np.array([[np.cos(ay), 0, np.sin(ay)], [0, 1, 0], [-np.sin(ay), 0, np.cos(ay)]])
    rz = np.array([[np.cos(az), -np.sin(az), 0], [np.sin(az), np.cos(az), 0], [0, 0, 1]])
    return np.asarray(rz @ ry @ rx, dtype=np.float64)


@dataclass(frozen=True)
class Pose:
    """
    An affine map from the head template to the patient's LPS millimetres.

    The template's origin is the middle of the circle of Willis, just above the sella; its axes are LPS for a head that
    lies straight. ``scale`` makes heads of different length, width and height of the one template.
    """

    scale: Vector  # (3,)
    turn: npt.NDArray[np.float64]  # (3, 3), a rotation
    origin_lps: Vector  # (3,)

    @property
    def matrix(self) -> npt.NDArray[np.float64]:
        """(3, 3): the linear part of the map."""
        return self.turn * self.scale

    def to_lps(self, points: Points) -> Points:
        """(n, 3) template -> (n, 3) LPS mm."""
        return np.asarray(points, dtype=np.float64) @ self.matrix.T + self.origin_lps

    def to_template(self, points_lps: Points) -> Points:
        """(n, 3) LPS mm -> (n, 3) template."""
        return (np.asarray(points_lps, dtype=np.float64) - self.origin_lps) @ np.linalg.inv(self.matrix).T

    @property
    def left(self) -> Vector:
        """(3,) LPS: the normal of the mid-plane, to the head's own left."""
        return np.asarray(self.turn[:, 0], dtype=np.float64)


def random_pose(rng: np.random.Generator) -> Pose:
    """Draw a head of ordinary size, a little askew, at an arbitrary table position."""
    size = rng.normal(1.0, 0.03)
    scale = np.clip(size * rng.normal(1.0, 0.025, 3), 0.9, 1.1)
    # Nodding is freer than turning or leaning: the head holder lets the chin go up and down.
    degrees = (float(rng.normal(0, 6)), float(rng.normal(0, 2.5)), float(rng.normal(0, 3)))
    degrees = (float(np.clip(degrees[0], -14, 14)), degrees[1], degrees[2])
    origin = np.array([rng.normal(0, 5), rng.normal(-20, 12), rng.uniform(-900, 200)])
    return Pose(scale=scale, turn=rotation(degrees), origin_lps=origin)
