"""Thresholds, chosen on one half of the patients and reported on the other, both ways.

A threshold that is reported on the series it was chosen on flatters itself. So the patients are dealt into two halves;
each half's threshold decides about the other half's series, and the decisions of both are counted together. The
threshold to use later is chosen on all series.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aneurysm.cache.catalog import UNKNOWN
from aneurysm.labels import LABELS
from aneurysm.report.bootstrap import Estimate, Weights, estimate
from aneurysm.report.ranking import PRESENT
from aneurysm.report.run_tables import Predictions


@dataclass(frozen=True)
class Threshold:
    """A score from which on a series counts as positive; ``reached`` is False if the rule's aim was out of reach."""

    value: float
    reached: bool = True


@dataclass(frozen=True)
class Counts:
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
    counts: Counts | None
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


def operate(
    predictions: Predictions, second_half: NDArray[np.bool_], weights: Weights, target_precision: float
) -> Operation:
    """
    Choose and try the thresholds: of present by ``target_precision``, of the sites by F1.

    Intervals are of the counts with the thresholds as they are.
    """
    called = np.full(predictions.truth.shape, -1, np.int8)
    points, rows, samples = [], [], []
    for i, label in enumerate(LABELS):
        point, drawn = _point(predictions, i, label, second_half, weights, target_precision, called)
        points.append(point)
        if i != PRESENT and point.counts is not None and drawn is not None:
            rows.append(_as_row(point.counts))
            samples.append(drawn)
    if not rows:
        return Operation(tuple(points), called, _NO_RATES, _NO_RATES)
    return Operation(
        tuple(points),
        called,
        _rates(np.array(rows), np.array(samples)),
        _rates(np.sum(rows, axis=0)[None], np.sum(samples, axis=0)[None]),
    )


def present_by(
    predictions: Predictions, operation: Operation, groups: NDArray[np.str_], weights: Weights
) -> dict[str, Rates]:
    """Return how good the decisions about present are in each group of series; ``groups`` (n,) names them."""
    positive, called = predictions.positive(PRESENT), operation.called[:, PRESENT]
    found = {}
    for name in np.unique(groups):
        cells = _cells(positive, called == 1, (called >= 0) & (groups == name))
        found[str(name)] = _rates(cells.sum(axis=0)[None], (weights.astype(np.float64) @ cells)[None])
    return found


def _point(
    predictions: Predictions,
    i: int,
    label: str,
    second_half: NDArray[np.bool_],
    weights: Weights,
    target: float,
    called: NDArray[np.int8],
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
    row, drawn = cells.sum(axis=0), weights.astype(np.float64) @ cells
    counts = Counts(*(int(v) for v in row))
    return OperatingPoint(label, rule, choose(known), (first, second), counts, _rates(row[None], drawn[None])), drawn


def _cells(positive: NDArray[np.bool_], decided: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (n, 4) 0 or 1: true positive, false negative, false positive, true negative."""
    found = [positive & decided, positive & ~decided, ~positive & decided, ~positive & ~decided]
    return (np.stack(found, axis=1) & known[:, None]).astype(np.float64)


def _rates(rows: NDArray[np.float64], drawn: NDArray[np.float64]) -> Rates:
    """Return means over s labels of (s, 4) cells, with intervals by (s, samples, 4); one without is left out."""
    true_positive, false_negative, false_positive, true_negative = rows.sum(axis=0)
    positives, negatives = true_positive + false_negative, false_positive + true_negative
    behind = (positives, negatives, true_positive + false_positive, positives)
    shares = (_sensitivity, _specificity, _precision, _f1)
    found = zip(shares, behind, strict=True)
    return Rates(*(estimate(float(_mean(share(rows))), _mean(share(drawn)), int(n)) for share, n in found))


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    usable = np.isfinite(values)
    return _share(np.where(usable, values, 0).sum(axis=0), usable.sum(axis=0))


def _as_row(counts: Counts) -> NDArray[np.float64]:
    return np.array([counts.true_positive, counts.false_negative, counts.false_positive, counts.true_negative], float)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.true_divide(part, whole))


def _sensitivity(c: NDArray[np.float64]) -> NDArray[np.float64]:
    return _share(c[..., 0], c[..., 0] + c[..., 1])


def _specificity(c: NDArray[np.float64]) -> NDArray[np.float64]:
    return _share(c[..., 3], c[..., 3] + c[..., 2])


def _precision(c: NDArray[np.float64]) -> NDArray[np.float64]:
    return _share(c[..., 0], c[..., 0] + c[..., 2])


def _f1(c: NDArray[np.float64]) -> NDArray[np.float64]:
    return _share(2 * c[..., 0], 2 * c[..., 0] + c[..., 1] + c[..., 2])
