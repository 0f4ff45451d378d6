"""Bootstrap by patient: how often each series counts in a sample, and the ranking metrics of all samples at once.

Patients are drawn with replacement, and with a patient all of its series: two series of one patient are no two
observations. A sample in which a metric is undefined (only one class was drawn) is left out. The bands of curves are
percentiles of these samples; for intervals of single values see `aneurysm.report.intervals`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_THRESHOLDS_AT_ONCE = 512
"""Bounds the memory of the comparison of all observations with thresholds."""

FEWEST_SAMPLES: Final = 40
"""For percentiles 2.5 and 97.5."""

Weights = NDArray[np.float32]
"""(samples, n): how often series i was drawn; whole numbers, as float32 for fast products of matrices."""


def patient_weights(patients: NDArray[np.str_], samples: int, seed: int) -> Weights:
    """Draw (samples, n) weights: as many patients as there are, with replacement, each with all its series."""
    names, patient_of = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples).astype(np.float32)
    return counts[:, patient_of]


@dataclass(frozen=True)
class RankedSamples:
    """
    Every sample's counts at k thresholds, the distinct scores of the positives, the highest first.

    Attributes
    ----------
    at
        (samples, k) float64: positives of just this score.
    true_positives, false_positives, above
        (samples, k): positives, negatives of this score or a higher one; negatives of higher ones only.
    positives, negatives
        (samples,): all.
    """

    at: NDArray[np.float64]
    true_positives: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    above: NDArray[np.float64]
    positives: NDArray[np.float64]
    negatives: NDArray[np.float64]

    def auc(self) -> NDArray[np.float64]:
        """Return each sample's ROC-AUC, ties counted half; NaN where it has one class only."""
        below = self.negatives[:, None] - 0.5 * (self.false_positives + self.above)
        with np.errstate(invalid="ignore"):
            return np.asarray((self.at * below).sum(axis=1) / (self.positives * self.negatives))

    def average_precision(self) -> NDArray[np.float64]:
        """Return each sample's average precision; NaN where it has one class only."""
        precision = self.true_positives / np.maximum(self.true_positives + self.false_positives, 1)
        with np.errstate(invalid="ignore"):
            values = (self.at * precision).sum(axis=1) / self.positives
        return np.where(self.negatives > 0, values, np.nan)

    def roc(self, grid: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (samples, grid) sensitivities at false-positive rates; NaN for a sample that has one class only."""
        # Ties of positives and negatives are lines aslant, all else is steps: so the area below is the AUC.
        before = np.pad(self.true_positives, ((0, 0), (1, 0)))[:, :-1]
        shape = (len(self.positives), -1)
        with np.errstate(invalid="ignore"):
            x = np.stack([self.above, self.false_positives], axis=2).reshape(shape) / self.negatives[:, None]
            y = np.stack([before, self.true_positives], axis=2).reshape(shape) / self.positives[:, None]
        x, y = (np.pad(v, ((0, 0), (1, 1)), constant_values=(0, 1)) for v in (x, y))
        # Of several sensitivities at one rate np.interp gives the last, the highest, if it is not just missed.
        found = np.array([np.interp(grid + 1e-9, a, b) for a, b in zip(x, y, strict=True)])
        return np.where(self._of_both_classes, found, np.nan)

    def precision(self, grid: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (samples, grid) precisions: of the highest threshold that reaches a sensitivity; NaN as in `roc`."""
        precision = self.true_positives / np.maximum(self.true_positives + self.false_positives, 1)
        with np.errstate(invalid="ignore"):
            sensitivity = self.true_positives / self.positives[:, None]
        # At 0, the first positive drawn.
        limits = np.maximum(grid - 1e-9, 1e-9)
        last = precision.shape[1] - 1
        found = [p[np.searchsorted(s, limits).clip(max=last)] for s, p in zip(sensitivity, precision, strict=True)]
        return np.where(self._of_both_classes, np.array(found), np.nan)

    @property
    def _of_both_classes(self) -> NDArray[np.bool_]:
        return np.asarray((self.positives > 0) & (self.negatives > 0))[:, None]


def ranked_samples(
    positive: NDArray[np.bool_], scores: NDArray[np.float64], weights: Weights, series: NDArray[np.int64]
) -> RankedSamples:
    """
    Count positives and negatives by threshold in all samples at once.

    AUC and average precision only change at the positives, which are few; so one product of matrices, weights by
    (series, thresholds), does the work that sorting every sample would.

    Parameters
    ----------
    positive, scores
        (m,) of the observations; at least one is positive.
    weights
        (samples, n).
    series
        (m,): the series of each observation, an index into the columns of ``weights``.
    """
    falling = np.argsort(-scores[positive], kind="stable")
    ordered = scores[positive][falling]
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    thresholds = ordered[ends]
    true_positives = np.cumsum(weights[:, series[positive][falling]], axis=1, dtype=np.float64)[:, ends]
    negative_scores, negative_series = scores[~positive], series[~positive]
    reached = _negatives_from(thresholds, negative_scores, negative_series, weights, strictly=False)
    tied = bool(np.isin(thresholds, negative_scores).any())
    above = _negatives_from(thresholds, negative_scores, negative_series, weights, strictly=True) if tied else reached
    per_series = np.bincount(negative_series, minlength=weights.shape[1]).astype(np.float64)
    return RankedSamples(
        np.diff(true_positives, axis=1, prepend=0.0),
        true_positives,
        reached,
        above,
        true_positives[:, -1],
        weights @ per_series,
    )


def _negatives_from(
    thresholds: NDArray[np.float64],
    scores: NDArray[np.float64],
    series: NDArray[np.int64],
    weights: Weights,
    *,
    strictly: bool,
) -> NDArray[np.float64]:
    """Return (samples, thresholds): how many negatives score a threshold or more, or with ``strictly`` more."""
    parts = []
    for first in range(0, len(thresholds), _THRESHOLDS_AT_ONCE):
        some = thresholds[first : first + _THRESHOLDS_AT_ONCE]
        # Thresholds fall: a negative is counted from the first one that it reaches.
        start = np.searchsorted(-some, -scores, side="right" if strictly else "left")
        begins = np.zeros((weights.shape[1], len(some) + 1), np.float32)
        np.add.at(begins, (series, start), 1.0)
        # Sums of whole numbers below 2**24 are exact in float32.
        parts.append(weights @ np.cumsum(begins[:, :-1], axis=1))
    return np.concatenate(parts, axis=1).astype(np.float64)
