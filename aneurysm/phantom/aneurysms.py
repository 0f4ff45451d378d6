"""Saccular aneurysms: which vessel wall they grow on, and their shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aneurysm.errors import UsageError
from aneurysm.labels import SITES
from aneurysm.phantom.branches import Branch, Floats, Tree, mask_value

SMALLEST_MM, LARGEST_MM = 2.0, 12.0
"""Diameters."""
_MEDIAN_MM = 5.5
_SPREAD = 0.42


@dataclass(frozen=True)
class Sac:
    """
    One sac, in template millimetres.

    ``center`` and ``radii`` (3,) are those of its main ellipsoid along the columns of ``axes`` (3, 3); ``blebs`` are
    (centre, radius) of daughter sacs; the neck is a cone from ``foot`` on the parent's centreline.
    """

    site: str
    parent: str
    center: Floats
    radii: Floats
    axes: Floats
    foot: Floats
    neck_radii: tuple[float, float]
    blebs: tuple[tuple[Floats, float], ...]
    value: int

    @property
    def radius_mm(self) -> float:
        """The radius of the ball of the same volume."""
        return float(np.prod(self.radii) ** (1 / 3))


@dataclass(frozen=True)
class _Seat:
    """A place where sacs form: a branch, a range of fractions of its length, and a direction with its looseness."""

    branch: str
    start: float
    stop: float
    direction: tuple[float, float, float] | None
    looseness: float = 0.35
    weight: float = 1.0


def _seats(site: str) -> list[_Seat]:
    """Return the seats of a site; directions are for the left side, and mirrored for the right."""
    side = site.split()[0].lower()
    if "Infraclinoid" in site:
        return [_Seat(f"{side}_ica_infra", 0.885, 0.985, None, 1.0)]
    if "Supraclinoid" in site:
        return [
            _Seat(f"{side}_ica_supra", 0.08, 0.3, (-0.7, -0.2, 0.7), 0.4, 1.5),
            _Seat(f"{side}_ica_supra", 0.68, 0.85, (0.6, 0.7, -0.1), 0.4, 1.0),
            _Seat(f"{side}_ica_supra", 0.97, 1.0, (0.1, 0.0, 1.0), 0.25, 1.0),
        ]
    if "Middle" in site:
        return [
            _Seat(f"{side}_m1", 0.97, 1.0, (1.0, -0.3, -0.1), 0.4, 5.0),
            _Seat(f"{side}_m1", 0.45, 0.6, (0.2, -0.6, -0.6), 0.4, 1.0),
            _Seat(f"{side}_m2_upper", 0.1, 0.3, None, 1.0, 0.5),
            _Seat(f"{side}_m2_lower", 0.1, 0.3, None, 1.0, 0.5),
        ]
    if site == "Anterior Communicating Artery":
        return [_Seat("acom", 0.3, 0.7, (0.0, -0.9, 0.2), 0.6)]
    if "Anterior Cerebral" in site:
        return [
            _Seat(f"{side}_a1", 0.3, 0.7, (0.1, -0.5, 0.7), 0.5, 1.0),
            _Seat(f"{side}_a2", 0.28, 0.4, (0.0, -1.0, 0.2), 0.3, 1.5),
        ]
    if "Posterior Communicating" in site:
        return [_Seat(f"{side}_pcom", 0.1, 0.3, (0.7, 0.6, -0.4), 0.3)]
    if site == "Basilar Tip":
        return [_Seat("basilar_tip", 0.96, 1.0, (0.0, 0.0, 1.0), 0.25)]
    seats = [_Seat("basilar", 0.2, 0.9, None, 1.0, 0.6)]
    for which in ("left", "right"):
        seats += [
            _Seat(f"{which}_va", 0.89, 0.92, (0.2, 0.3, 0.9), 0.4, 1.0),
            _Seat(f"{which}_va", 0.93, 0.98, None, 1.0, 0.4),
            _Seat(f"{which}_p1", 0.2, 0.7, (0.0, -0.5, 0.7), 0.4, 0.4),
            _Seat(f"{which}_pca", 0.05, 0.3, None, 1.0, 0.4),
            _Seat(f"{which}_sca", 0.0, 0.06, (0.9, -0.3, 0.1), 0.3, 0.5),
        ]
    return seats


def draw_diameter_mm(rng: np.random.Generator, difficulty: float) -> float:
    """Draw a diameter with the spread that is seen in practice; a higher difficulty makes it smaller."""
    size = _MEDIAN_MM * np.exp(rng.normal(0, _SPREAD)) / np.sqrt(difficulty)
    return float(np.clip(size, SMALLEST_MM, LARGEST_MM))


def grow_lesions(tree: Tree, sites: tuple[str, ...], rng: np.random.Generator, difficulty: float) -> list[Sac]:
    """
    One sac for each site, none of them touching another.

    Raises
    ------
    UsageError
        If a site is none of the 13, or there is no room for this many sacs.
    """
    lesions: list[Sac] = []
    for site in sites:
        if site not in SITES:
            raise UsageError(f"unknown aneurysm site {site!r}: one of {', '.join(SITES)}")
        for _ in range(300):
            sac = _grow(tree, site, draw_diameter_mm(rng, difficulty), rng)
            if (
                _on_its_side(sac)
                and _stands_out(tree, sac)
                and all(
                    np.linalg.norm(sac.center - other.center) > sac.radii.max() + other.radii.max() + 1.5
                    for other in lesions
                )
            ):
                lesions.append(sac)
                break
        else:
            raise UsageError(f"no room for {len(sites)} aneurysms at {', '.join(sites)}: ask for fewer")
    return lesions


def _stands_out(tree: Tree, sac: Sac) -> bool:
    """Return True if the middle of the sac lies outside of every artery: in a bend its parent might swallow it."""
    for branch in tree.branches.values():
        if not branch.vein:
            clearance = np.linalg.norm(branch.points - sac.center, axis=1) - branch.radii
            if clearance.min() < 0.4 * sac.radii.min():
                return False
    return True


def _on_its_side(sac: Sac) -> bool:
    """Return True if the sac of a sided site lies clear of the mid-plane: the A2s of both sides nearly touch there."""
    sign = {"Left": 1.0, "Right": -1.0}.get(sac.site.split()[0])
    return sign is None or sign * float(sac.center[0]) > 1.0


def _grow(tree: Tree, site: str, diameter_mm: float, rng: np.random.Generator) -> Sac:
    seats = _seats(site)
    weights = np.array([s.weight for s in seats])
    seat = seats[int(rng.choice(len(seats), p=weights / weights.sum()))]
    branch: Branch = tree.branches[seat.branch]
    foot, along, parent_radius = branch.at(float(rng.uniform(seat.start, seat.stop)))
    outward = _outward(seat, along, rng)
    radius = diameter_mm / 2
    elongation = float(rng.uniform(0.95, 1.3))
    across = radius / np.sqrt(elongation)
    radii = np.array([radius * elongation, across * rng.uniform(0.9, 1.1), across])
    radii = np.clip(radii, SMALLEST_MM / 2, LARGEST_MM / 2)
    # The wall bulges out of the lumen: the sac starts a little inside of the parent's wall.
    center = foot + outward * (parent_radius + 0.78 * radii[0])
    second = np.cross(outward, rng.normal(0, 1, 3))
    second /= np.linalg.norm(second)
    axes = np.stack([outward, second, np.cross(outward, second)], axis=1)
    blebs = []
    if rng.random() < 0.45:
        for _ in range(int(rng.integers(1, 4))):
            aim = outward * rng.uniform(0.2, 1.0) + rng.normal(0, 0.6, 3)
            aim /= np.linalg.norm(aim)
            reach = 1 / np.linalg.norm((axes.T @ aim) / radii)
            blebs.append((center + aim * reach * 0.9, float(radius * rng.uniform(0.2, 0.42))))
    neck = float(np.clip(radius * rng.uniform(0.45, 0.85), 0.6, 2.5))
    value = mask_value(site)
    return Sac(site, seat.branch, center, radii, axes, foot, (min(neck, parent_radius), neck), tuple(blebs), value)


def _outward(seat: _Seat, along: Floats, rng: np.random.Generator) -> Floats:
    """Return the unit direction in which the sac points."""
    if seat.direction is None:
        # Any side of the vessel will do, but square to the flow.
        outward = np.cross(along, rng.normal(0, 1, 3))
        return np.asarray(outward / np.linalg.norm(outward), dtype=np.float64)
    sign = -1.0 if seat.branch.startswith("right") else 1.0
    outward = np.array(seat.direction) * (sign, 1, 1)
    outward = outward / np.linalg.norm(outward) + rng.normal(0, seat.looseness, 3)
    return np.asarray(outward / np.linalg.norm(outward), dtype=np.float64)
