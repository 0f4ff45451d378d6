"""Labels and points of the tables -> prevalence with intervals, co-occurrence of sites, lesions per series."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.labels import LABELS, SITES
from aneurysm.report.intervals import Estimate, share_estimate, share_influence

if TYPE_CHECKING:  # pydicom comes with them
    from aneurysm.rawdata.tables import Localizer

MOST_POINTS: Final = 5
"""Series with as many lesions or more are counted together."""


@dataclass(frozen=True)
class LabelledSeries:
    """
    The n series of which labels are known.

    Attributes
    ----------
    modalities
        (n,) names.
    patients
        (n,) int64: numbers of the patients, from 0.
    labels
        (n, 14) uint8: 0 or 1, in the order of `LABELS`.
    """

    modalities: NDArray[np.str_]
    patients: NDArray[np.int64]
    labels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.modalities)


@dataclass(frozen=True)
class Prevalence:
    """How many of ``n`` series have a label, and what share that is."""

    positive: int
    n: int
    share: Estimate


def prevalence(series: LabelledSeries, modality: str | None) -> list[Prevalence]:
    """Return the prevalence of each of `LABELS` among the series of a modality, or of all if it is None."""
    chosen = np.ones(len(series), bool) if modality is None else series.modalities == modality
    names, patients = np.unique(series.patients[chosen], return_inverse=True)
    labels = series.labels[chosen]
    whole, n = np.ones(len(labels)), len(labels)
    found = []
    for positive in labels.T:
        influence = share_influence(positive.astype(np.float64), whole, patients, len(names))
        found.append(Prevalence(int(positive.sum()), n, share_estimate(influence, n)))
    return found


@dataclass(frozen=True)
class CoOccurrence:
    """
    How often two sites are positive in one series, of n.

    Attributes
    ----------
    counts
        (13, 13) int64; on the diagonal the series that have the site.
    phi
        (13, 13) float64; NaN where all series, or none, have one of the two.
    """

    n: int
    counts: NDArray[np.int64]
    phi: NDArray[np.float64]


def co_occurrence(labels: NDArray[np.uint8]) -> CoOccurrence:
    """Return that of the sites among (n, 14) labels."""
    positive = labels[:, : len(SITES)].astype(np.int64)
    counts = positive.T @ positive
    phi = np.full(counts.shape, np.nan)
    for i, j in np.ndindex(counts.shape):
        phi[i, j] = phi_coefficient(int(counts[i, j]), int(counts[i, i]), int(counts[j, j]), len(positive))
    return CoOccurrence(len(positive), counts, phi)


def phi_coefficient(both: int, first: int, second: int, n: int) -> float:
    """
    Return the phi coefficient of a 2 x 2 table: Pearson's correlation of two things that n have or have not.

    ``first`` and ``second`` count those that have the one and the other. NaN where one is had by all, or by none.
    """
    product = float(first) * (n - first) * float(second) * (n - second)
    return (n * float(both) - float(first) * second) / np.sqrt(product) if product > 0 else float("nan")


@dataclass(frozen=True)
class MarkedSeries:
    """
    What the tables mark in one series.

    Attributes
    ----------
    modality
        Its name.
    labels
        (14,) uint8, None if train.csv lacks it.
    points
        Its rows of train_localizers.csv.
    images_with_points
        How many of them are in an image that it has; None if its headers can't be read.
    """

    modality: str
    labels: NDArray[np.uint8] | None
    points: tuple[Localizer, ...]
    images_with_points: int | None


@dataclass(frozen=True)
class PointCounts:
    """
    Points of train_localizers.csv, and what they lack.

    Attributes
    ----------
    rows
        In all.
    malformed
        Without usable coordinates, or of no known site.
    without_image
        In an image that the series has not.
    doubled
        At the very place of another row of the series, under another site.
    series
        By modality, how many series have 0, 1, ... points, and `MOST_POINTS` or more.
    positive_without
        Series with an aneurysm, and no point.
    negative_with
        Series without an aneurysm, and points.
    unlabelled_site
        Points at a site that the labels of the series deny.
    """

    rows: int
    malformed: int
    without_image: int
    doubled: int
    series: dict[str, list[int]]
    positive_without: int
    negative_with: int
    unlabelled_site: int


def count_points(marked: Iterable[MarkedSeries]) -> PointCounts:
    """Return what is to be said of the points of some series."""
    rows = malformed = without_image = doubled = positive_without = negative_with = unlabelled = 0
    series: dict[str, list[int]] = {}
    for one in marked:
        points = one.points
        series.setdefault(one.modality, [0] * (MOST_POINTS + 1))[min(len(points), MOST_POINTS)] += 1
        rows += len(points)
        malformed += sum(bool(p.problem) for p in points)
        if one.images_with_points is not None:
            without_image += len(points) - one.images_with_points
        doubled += _doubled(points)
        if one.labels is not None:
            present = bool(one.labels[LABELS.index("Aneurysm Present")])
            positive_without += present and not points
            negative_with += not present and bool(points)
            unlabelled += sum(p.location in SITES and not one.labels[SITES.index(p.location)] for p in points)
    return PointCounts(
        rows, malformed, without_image, doubled, series, positive_without, negative_with, unlabelled,
    )  # fmt: skip


def _doubled(points: Sequence[Localizer]) -> int:
    places: dict[tuple[object, ...], set[str]] = {}
    for p in points:
        if not p.problem:
            places.setdefault((p.sop_uid, p.frame, p.x, p.y), set()).add(p.location)
    return sum(len(sites) - 1 for sites in places.values())
