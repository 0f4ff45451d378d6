"""Thresholds, chosen on one half of the patients and reported on the other, both ways.

A threshold that is reported on the series it was chosen on flatters itself. So the patients are dealt into two halves;
each half's threshold decides about the other half's series, and the decisions of both are counted together. The
threshold to use later is chosen on all series.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from aneurysm.labels import LABELS, UNKNOWN
from aneurysm.report.intervals import Estimate, Influence, mean_estimate, mean_of, share_estimate, share_influence
from aneurysm.report.ranking import PRESENT
from aneurysm.report.run_tables import Predictions


@dataclass(frozen=True)
class Threshold:
    """A score from which on a series counts as positive; ``reached`` is False if the rule's aim was out of reach."""

    value: float
    reached: bool = True


@dataclass(frozen=True)
class RateCounts:
    """Decisions by truth."""

    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int


@dataclass(frozen=True)
class Rates:
    """How often decisions are right."""

    sensitivity: Estimate
    specificity: Estimate
    precision: Estimate
    f1: Estimate


_NO_RATES = Rates(*[Estimate(None)] * 4)
_F1 = 3


@dataclass(frozen=True)
class OperatingPoint:
    """
    What one label's threshold does.

    Attributes
    ----------
    rule
        What the threshold was chosen for.
    threshold
        Chosen on all series: the one to use.
    halves
        Chosen on either half; the counts come from each on the other half.
    counts, rates
        Of the decisions.
    missing
        Why there is none; then all else is empty.
    """

    label: str
    rule: str
    threshold: Threshold | None
    halves: tuple[Threshold, Threshold] | None
    counts: RateCounts | None
    rates: Rates
    missing: str = ""


@dataclass(frozen=True)
class Operation:
    """
    All labels' operating points.

    Attributes
    ----------
    called
        (n, 14) int8: 1 or 0 as decided with the other half's threshold, -1 where there is none.
    macro, micro
        Over the sites: the means of theirs, and those of their counts' sum.
    """

    labels: tuple[OperatingPoint, ...]
    called: NDArray[np.int8]
    macro: Rates
    micro: Rates


def patient_halves(predictions: Predictions, seed: int) -> NDArray[np.bool_]:
    """
    Deal the patients into two halves: (n,), True for the second.

    Patients are dealt in turn, those with the rarest positive label first, so that two patients with one label lie in
    two halves. Within a label, a hash of the patient's key and ``seed`` decides the order.
    """
    positive = predictions.truth == 1
    patients, patient_of = np.unique(predictions.patients, return_inverse=True)
    labels_of = np.zeros((len(patients), len(LABELS)), bool)
    np.logical_or.at(labels_of, patient_of, positive)
    by_rarity = np.argsort(labels_of.sum(axis=0), kind="stable")
    ordered = labels_of[:, by_rarity]
    rarest = np.where(ordered.any(axis=1), ordered.argmax(axis=1), len(LABELS))
    draws = [hashlib.sha256(f"{seed} {p}".encode()).digest() for p in patients]
    second = np.zeros(len(patients), bool)
    for turn, patient in enumerate(sorted(range(len(patients)), key=lambda p: (rarest[p], draws[p]))):
        second[patient] = turn % 2
    return second[patient_of]


def threshold_for_precision(positive: NDArray[np.bool_], scores: NDArray[np.float64], target: float) -> Threshold:
    """Return the smallest threshold of at least the target precision; if none is, that of the highest precision."""
    from sklearn.metrics import precision_recall_curve

    precision, _, thresholds = precision_recall_curve(positive, scores)
    reaching = np.flatnonzero(precision[:-1] >= target)
    if len(reaching):
        return Threshold(float(thresholds[reaching[0]]))
    return Threshold(float(thresholds[int(np.argmax(precision[:-1]))]), reached=False)


def threshold_for_f1(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> Threshold:
    """Return the threshold of the best F1; of several, the highest."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(positive, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = np.flatnonzero(f1[:-1] >= f1[:-1].max() - 1e-12)
    return Threshold(float(thresholds[best[-1]]))


def operate(predictions: Predictions, second_half: NDArray[np.bool_], target_precision: float) -> Operation:
    """
    Choose and try the thresholds: of present by ``target_precision``, of the sites by F1.

    Intervals are of the counts with the thresholds as they are.
    """
    called = np.full(predictions.truth.shape, -1, np.int8)
    patients = np.unique(predictions.patients, return_inverse=True)[1]
    points, cells = [], []
    for i, label in enumerate(LABELS):
        point, found = _point(predictions, i, label, second_half, target_precision, called, patients)
        points.append(point)
        if i != PRESENT and found is not None:
            cells.append(found)
    if not cells:
        return Operation(tuple(points), called, _NO_RATES, _NO_RATES)
    return Operation(
        tuple(points),
        called,
        _mean_rates(cells, patients),
        _rates(np.concatenate(cells), np.tile(patients, len(cells))),
    )


def present_by(predictions: Predictions, operation: Operation, groups: NDArray[np.str_]) -> dict[str, Rates]:
    """Return how good the decisions about present are in each group of series; ``groups`` (n,) names them."""
    positive, called = predictions.positive(PRESENT), operation.called[:, PRESENT]
    patients = np.unique(predictions.patients, return_inverse=True)[1]
    return {
        str(name): _rates(_cells(positive, called == 1, (called >= 0) & (groups == name)), patients)
        for name in np.unique(groups)
    }


def _point(
    predictions: Predictions,
    i: int,
    label: str,
    second_half: NDArray[np.bool_],
    target: float,
    called: NDArray[np.int8],
    patients: NDArray[np.int64],
) -> tuple[OperatingPoint, NDArray[np.float64] | None]:
    rule = f"smallest threshold with a precision of at least {target:g}" if i == PRESENT else "best F1"

    def choose(chosen: NDArray[np.bool_]) -> Threshold:
        positive, scores = predictions.positive(i)[chosen], predictions.probabilities[chosen, i]
        return threshold_for_precision(positive, scores, target) if i == PRESENT else threshold_for_f1(positive, scores)

    known = predictions.truth[:, i] != UNKNOWN
    halves = (known & ~second_half, known & second_half)
    positive, scores = predictions.positive(i), predictions.probabilities[:, i]
    for half in halves:
        if positive[half].all() or not positive[half].any():
            missing = "one half of the patients has only one class"
            return OperatingPoint(label, rule, None, None, None, _NO_RATES, missing), None
    first, second = choose(halves[0]), choose(halves[1])
    decided = scores >= np.where(second_half, first.value, second.value)
    called[known, i] = decided[known]
    cells = _cells(positive, decided, known)
    counts = RateCounts(*(int(v) for v in cells.sum(axis=0)))
    return OperatingPoint(label, rule, choose(known), (first, second), counts, _rates(cells, patients)), cells


def _cells(positive: NDArray[np.bool_], decided: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (n, 4) 0 or 1: true positive, false negative, false positive, true negative."""
    found = [positive & decided, positive & ~decided, ~positive & decided, ~positive & ~decided]
    return (np.stack(found, axis=1) & known[:, None]).astype(np.float64)


def _shares(cells: NDArray[np.float64]) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return part and whole of sensitivity, specificity, precision, and of the Jaccard index, which F1 follows from."""
    true_positive, false_negative, false_positive, true_negative = cells.T
    return [
        (true_positive, true_positive + false_negative),
        (true_negative, true_negative + false_positive),
        (true_positive, true_positive + false_positive),
        (true_positive, true_positive + false_positive + false_negative),
    ]


def _rates(cells: NDArray[np.float64], patients: NDArray[np.int64]) -> Rates:
    """Return the rates of (m, 4) cells, with patients (m,)."""
    sensitivity, specificity, precision, jaccard = (
        share_estimate(share_influence(part, whole, patients, int(patients.max()) + 1), float(whole.sum()), behind=n)
        for (part, whole), n in zip(_shares(cells), _behind(cells, patients), strict=True)
    )
    return Rates(sensitivity, specificity, precision, _f1_of(jaccard))


def _behind(cells: NDArray[np.float64], patients: NDArray[np.int64]) -> list[int]:
    """Return how many patients each rate rests on: F1, like the sensitivity, on those with positives."""
    positives, negatives, called = cells[:, 0] + cells[:, 1], cells[:, 2] + cells[:, 3], cells[:, 0] + cells[:, 2]
    return [len(np.unique(patients[which > 0])) for which in (positives, negatives, called, positives)]


def _f1_of(jaccard: Estimate) -> Estimate:
    """F1 is 2 J / (1 + J), which rises with J: so do the ends of its interval."""

    def f1(value: float | None) -> float | None:
        return None if value is None else 2 * value / (1 + value)

    return replace(jaccard, value=f1(jaccard.value), low=f1(jaccard.low), high=f1(jaccard.high))


def _mean_rates(cells: list[NDArray[np.float64]], patients: NDArray[np.int64]) -> Rates:
    """Return the means of the rates over labels; a label without one is left out of that mean."""
    together = np.max(cells, axis=0)
    found = []
    for k, behind in enumerate(_behind(together, patients)):
        parts = [share_influence(*_shares(of_label)[k], patients, int(patients.max()) + 1) for of_label in cells]
        parts = [part for part in parts if np.isfinite(part.value)]
        if k == _F1:
            parts = [_f1_influence(part) for part in parts]
        found.append(mean_estimate(mean_of(parts, behind)) if parts else Estimate(None))
    return Rates(*found)


def _f1_influence(jaccard: Influence) -> Influence:
    slope = 2 / (1 + jaccard.value) ** 2
    value = 2 * jaccard.value / (1 + jaccard.value)
    return Influence(value, slope * jaccard.effects, slope**2 * jaccard.excess, jaccard.behind)
