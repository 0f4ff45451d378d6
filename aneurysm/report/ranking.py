"""How well scores rank: ROC-AUC and average precision by label, their summaries and the RSNA score, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aneurysm.labels import SITES
from aneurysm.metrics import score_series
from aneurysm.report.bootstrap import Weights, ranked_samples
from aneurysm.report.intervals import (
    Estimate,
    Influence,
    auc_estimate,
    auc_influence,
    combined,
    left_out_weights,
    mean_estimate,
    mean_of,
    precision_estimate,
    share_estimate,
    share_influence,
)
from aneurysm.report.run_tables import Predictions

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
    score_influence
        Of each patient on the score, for differences between models on the same series; None without a score.
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
    score_influence: Influence | None

    @property
    def left_out(self) -> tuple[LabelRanking, ...]:
        """The labels that are in no mean, because only one class is known."""
        return tuple(label for label in self.labels if label.one_class)


def rank(predictions: Predictions) -> Ranking:
    """Score predictions; point values equal scikit-learn's, intervals are those of `aneurysm.report.intervals`."""
    point = score_series(predictions.truth, predictions.probabilities)
    names, patients = np.unique(predictions.patients, return_inverse=True)
    n_patients = len(names)
    weights = left_out_weights(patients, n_patients)
    labels: list[LabelRanking] = []
    aucs: dict[int, Influence] = {}
    without: dict[int, NDArray[np.float64]] = {}
    for i, found in enumerate(point.labels):
        known = predictions.known(i)
        positive, scores = predictions.positive(i)[known], predictions.probabilities[known, i]
        auc = precision = Estimate(None)
        if found.auc is not None and found.average_precision is not None:
            ranked = auc_influence(positive, scores, patients[known], n_patients)
            aucs[i], auc = ranked.influence, auc_estimate(ranked)
            without[i] = ranked_samples(positive, scores, weights, known).average_precision()
            precision = precision_estimate(found.average_precision, without[i], ranked.influence.behind)
        share = share_influence(positive.astype(float), np.ones(len(known)), patients[known], n_patients)
        # Of a rare label the few decide how well its share is known.
        rarer = min(len(np.unique(patients[known[which]])) for which in (positive, ~positive))
        prevalence = share_estimate(share, len(known), behind=rarer) if len(known) else Estimate(None)
        labels.append(LabelRanking(found.label, found.n, found.n_positive, auc, precision, prevalence))
    sites = [i for i in aucs if i != PRESENT]
    of_sites = _patients_behind(predictions, patients, sites)
    site_auc = mean_of([aucs[i] for i in sites], of_sites) if sites else None
    score = None
    if site_auc is not None and PRESENT in aucs:
        score = combined([aucs[PRESENT], site_auc], [0.5, 0.5], min(aucs[PRESENT].behind, of_sites))
    micro_auc, micro_precision = _micro(predictions, patients, n_patients, weights)
    return Ranking(
        len(predictions),
        n_patients,
        tuple(labels),
        Estimate(None) if score is None else mean_estimate(score),
        labels[PRESENT].auc,
        Estimate(None) if site_auc is None else mean_estimate(site_auc),
        _mean_precision([point.labels[i].average_precision for i in sites], [without[i] for i in sites], of_sites),
        micro_auc,
        micro_precision,
        score,
    )


def rank_by(predictions: Predictions, groups: NDArray[np.str_]) -> dict[str, Ranking]:
    """Return the ranking of each group of series by itself; ``groups`` (n,) names them."""
    return {str(name): rank(predictions.select(np.flatnonzero(groups == name))) for name in np.unique(groups)}


def _patients_behind(predictions: Predictions, patients: NDArray[np.int64], sites: list[int]) -> int:
    """Return how many patients have a positive site, or if these are fewer, a negative one."""
    if not sites:
        return 0
    truth = predictions.truth[:, sites]
    return min(len(np.unique(patients[(truth == value).any(axis=1)])) for value in (0, 1))


def _mean_precision(values: list[float | None], without: list[NDArray[np.float64]], behind: int) -> Estimate:
    found = [value for value in values if value is not None]
    if not found:
        return Estimate(None)
    # A site that loses its last positive stays as it is: left out, it would move the mean by more than it is worth.
    each = [np.where(np.isfinite(w), w, value) for w, value in zip(without, found, strict=True)]
    return precision_estimate(float(np.mean(found)), np.mean(each, axis=0), behind, mean=True)


def _micro(
    predictions: Predictions, patients: NDArray[np.int64], n_patients: int, weights: Weights
) -> tuple[Estimate, Estimate]:
    from sklearn.metrics import average_precision_score

    series = np.concatenate([predictions.known(i) for i in range(PRESENT)])
    sites = np.repeat(np.arange(PRESENT), [len(predictions.known(i)) for i in range(PRESENT)])
    positive, scores = predictions.truth[series, sites] == 1, predictions.probabilities[series, sites]
    if positive.all() or not positive.any():
        return Estimate(None), Estimate(None)
    ranked = auc_influence(positive, scores, patients[series], n_patients)
    value = float(average_precision_score(positive, scores))
    without = ranked_samples(positive, scores, weights, series).average_precision()
    return auc_estimate(ranked), precision_estimate(value, without, ranked.influence.behind)
