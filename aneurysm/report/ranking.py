"""How well scores rank: ROC-AUC and average precision by label, their summaries and the RSNA score, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aneurysm.labels import LABELS, SITES
from aneurysm.report.bootstrap import Estimate, Weights, estimate, ranked_samples
from aneurysm.report.run_tables import Predictions
from aneurysm.training.score import score_series

PRESENT = len(SITES)
"""Index of "Aneurysm Present" in `LABELS`."""


@dataclass(frozen=True)
class LabelRanking:
    """
    One label.

    ``n`` series have it known, ``n_positive`` of them, the share ``prevalence``, are positive. Where only one class is
    known, nothing can be ranked: AUC and average precision are empty, and every mean over labels leaves this one out.
    """

    label: str
    n: int
    n_positive: int
    auc: Estimate
    average_precision: Estimate
    prevalence: Estimate

    @property
    def rarer(self) -> int:
        """Series of the rarer class, which stand behind what compares the two."""
        return min(self.n_positive, self.n - self.n_positive)

    @property
    def one_class(self) -> bool:
        """Whether only positives, or only negatives, are known."""
        return self.n_positive in (0, self.n)


@dataclass(frozen=True)
class Ranking:
    """
    A set of series.

    Attributes
    ----------
    score
        0.5 * (AUC of present + mean AUC of the sites), the competition's.
    site_auc, site_average_precision
        Macro: the mean over the sites that have both classes.
    micro_auc, micro_average_precision
        All pairs of a series and a site ranked in one list.
    score_samples
        (samples,) of the score, for differences between models on the same samples.
    score_behind
        Series of the rarer class of present, or of all sites together, if these are fewer.
    """

    n: int
    n_patients: int
    labels: tuple[LabelRanking, ...]
    score: Estimate
    present_auc: Estimate
    site_auc: Estimate
    site_average_precision: Estimate
    micro_auc: Estimate
    micro_average_precision: Estimate
    score_samples: NDArray[np.float64]
    score_behind: int

    @property
    def left_out(self) -> tuple[LabelRanking, ...]:
        """The labels that are in no mean, because only one class is known."""
        return tuple(label for label in self.labels if label.one_class)


def rank(predictions: Predictions, weights: Weights) -> Ranking:
    """
    Score predictions; point values are scikit-learn's, intervals from ``weights`` (samples, n).

    In a sample, a site of which only one class was drawn is left out of that sample's mean.
    """
    point = score_series(predictions.truth, predictions.probabilities)
    samples = len(weights)
    aucs, precisions = np.full((2, len(LABELS), samples), np.nan)
    labels = []
    for i, found in enumerate(point.labels):
        known = predictions.known(i)
        if found.auc is not None:
            drawn = ranked_samples(predictions.positive(i)[known], predictions.probabilities[known, i], weights, known)
            aucs[i], precisions[i] = drawn.auc(), drawn.average_precision()
        rarer = min(found.n_positive, found.n - found.n_positive)
        labels.append(
            LabelRanking(
                found.label, found.n, found.n_positive, estimate(found.auc, aucs[i], rarer),
                estimate(found.average_precision, precisions[i], rarer),
                _prevalence(predictions.positive(i)[known], weights[:, known], rarer),
            )
        )  # fmt: skip
    site_auc, site_precision = _mean(aucs[:PRESENT]), _mean(precisions[:PRESENT])
    score = 0.5 * (aucs[PRESENT] + site_auc)
    site_values = [s.average_precision for s in point.labels[:PRESENT] if s.average_precision is not None]
    micro_auc, micro_precision = _micro(predictions, weights)
    of_sites = sum(label.rarer for label in labels[:PRESENT])
    behind = min(labels[PRESENT].rarer, of_sites)
    return Ranking(
        len(predictions),
        len(np.unique(predictions.patients)),
        tuple(labels),
        estimate(point.score, score, behind),
        labels[PRESENT].auc,
        estimate(point.mean_site_auc, site_auc, of_sites),
        estimate(float(np.mean(site_values)) if site_values else None, site_precision, of_sites),
        micro_auc,
        micro_precision,
        score,
        behind,
    )


def rank_by(predictions: Predictions, groups: NDArray[np.str_], weights: Weights) -> dict[str, Ranking]:
    """Return the ranking of each group of series by itself; ``groups`` (n,) names them."""
    found = {}
    for name in np.unique(groups):
        chosen = np.flatnonzero(groups == name)
        found[str(name)] = rank(predictions.select(chosen), weights[:, chosen])
    return found


def _prevalence(positive: NDArray[np.bool_], weights: Weights, rarer: int) -> Estimate:
    if not len(positive):
        return Estimate(None)
    with np.errstate(invalid="ignore"):
        samples = (weights @ positive.astype(np.float32)).astype(np.float64) / weights.sum(axis=1)
    return estimate(float(positive.mean()), samples, rarer)


def _mean(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    usable = np.isfinite(samples)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(usable, samples, 0).sum(axis=0) / usable.sum(axis=0))


def _micro(predictions: Predictions, weights: Weights) -> tuple[Estimate, Estimate]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    series = np.concatenate([predictions.known(i) for i in range(PRESENT)])
    sites = np.repeat(np.arange(PRESENT), [len(predictions.known(i)) for i in range(PRESENT)])
    positive, scores = predictions.truth[series, sites] == 1, predictions.probabilities[series, sites]
    if positive.all() or not positive.any():
        return Estimate(None), Estimate(None)
    drawn = ranked_samples(positive, scores, weights, series)
    rarer = int(min(positive.sum(), (~positive).sum()))
    return (
        estimate(float(roc_auc_score(positive, scores)), drawn.auc(), rarer),
        estimate(float(average_precision_score(positive, scores)), drawn.average_precision(), rarer),
    )
