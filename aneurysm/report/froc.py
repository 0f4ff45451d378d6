"""Candidates against lesions: sensitivity by false positives per scan (FROC), with intervals by patient.

A candidate finds a lesion of its series within the match radius that no more probable candidate needs: the nearest, or
another, if a more probable one then gives way to a lesion that it finds as well. So, of the candidates down to any
probability, as many find a lesion as can (a maximum matching). One that has only lesions near it that are found
already counts neither way; all others are false positives. Each lesion is found once at most.

A model may name one place for several sites. Where only the place is asked for, that is one false positive: after the
matching, those within the match radius of a more probable one of their scan that counts are left out. In this order,
and with a maximum matching, the curve of the places can't lie below that of the places with the right site.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aneurysm.labels import SITES
from aneurysm.report.bootstrap import FEWEST_SAMPLES, Weights
from aneurysm.report.intervals import FEWEST, Estimate, sampled_estimate, share_estimate, share_influence

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan at which sensitivities are given."""
BY_GROUP_RATE = 1.0
"""False positives per scan at which sites and sizes are compared."""
SIZES_MM = (3.0, 5.0, 7.0)
"""Edges of the diameters' classes."""

FALSE, AGAIN = -1, -2
"""A candidate that finds nothing; one that counts neither way, because its lesion or place has been named before."""


@dataclass(frozen=True)
class Localisation:
    """
    Candidates and lesions of the scans that count.

    Attributes
    ----------
    scans
        (k,) int64: indices of the series, into the predictions.
    candidate_scan, candidate_site, candidate_probability, candidate_lps_mm
        Of c candidates: index of the series, index of the site, (c,), (c, 3).
    lesion_scan, lesion_site, lesion_lps_mm, lesion_diameter_mm
        Of m lesions, all in ``scans``; infinite places beyond the cached volume, NaN where a diameter is not known.
    """

    scans: NDArray[np.int64]
    candidate_scan: NDArray[np.int64]
    candidate_site: NDArray[np.int64]
    candidate_probability: NDArray[np.float64]
    candidate_lps_mm: NDArray[np.float64]
    lesion_scan: NDArray[np.int64]
    lesion_site: NDArray[np.int64]
    lesion_lps_mm: NDArray[np.float64]
    lesion_diameter_mm: NDArray[np.float64]


@dataclass(frozen=True)
class GroupSensitivity:
    """Of a group of lesions, at one false positive per scan."""

    name: str
    n_lesions: int
    sensitivity: Estimate


@dataclass(frozen=True)
class Froc:
    """
    One curve.

    Attributes
    ----------
    n_outside
        How many of the lesions lie beyond the cached volume, so that they can't be found.
    false_positives, sensitivity
        (points,): at every distinct probability, the highest first; false positives are per scan.
    band
        (2, grid) of the sensitivity at ``grid`` false positives per scan: percentiles 2.5 and 97.5 of the samples.
    at
        Sensitivity by `RATES`: of the lowest threshold that makes no more false positives than that.
    mean
        Of ``at``.
    threshold
        The probability at `BY_GROUP_RATE` false positives per scan; infinite if the first candidates make more.
    by_site, by_size
        Sensitivities there; of sizes empty where no diameter is known.
    """

    n_scans: int
    n_lesions: int
    n_outside: int
    false_positives: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    grid: NDArray[np.float64]
    band: NDArray[np.float64]
    at: dict[float, Estimate]
    mean: Estimate
    threshold: float
    by_site: tuple[GroupSensitivity, ...]
    by_size: tuple[GroupSensitivity, ...]


def match(where: Localisation, radius_mm: float, *, same_site: bool) -> NDArray[np.int64]:
    """
    Return (c,): the lesion that is found once each candidate is there, `FALSE` or `AGAIN`.

    With ``same_site``, a candidate can only find lesions of its own site; without, one false place is one candidate.
    """
    found = np.full(len(where.candidate_scan), FALSE, np.int64)
    finder: dict[int, int] = {}
    near = _lesions_near(where, radius_mm, same_site=same_site)
    by_probability = np.argsort(-where.candidate_probability, kind="stable").tolist()
    for c in by_probability:
        found[c] = _lesion_added(c, near, finder)
    if not same_site:
        _name_places_once(where, by_probability, found, radius_mm)
    return found


def _lesions_near(where: Localisation, radius_mm: float, *, same_site: bool) -> list[list[int]]:
    """Return for each candidate the lesions that it may find, the nearest first."""
    lesions_of: dict[int, list[int]] = {}
    for lesion, scan in enumerate(where.lesion_scan.tolist()):
        lesions_of.setdefault(scan, []).append(lesion)
    near = []
    for c, scan in enumerate(where.candidate_scan.tolist()):
        lesions = np.array(lesions_of.get(scan, []), np.int64)
        if same_site:
            lesions = lesions[where.lesion_site[lesions] == where.candidate_site[c]]
        distance = np.linalg.norm(where.lesion_lps_mm[lesions] - where.candidate_lps_mm[c], axis=1)
        order = np.argsort(distance, kind="stable")
        near.append(lesions[order][distance[order] <= radius_mm].tolist())
    return near


def _lesion_added(candidate: int, near: list[list[int]], finder: dict[int, int]) -> int:
    """
    Let a candidate find a lesion, if need be by letting others find other ones; return the lesion that is new.

    ``finder`` holds the candidate of each lesion that is found. The search is breadth first for the shortest chain of
    candidates that give way (an augmenting path).
    """
    if not near[candidate]:
        return FALSE
    came_from: dict[int, int] = {}  # the candidate through which a lesion was reached
    holds: dict[int, int] = {}
    queue = [candidate]
    for c in queue:
        for lesion in near[c]:
            if lesion in came_from:
                continue
            came_from[lesion] = c
            if lesion in finder:
                holds[finder[lesion]] = lesion
                queue.append(finder[lesion])
                continue
            last = lesion
            while (taker := came_from[last]) != candidate:
                finder[last], last = taker, holds[taker]
            finder[last] = candidate
            return lesion
    return AGAIN


def _name_places_once(
    where: Localisation, by_probability: list[int], found: NDArray[np.int64], radius_mm: float
) -> None:
    """Let the candidates that find nothing, near a more probable one that counts, not count either; in place."""
    counted: dict[int, list[int]] = {}
    for c in by_probability:
        others = counted.setdefault(int(where.candidate_scan[c]), [])
        apart = np.linalg.norm(where.candidate_lps_mm[others] - where.candidate_lps_mm[c], axis=1)
        if found[c] < 0 and (apart <= radius_mm).any():
            found[c] = AGAIN
        else:
            others.append(c)


def froc(
    where: Localisation,
    weights: Weights,
    radius_mm: float,
    *,
    same_site: bool = False,
    patients: NDArray[np.int64] | None = None,
) -> Froc:
    """
    Return the curve of the candidates.

    Parameters
    ----------
    weights
        (samples, n) of the predictions' series.
    radius_mm
        How far from a lesion's point a candidate may lie to have found it.
    patients
        (n,) numbers from 0; None: each series is a patient of its own.
    """
    of_lesion = where.lesion_scan if patients is None else patients[where.lesion_scan]
    behind = len(np.unique(of_lesion))
    found = match(where, radius_mm, same_site=same_site)
    counts = found != AGAIN
    order = np.flatnonzero(counts)[np.argsort(-where.candidate_probability[counts], kind="stable")]
    scan, hit, probability = where.candidate_scan[order], found[order] >= 0, where.candidate_probability[order]
    # Only thresholds between distinct probabilities are points of the curve.
    ends = np.flatnonzero(np.r_[probability[1:] != probability[:-1], True]) if len(order) else np.empty(0, np.int64)
    n_scans, n_lesions = len(where.scans), len(where.lesion_scan)
    hits, alarms = np.cumsum(hit)[ends], np.cumsum(~hit)[ends]
    grid = np.geomspace(0.125, 16, 57)
    at_rates = _at(hits, alarms, np.array(RATES) * n_scans) / n_lesions
    sampled = np.full((len(weights), len(RATES) + len(grid)), np.nan)
    limits = np.r_[np.array(RATES), grid]
    for i, drawn in enumerate(weights):
        lesions = float(drawn[where.lesion_scan].sum())
        if lesions:
            w = drawn[scan].astype(np.float64)
            sample_hits, sample_alarms = np.cumsum(w * hit)[ends], np.cumsum(w * ~hit)[ends]
            sampled[i] = _at(sample_hits, sample_alarms, limits * float(drawn[where.scans].sum())) / lesions
    reach = int(np.searchsorted(alarms, BY_GROUP_RATE * n_scans, side="right"))
    threshold = float(probability[ends[reach - 1]]) if reach else float("inf")
    detected = np.zeros(n_lesions, bool)
    detected[found[order][hit & (probability >= threshold)]] = True
    rates = sampled[:, : len(RATES)]
    usable = sampled[np.isfinite(sampled).all(axis=1), len(RATES) :]
    enough = len(usable) >= FEWEST_SAMPLES and behind >= FEWEST
    band = np.percentile(usable, [2.5, 97.5], axis=0) if enough else np.empty((2, 0))
    return Froc(
        n_scans,
        n_lesions,
        int(np.isinf(where.lesion_lps_mm).any(axis=1).sum()),
        alarms / n_scans,
        hits / n_lesions,
        grid,
        band,
        {r: sampled_estimate(float(at_rates[i]), rates[:, i], n_lesions, behind) for i, r in enumerate(RATES)},
        sampled_estimate(float(at_rates.mean()), rates.mean(axis=1), n_lesions, behind),
        threshold,
        _by_site(where, detected, of_lesion),
        _by_size(where, detected, of_lesion),
    )


def _at(hits: NDArray[Any], alarms: NDArray[Any], limits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the hits of the lowest threshold that makes no more false alarms than each limit."""
    reach = np.searchsorted(alarms, limits + 1e-9, side="right")
    return np.asarray(np.r_[0.0, hits][reach])


def _by_site(
    where: Localisation, detected: NDArray[np.bool_], patients: NDArray[np.int64]
) -> tuple[GroupSensitivity, ...]:
    groups = ((site, where.lesion_site == i) for i, site in enumerate(SITES))
    return tuple(_group(name, chosen, detected, patients) for name, chosen in groups if chosen.any())


def _by_size(
    where: Localisation, detected: NDArray[np.bool_], patients: NDArray[np.int64]
) -> tuple[GroupSensitivity, ...]:
    diameter = where.lesion_diameter_mm
    known = np.isfinite(diameter)
    if not known.any():
        return ()
    classes = np.digitize(diameter, SIZES_MM)
    names = [
        f"under {SIZES_MM[0]:g} mm",
        *(f"{a:g} to {b:g} mm" for a, b in pairwise(SIZES_MM)),
        f"{SIZES_MM[-1]:g} mm and more",
    ]
    groups = [(name, known & (classes == i)) for i, name in enumerate(names)] + [("size not known", ~known)]
    return tuple(_group(name, chosen, detected, patients) for name, chosen in groups if chosen.any())


def _group(
    name: str, chosen: NDArray[np.bool_], detected: NDArray[np.bool_], patients: NDArray[np.int64]
) -> GroupSensitivity:
    hits, n = detected[chosen].astype(float), int(chosen.sum())
    share = share_influence(hits, np.ones(n), patients[chosen], int(patients.max()) + 1)
    return GroupSensitivity(name, n, share_estimate(share, n))
