"""
The circle of Willis and what hangs on it, as centrelines with radii, in template millimetres.

The landmarks are those of an ordinary adult; each head moves them a little, on each side by itself, and bends what lies
between them. Left is +x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from aneurysm.phantom.branches import OTHER, STEP_MM, VALUES, Branch, Floats, Tree, centreline, mask_value

Table = Sequence[tuple[float, float, float]]


class _Builder:
    """Grows one tree; keeps the generator and the tortuosity at hand."""

    def __init__(self, rng: np.random.Generator, need: frozenset[str]) -> None:
        self.rng = rng
        self.need = need
        self.tree = Tree()
        self.wind = float(rng.uniform(0.25, 0.8))
        self.caliber = float(np.clip(rng.normal(1.0, 0.08), 0.8, 1.2))

    def line(
        self,
        name: str,
        control: Any,
        radii: npt.ArrayLike,
        value: int = 0,
        *,
        wind: float = 1.0,
        jitter_mm: float = 0.5,
    ) -> Branch:
        """Put in a branch through control points whose inner ones move a little."""
        knots = np.array(control, dtype=np.float64)
        knots[1:-1] += self.rng.normal(0, jitter_mm, knots[1:-1].shape)
        points, r = centreline(knots, np.asarray(radii, dtype=np.float64) * self.caliber, self.rng, self.wind * wind)
        return self.tree.put(Branch(name, points, r, value))

    def mark(self, point: tuple[float, float, float], sign: float = 1.0, jitter_mm: float = 0.8) -> Floats:
        """Draw a landmark of this head."""
        return np.array(point) * (sign, 1, 1) + self.rng.normal(0, jitter_mm, 3)

    def has(self, site: str) -> bool:
        return site in self.need


def _mirror(table: Table, sign: float) -> list[Any]:
    return [np.array(p) * (sign, 1.0, 1.0) for p in table]


def grow_tree(rng: np.random.Generator, need: frozenset[str] = frozenset()) -> Tree:
    """
    Grow the arteries of one head.

    Parameters
    ----------
    rng
        Where all variation comes from.
    need
        Sites (labels) that must exist because an aneurysm will sit there; otherwise PComs may be absent.
    """
    b = _Builder(rng, need)
    tip = b.mark((0, 16.0, 6.5))
    _posterior_trunk(b, tip)
    acom = {side: b.mark((sign * 2.3, -17, 16), jitter_mm=0.5) for side, sign in _SIDES}
    for side, sign in _SIDES:
        _carotid_side(b, side, sign, tip, acom[side])
    bow = (acom["left"] + acom["right"]) / 2 + (0, -rng.uniform(0.2, 1.2), rng.uniform(-0.4, 0.4))
    b.line(
        "acom",
        [acom["left"], bow, acom["right"]],
        rng.uniform(0.6, 1.0),
        mask_value("Anterior Communicating Artery"),
        wind=0,
        jitter_mm=0,
    )
    return b.tree


_SIDES = (("left", 1.0), ("right", -1.0))


def _posterior_trunk(b: _Builder, tip: Floats) -> None:
    rng = b.rng
    joint = b.mark((0, 23, -33), jitter_mm=1.2)
    sway = rng.normal(0, 2.0)
    course = [joint, (sway, 20, -22), (sway * 0.6, 17.5, -10), (tip[0] * 0.8, 16, 0), tip]
    whole = b.line("basilar_whole", course, [1.75, 1.75, 1.7, 1.65, 1.7], OTHER, wind=0.5)
    cut = len(whole.points) - 1 - int(4.5 / STEP_MM)
    _split(b.tree, whole, cut, ("basilar", OTHER), ("basilar_tip", mask_value("Basilar Tip")))
    dominance = np.clip(rng.normal(0, 0.28), -0.55, 0.55)
    for side, s in _SIDES:
        radius = 1.5 * (1 + s * dominance)
        table = _mirror([(16, 32, -190), (16, 31, -130), (17, 31, -88), (22, 34, -73), (20, 46, -64), (12, 43, -57)], s)
        course_va = [*table, *_mirror([(8, 33, -48), (4, 27, -40)], s), joint]
        va = b.line(f"{side}_va", course_va, radius, OTHER, wind=0.6, jitter_mm=0.8)
        start, _, _ = va.at(0.9)
        b.line(
            f"{side}_pica",
            [start, *_mirror([(11, 40, -50), (8, 52, -42), (4, 57, -34), (8, 66, -38), (13, 75, -36)], s)],
            [0.75, 0.7, 0.65, 0.6, 0.5, 0.4],
            OTHER,
            wind=1.2,
            jitter_mm=1.2,
        )
        aica, _, _ = b.tree.branches["basilar"].at(0.5)
        b.line(
            f"{side}_aica",
            [aica, *_mirror([(12, 23, -19), (25, 30, -20), (31, 39, -19)], s)],
            [0.55, 0.5, 0.45, 0.35],
            OTHER,
            jitter_mm=1.0,
        )
        sca, _, _ = b.tree.branches["basilar_tip"].at(0.3)
        b.line(
            f"{side}_sca",
            [sca, *_mirror([(8, 18, 2), (18, 27, 2), (24, 39, 4), (20, 55, 8)], s)],
            [0.75, 0.7, 0.65, 0.55, 0.4],
            OTHER,
            jitter_mm=1.0,
        )


def _carotid_side(b: _Builder, side: str, s: float, tip: Floats, acom: Floats) -> None:
    rng = b.rng
    tree = b.tree
    infra = mask_value("Infraclinoid Internal Carotid Artery", side)
    supra = mask_value("Supraclinoid Internal Carotid Artery", side)
    mca = mask_value("Middle Cerebral Artery", side)
    aca = mask_value("Anterior Cerebral Artery", side)
    # Internal carotid: neck, petrous canal, cavernous siphon, clinoid bend, and up to its fork.
    term = b.mark((14, -2, 13.5), s)
    lift = rng.normal(0, 1.0)
    low = _mirror([(27, 24, -190), (29, 22, -130), (27, 19, -85), (26, 20, -55), (26, 19, -38)], s)
    siphon = _mirror(
        [(24, 15, -28), (17, 7.5, -24), (12, 6.5, -19), (11.5, 6, -12), (12, 0, -8), (12, -8, -7 + lift)], s
    )
    bend = b.mark((12, -13, -2.5), s, 0.6)
    ring = b.mark((12, -11, 2.2), s, 0.5)
    top = _mirror([(12.8, -6, 5.5), (13.4, -3, 9.5)], s)
    radii = [2.9, 2.7, 2.6, 2.5, 2.45, 2.4, 2.35, 2.3, 2.3, 2.25, 2.2, 2.15, 2.0, 1.9, 1.8, 1.7]
    whole = b.line(f"{side}_ica", [*low, *siphon, bend, ring, *top, term], radii, infra, wind=0.25)
    cut = int(np.argmin(np.linalg.norm(whole.points - ring, axis=1)))
    _split(tree, whole, cut, (f"{side}_ica_infra", infra), (f"{side}_ica_supra", supra))
    stem = tree.branches[f"{side}_ica_supra"]
    eye, _, _ = stem.at(0.05)
    b.line(
        f"{side}_ophthalmic",
        [eye, *_mirror([(14, -19, 0), (21, -35, -5), (27, -52, -8)], s)],
        [0.7, 0.65, 0.6, 0.45],
    )
    choroid, _, _ = stem.at(0.72)
    b.line(f"{side}_achoroidal", [choroid, *_mirror([(16, 5, 9), (21, 16, 11)], s)], [0.5, 0.45, 0.35])

    _posterior_cerebral(b, side, s, tip)

    # Anterior cerebral: A1 to the communicating artery, A2 over the corpus callosum.
    thin = 0.45 if rng.random() < 0.08 and not b.has(f"{side.capitalize()} Anterior Cerebral Artery") else 1.0
    if thin < 1:
        tree.features.append(f"{side}_a1_hypoplastic")
    b.line(
        f"{side}_a1",
        [term, *_mirror([(9.5, -8, 14), (5, -13.5, 14.5)], s), acom],
        np.array([1.2, 1.15, 1.1, 1.1]) * thin,
        aca,
    )
    x = s * 2.2
    over = [(x, -20, 21), (x, -27, 28), (x, -34, 36), (x, -36, 45), (x, -30, 55), (x, -14, 63), (x, 8, 67)]
    a2 = b.line(
        f"{side}_a2",
        [acom, *over, (x, 28, 66)],
        [1.1, 1.1, 1.05, 1.0, 0.95, 0.9, 0.8, 0.7, 0.5],
        aca,
        jitter_mm=0.6,
    )
    fork, _, _ = a2.at(0.33)
    b.line(
        f"{side}_callosomarginal",
        [fork, (s * 3, -44, 52), (s * 3.2, -42, 66), (s * 3.5, -24, 79), (s * 4, -4, 86)],
        [0.8, 0.75, 0.7, 0.6, 0.4],
        aca,
        jitter_mm=1.0,
    )
    _middle_cerebral(b, side, s, term, mca)


def _posterior_cerebral(b: _Builder, side: str, s: float, tip: Floats) -> None:
    rng = b.rng
    tree = b.tree
    label = f"{side.capitalize()} Posterior Communicating Artery"
    join = b.mark((10.5, 14, 8.2), s)
    fetal = rng.random() < 0.12
    absent = rng.random() < 0.3 and not fetal and not b.has(label)
    p1_radius = 0.55 if fetal else 1.15
    p1 = b.line(f"{side}_p1_whole", [tip, *_mirror([(5, 14.5, 8.8)], s), join], p1_radius, OTHER, wind=0.5)
    cut = min(int(2.5 / STEP_MM), len(p1.points) - 2)
    _split(tree, p1, cut, (f"{side}_p1_root", mask_value("Basilar Tip")), (f"{side}_p1", OTHER))
    b.line(
        f"{side}_pca",
        [
            join,
            *_mirror([(17, 21, 8), (22.5, 30, 9.5), (24, 41, 11), (18, 53, 14), (12, 67, 17), (10, 82, 17)], s),
        ],
        [1.15, 1.1, 1.05, 1.0, 0.9, 0.75, 0.5],
        OTHER,
        jitter_mm=1.0,
    )
    origin, _, _ = tree.branches[f"{side}_ica_supra"].at(0.5)
    if absent:
        tree.features.append(f"{side}_pcom_absent")
        return
    radius = 1.1 if fetal else float(rng.uniform(0.5, 0.8))
    if fetal:
        tree.features.append(f"{side}_pca_fetal")
    radii = [radius, radius, radius, radius]
    if rng.random() < 0.25 and not b.has(label):
        # An infundibulum: a funnel at the origin, up to 3 mm wide, with the artery leaving from its apex.
        radii = [float(rng.uniform(1.2, 1.5)), 0.75, radius, radius]
        tree.features.append(f"{side}_pcom_infundibulum")
    course = [origin, *_mirror([(12.4, -0.5, 7.6), (11.4, 6, 7.4)], s), join]
    b.line(f"{side}_pcom", course, radii, VALUES[label], wind=0.5, jitter_mm=0.4)


def _middle_cerebral(b: _Builder, side: str, s: float, term: Floats, mca: int) -> None:
    rng = b.rng
    reach = rng.normal(0, 2.0)
    fork = b.mark((33 + reach, -4, 14), s, 1.2)
    mid = (20.5 + reach * 0.4, -4.5, 12.5 + rng.normal(0, 1.2))
    m1 = b.line(
        f"{side}_m1", [term, *_mirror([mid, (27 + reach * 0.7, -5.5, 12.7)], s), fork], [1.55, 1.5, 1.4, 1.35], mca
    )
    early, _, _ = m1.at(0.55)
    b.line(
        f"{side}_anterior_temporal",
        [early, *_mirror([(31, -12, 5), (42, -15, -3), (52, -8, -5)], s)],
        [0.7, 0.65, 0.55, 0.4],
        mca,
        jitter_mm=1.0,
    )
    upper = [(37.5, -3, 19), (39.5, 2, 27), (40.5, 8, 33), (46, 13, 36), (56, 15, 38)]
    lower = [(38, 1, 13.5), (41, 9, 15), (42.5, 19, 20), (45, 29, 26), (56, 37, 29)]
    for name, course, size in (("m2_upper", upper, 1.12), ("m2_lower", lower, 1.05)):
        r = np.array([1.0, 0.97, 0.92, 0.88, 0.8, 0.65]) * size
        b.line(f"{side}_{name}", [fork, *_mirror(course, s)], r, mca, wind=1.5, jitter_mm=1.0)
    if rng.random() < 0.4:
        _add_loop(b.tree, f"{side}_m2_{rng.choice(['upper', 'lower'])}", rng)


def _add_loop(tree: Tree, name: str, rng: np.random.Generator) -> None:
    """Bend a branch into a tight loop, which on a thick slice looks like a small round sac."""
    branch = tree.branches[name]
    n = len(branch.points)
    middle = int(n * rng.uniform(0.3, 0.6))
    _, along, radius = branch.at(middle / (n - 1))
    side = np.cross(along, rng.normal(0, 1, 3))
    side /= np.linalg.norm(side)
    size = radius * rng.uniform(1.6, 2.2)
    reach = int(np.ceil(2.2 * size / STEP_MM))
    points = branch.points.copy()
    for i in range(max(1, middle - reach), min(n - 1, middle + reach + 1)):
        t = (i - middle) / reach
        # Out and back sideways, with the flow held back along its course: an omega.
        points[i] += side * size * 2.0 * np.cos(np.pi * t / 2) ** 2 - along * size * 1.1 * np.sin(np.pi * t)
    tree.put(replace(branch, points=points))
    tree.features.append(f"{name}_loop")


def _split(tree: Tree, branch: Branch, cut: int, first: tuple[str, int], second: tuple[str, int]) -> None:
    """Replace a branch by its two parts, which share the point ``cut``."""
    tree.branches.pop(branch.name)
    tree.put(Branch(first[0], branch.points[: cut + 1], branch.radii[: cut + 1], first[1]))
    tree.put(Branch(second[0], branch.points[cut:], branch.radii[cut:], second[1]))
