"""Branch and Tree: vessels as centrelines with radii, and the smooth lines that they are made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline

from aneurysm.labels import SITES, VESSEL_VALUES
from aneurysm.phantom.pose import Points

Floats = npt.NDArray[np.float64]

STEP_MM = 0.8
VALUES = dict(zip(SITES, VESSEL_VALUES, strict=True))
"""Site -> its value in a vessel mask."""
OTHER = VALUES["Other Posterior Circulation"]


def mask_value(site: str, side: str = "") -> int:
    """Return the value of a site in a vessel mask; ``side`` is put before it where the label has one."""
    return VALUES[f"{side.capitalize()} {site}" if side else site]


@dataclass(frozen=True)
class Branch:
    """
    A stretch of vessel.

    ``points`` (n, 3) template mm; ``radii`` (n,) mm; ``value`` is what it gets in a vessel mask, 0 for nothing;
    ``vein`` says that its blood is venous.
    """

    name: str
    points: Points
    radii: Floats
    value: int = 0
    vein: bool = False

    def at(self, fraction: float) -> tuple[Floats, Floats, float]:
        """Point, unit direction of flow and radius at a fraction of its length."""
        steps = np.linalg.norm(np.diff(self.points, axis=0), axis=1)
        arc = np.concatenate([[0.0], np.cumsum(steps)])
        s = float(np.clip(fraction, 0, 1)) * arc[-1]
        i = int(np.clip(np.searchsorted(arc, s) - 1, 0, len(steps) - 1))
        t = (s - arc[i]) / max(steps[i], 1e-9)
        point = self.points[i] * (1 - t) + self.points[i + 1] * t
        direction = (self.points[i + 1] - self.points[i]) / max(steps[i], 1e-9)
        return point, direction, float(self.radii[i] * (1 - t) + self.radii[i + 1] * t)


@dataclass
class Tree:
    """All branches of one head by name, and what is peculiar about it."""

    branches: dict[str, Branch] = field(default_factory=dict)
    features: list[str] = field(default_factory=list)

    def put(self, branch: Branch) -> Branch:
        """Add a branch, or replace the one of its name."""
        self.branches[branch.name] = branch
        return branch


def centreline(
    control: npt.ArrayLike, radii: npt.ArrayLike, rng: np.random.Generator | None = None, wind_mm: float = 0.0
) -> tuple[Points, Floats]:
    """
    Return a smooth line through control points (n, 3), resampled to steps of ``STEP_MM``; radii (n,) follow linearly.

    With ``wind_mm`` the line winds about its course by about that much, and not at all at its ends, which are joints.
    """
    knots = np.asarray(control, dtype=np.float64)
    r = np.broadcast_to(np.asarray(radii, dtype=np.float64), (len(knots),))
    # Centripetal parameters: a cubic spline over them does not loop where control points lie unevenly.
    chord = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1) ** 0.5)])
    length = float(np.linalg.norm(np.diff(knots, axis=0), axis=1).sum())
    n = max(3, int(np.ceil(length * 1.08 / STEP_MM)) + 1)
    t = np.linspace(0, chord[-1], n)
    points = CubicSpline(chord, knots, bc_type="natural")(t)
    if rng is not None and wind_mm > 0:
        phase = rng.uniform(0, 2 * np.pi, (3, 2))
        waves = length / rng.uniform(11, 22, (3, 2))
        s = np.linspace(0, 1, n)[:, None]
        swing = sum(np.sin(2 * np.pi * waves[:, k] * s + phase[:, k]) for k in range(2))
        points = points + wind_mm * 0.7 * np.sin(np.pi * s) ** 0.7 * swing
    return points, np.interp(t, chord, r)
