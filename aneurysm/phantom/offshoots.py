"""Vessels that bear no aneurysm here and can be mistaken for one: cortical arteries, scalp arteries, veins, sinuses."""

from __future__ import annotations

import numpy as np

from aneurysm.phantom.branches import Branch, Floats, Tree, centreline
from aneurysm.phantom.pose import Points

HULL_CENTER = np.array([0.0, 20.0, 26.0])
HULL_RADII = np.array([64.5, 84.0, 69.0])
"""The surface that the convolutions touch, above the base; cortical vessels run along it."""

_SIDES = (("left", 1.0), ("right", -1.0))


def add_offshoots(tree: Tree, rng: np.random.Generator) -> None:
    """Add cortical and scalp arteries and the veins of one head."""
    for side, sign in _SIDES:
        _cortical(tree, side, sign, rng)
        _scalp(tree, side, sign, rng)
    _sinuses(tree, rng)


def walk_on_hull(start: Floats, heading: Floats, length_mm: float, rng: np.random.Generator, wander: float) -> Points:
    """Return a winding course over the brain's surface, (n, 3), in steps of 4 mm, from ``start``."""
    point = np.asarray(start, dtype=np.float64)
    direction = np.asarray(heading, dtype=np.float64)
    points = [point]
    for _ in range(max(2, int(length_mm / 4))):
        offset = (point - HULL_CENTER) / HULL_RADII
        normal = offset / HULL_RADII
        normal /= np.linalg.norm(normal)
        direction = direction + rng.normal(0, wander, 3)
        direction -= normal * (direction @ normal)
        direction /= np.linalg.norm(direction) + 1e-9
        point = point + 4.0 * direction
        # Sink to the surface and stay within a sulcus of it, rather than at one depth.
        offset = (point - HULL_CENTER) / HULL_RADII
        level = np.linalg.norm(offset)
        point = HULL_CENTER + offset * HULL_RADII * (1 + (rng.uniform(0.95, 0.995) / level - 1) * 0.6)
        points.append(point)
    return np.array(points)


def _cortical(tree: Tree, side: str, sign: float, rng: np.random.Generator) -> None:
    fans = {
        "m2_upper": [(0.2, -0.8, 0.5), (0.3, -0.2, 1.0), (0.3, 0.5, 0.9)],
        "m2_lower": [(0.2, 0.9, 0.5), (0.2, 0.9, -0.2), (0.3, 0.3, -0.9)],
        "callosomarginal": [(0.5, 0.6, 0.4), (0.3, -0.3, 0.7)],
        "pca": [(0.6, 0.5, 0.2), (0.2, 0.6, 0.8)],
    }
    for name, headings in fans.items():
        parent = tree.branches[f"{side}_{name}"]
        end, along, radius = parent.at(1.0)
        for i, heading in enumerate(headings):
            course = walk_on_hull(end, along + 1.5 * np.array(heading) * (sign, 1, 1), rng.uniform(45, 80), rng, 0.35)
            first = min(radius, 0.62) if name != "pca" else 0.5
            points, radii = centreline(course, np.linspace(first, 0.3, len(course)), rng, 0.5)
            tree.put(Branch(f"{side}_{name}_cortical_{i}", points, radii))


def _scalp(tree: Tree, side: str, sign: float, rng: np.random.Generator) -> None:
    external = [(31, 14, -95), (40, 12, -78), (52, 8, -55), (60, 6, -35), (72, 2, -15), (76, -2, 5)]
    temporal = [(77, -8, 20), (76, -16, 36), (71, -24, 55)]
    course = np.array([*external, *temporal], dtype=float) * (sign, 1, 1)
    course[1:] += rng.normal(0, 1.0, course[1:].shape)
    points, radii = centreline(course, [1.9, 1.8, 1.5, 1.2, 1.0, 0.9, 0.85, 0.8, 0.6], rng, 1.0)
    tree.put(Branch(f"{side}_superficial_temporal", points, radii))
    face = np.array([(36, 10, -86), (44, -15, -80), (42, -45, -75), (34, -68, -58), (20, -82, -38)], dtype=float)
    face = face * (sign, 1, 1) + rng.normal(0, 1.0, face.shape)
    points, radii = centreline(face, [1.2, 1.1, 1.0, 0.8, 0.6], rng, 1.0)
    tree.put(Branch(f"{side}_facial", points, radii))


def _sinuses(tree: Tree, rng: np.random.Generator) -> None:
    def vein(name: str, control: Points | list[tuple[float, float, float]], radii: list[float] | Floats) -> Branch:
        knots = np.array(control, dtype=np.float64)
        knots[1:-1] += rng.normal(0, 0.7, knots[1:-1].shape)
        points, r = centreline(knots, radii)
        return tree.put(Branch(name, points, r, vein=True))

    theta = np.radians(np.linspace(150, -15, 14))
    sagittal = np.stack([rng.normal(0, 0.6, 14), 20 + 84.5 * np.cos(theta), 27 + 69.5 * np.sin(theta)], axis=1)
    torcular = np.array([rng.normal(0, 2), 101.0, 4.0])
    vein("superior_sagittal", np.vstack([sagittal, torcular]), np.linspace(1.6, 4.2, 15))
    vein("straight", [(0, 46, 28), (0, 62, 24), (0, 82, 14), tuple(torcular)], [2.0, 2.2, 2.4, 2.8])
    vein("galen", [(0, 46, 28), (0, 42, 31), (0, 36, 30)], [2.2, 2.0, 1.7])
    smaller = rng.choice([-1.0, 1.0])
    for side, sign in _SIDES:
        width = 1.0 if sign != smaller else float(rng.uniform(0.35, 0.9))
        table = [(25, 97, 0), (46, 80, -4), (56, 58, -9), (56, 44, -18), (50, 36, -33), (41, 28, -43)]
        neck = [(33, 20, -54), (33, 20, -80), (36, 22, -130), (38, 24, -190)]
        course = [tuple(torcular), *[(x * sign, y, z) for x, y, z in (*table, *neck)]]
        r = np.array([3.2, 3.3, 3.4, 3.5, 3.8, 4.0, 4.2, 4.6, 4.6, 5.0, 5.2]) * width
        vein(f"{side}_transverse", course, r)
        inner = [(2.0, -5, 25), (2.2, 10, 30), (2.0, 26, 31), (0, 36, 30)]
        vein(f"{side}_internal_cerebral", [(x * sign, y, z) for x, y, z in inner], [0.7, 0.8, 0.9, 1.2])
        basal = [(18, -4, 8), (20, 12, 4), (21, 26, 10), (12, 38, 20), (0, 44, 28)]
        vein(f"{side}_basal", [(x * sign, y, z) for x, y, z in basal], [0.6, 0.8, 1.0, 1.1, 1.3])
        cavernous = [(10, -12, -3), (12.5, -4, -9), (12.5, 4, -13), (17, 12, -19)]
        vein(f"{side}_cavernous", [(x * sign, y, z) for x, y, z in cavernous], [2.5, 4.2, 4.0, 2.0])
        for i in range(int(rng.integers(4, 7))):
            y = rng.uniform(-45, 80)
            top = np.array([sign * 3.0, y, 27 + 66 * np.sqrt(max(0.0, 1 - ((y - 20) / 84) ** 2))])
            down = walk_on_hull(top, np.array([sign, rng.normal(0, 0.3), -0.4]), rng.uniform(30, 60), rng, 0.2)
            points, radii = centreline(down, np.linspace(1.3, 0.6, len(down)), rng, 0.4)
            tree.put(Branch(f"{side}_bridging_{i}", points, radii, vein=True))
