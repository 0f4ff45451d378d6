"""
Values -> 95 % intervals by patient. Which kind covers what was tried in `benchmarks.intervals`.

Two series of one patient are no two observations, so everything is summed by patient first. A value that is (nearly) a
sum over patients has an influence: how far each patient moves it, whose squares add up to its variance.

==========  ========================================================================================================
kind        of
==========  ========================================================================================================
newcombe    the AUC of a label: Newcombe's method 5 (Statistics in Medicine 25:559, 2006), with numbers of patients, and
            widened where the clustered DeLong variance (Obuchowski, Biometrics 53:567, 1997) is larger than its own
wilson      shares, such as a sensitivity, and means of shares or of AUCs: Wilson's, with the effective number of
            observations that the variance by patient stands for, and Student's t where few patients make it up
jackknife   average precision: the bias, which sums up in a mean over sites, and the error of leaving out patients
t           the difference of two scores of the same series
folded      the calibration error, whose lower end allows for what noise alone adds to it
==========  ========================================================================================================

Percentiles of a bootstrap cover less: those of the macro average precision add the bias a second time, and five
positives drawn with replacement vary less than five positives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.probability import logit, sigmoid
from aneurysm.report.bootstrap import FEWEST_SAMPLES, Weights

FEWEST: Final = 5
"""Patients that an interval takes: fewer don't show how much they differ."""
MOST_GROUPS: Final = 1000
"""More patients than these are left out in groups: a group for each would take memory by their square."""
_Z: Final = 1.959964
_LOWEST_DF: Final = 2.0


@dataclass(frozen=True)
class Estimate:
    """
    A value with its 95 % interval.

    Attributes
    ----------
    value, low, high
        None where there is none.
    kind
        Of the interval; see the module's page.
    missing
        Why there is a value, but no interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    kind: str = ""
    missing: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return "n/a"
        return f"{self.value:.3f}" if self.low is None else f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Influence:
    """
    A value, and how far each patient moves it.

    Attributes
    ----------
    effects
        (patients,): their squares add up to the variance.
    excess
        Variance that the effects of few patients don't show: five of five right is no certainty.
    behind
        Patients that the value rests on: of the rarer class, if it compares two.
    """

    value: float
    effects: NDArray[np.float64]
    excess: float
    behind: int

    @property
    def variance(self) -> float:
        """Of the value."""
        return float((self.effects**2).sum()) + self.excess

    @property
    def quantile(self) -> float:
        """Student's t of as many degrees of freedom as patients make up the variance."""
        from scipy.stats import t

        fourth = float((self.effects**4).sum())
        df = self.variance**2 / fourth if fourth > 0 else np.inf
        return float(t.ppf(0.975, max(df, _LOWEST_DF)))


def combined(parts: Sequence[Influence], shares: Sequence[float], behind: int) -> Influence:
    """Return the sum of values, each times its share."""
    return Influence(
        float(sum(s * p.value for s, p in zip(shares, parts, strict=True))),
        np.sum([s * p.effects for s, p in zip(shares, parts, strict=True)], axis=0),
        float(sum(s * s * p.excess for s, p in zip(shares, parts, strict=True))),
        behind,
    )


def mean_of(parts: Sequence[Influence], behind: int) -> Influence:
    """Return the mean of values."""
    return combined(parts, [1 / len(parts)] * len(parts), behind)


# ---- AUC -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankedInfluence:
    """Of an AUC; ``positives`` and ``negatives`` are patients that have such observations."""

    influence: Influence
    positives: int
    negatives: int


def auc_influence(
    positive: NDArray[np.bool_], scores: NDArray[np.float64], patients: NDArray[np.int64], n_patients: int
) -> RankedInfluence:
    """
    Return the AUC of m observations, ties counted half, with DeLong's components summed by patient (Obuchowski 1997).

    Parameters
    ----------
    positive, scores
        (m,): both classes occur.
    patients
        (m,): of 0 to ``n_patients`` - 1.
    """
    ours, theirs = scores[positive], scores[~positive]
    above = _share_below(ours, theirs)
    below = 1 - _share_below(theirs, ours)
    value = float(above.mean())
    counts = [len(np.unique(patients[which])) for which in (positive, ~positive)]
    effects = np.zeros(n_patients)
    for which, parts, k in ((positive, above, counts[0]), (~positive, below, counts[1])):
        # Of so many patients the squares come out too small by one of them.
        factor = np.sqrt(k / max(k - 1, 1)) / len(parts)
        effects += factor * np.bincount(patients[which], parts - value, n_patients)
    excess = max(0.0, _auc_variance(value, *counts) - float((effects**2).sum()))
    return RankedInfluence(Influence(value, effects, excess, min(counts)), *counts)


def _share_below(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each value the share of others that are lower, ties counted half."""
    ordered = np.sort(others)
    twice = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return np.asarray(twice / (2 * len(others)))


def _auc_variance(auc: float, positives: int, negatives: int) -> float:
    """Return Newcombe's variance: that of scores with exponential tails, of (m + n) / 2 of both classes."""
    n = (positives + negatives) / 2 - 1
    return auc * (1 - auc) * (1 + n * (1 - auc) / (2 - auc) + n * auc / (1 + auc)) / (positives * negatives)


def auc_estimate(found: RankedInfluence) -> Estimate:
    """Return an AUC with the interval of the AUCs that would not make it a surprise."""
    value = found.influence.value
    if found.influence.behind < FEWEST:
        return _too_few(value, found.influence.behind)
    own = _auc_variance(value, found.positives, found.negatives)
    wider = max(1.0, float((found.influence.effects**2).sum()) / own) if own > 0 else 1.0

    def surprise(auc: float) -> float:
        return (auc - value) ** 2 - _Z**2 * wider * _auc_variance(auc, found.positives, found.negatives)

    return Estimate(value, _end(surprise, value, 0.0), _end(surprise, value, 1.0), "newcombe")


def _end(surprise: Callable[[float], float], value: float, end: float) -> float:
    from scipy.optimize import brentq

    if value == end:
        return end
    # At the value itself it is negative, but for 0 and 1, where it is 0.
    inside = min(max(value, 1e-9), 1 - 1e-9)
    return float(brentq(surprise, end, inside))


# ---- shares ----------------------------------------------------------------------------------------------------------


def share_influence(
    part: NDArray[np.float64], whole: NDArray[np.float64], patients: NDArray[np.int64], n_patients: int
) -> Influence:
    """
    Return the share of ``part`` in ``whole``, (m,) 0 or 1 of observations; NaN if ``whole`` is 0 everywhere.

    The variance is at least the binomial one: patients who happen to be alike are no more observations than they have.
    """
    total = float(whole.sum())
    behind = len(np.unique(patients[whole > 0]))
    if not total:
        return Influence(np.nan, np.zeros(n_patients), 0.0, 0)
    value = float(part.sum()) / total
    factor = np.sqrt(behind / max(behind - 1, 1)) / total
    effects = factor * np.bincount(patients, part - value * whole, n_patients)
    # Of few observations the share may be 0 or 1 and its variance all the same not 0 (Agresti and Coull 1998).
    drawn_in = (value * total + 2) / (total + 4)
    excess = max(0.0, drawn_in * (1 - drawn_in) / total - float((effects**2).sum()))
    return Influence(value, effects, excess, behind)


def share_estimate(found: Influence, observations: float, *, behind: int | None = None) -> Estimate:
    """
    Return a share of ``observations`` with Wilson's interval, the number of them being the effective one.

    ``behind``, if given, counts in place of the influence's own patients for whether there is an interval.
    """
    value = found.value
    if not np.isfinite(value):
        return Estimate(None)
    patients = found.behind if behind is None else behind
    if patients < FEWEST:
        return _too_few(value, patients)
    if found.behind == observations:
        return _wilson(value, observations, _Z)
    spread = float((found.effects**2).sum())
    if spread <= 0 or not 0 < value < 1:
        return _wilson(value, found.behind, _Z)
    return _wilson(value, min(value * (1 - value) / spread, observations), found.quantile)


def mean_estimate(found: Influence) -> Estimate:
    """Return a mean of shares, or of AUCs, with Wilson's interval for as many observations as its variance says."""
    value = found.value
    if not np.isfinite(value):
        return Estimate(None)
    if found.behind < FEWEST:
        return _too_few(value, found.behind)
    if not 0 < value < 1 or found.variance <= 0:
        return _wilson(value, found.behind, _Z)
    return _wilson(value, value * (1 - value) / found.variance, found.quantile)


def sampled_estimate(value: float, samples: NDArray[np.float64], observations: int, patients: int) -> Estimate:
    """
    Return a share whose variance only a bootstrap shows, as of a sensitivity at a rate of false positives.

    Parameters
    ----------
    samples
        Of the value, by patient; NaNs are left out.
    observations, patients
        That the share is of.
    """
    if patients < FEWEST:
        return _too_few(value, patients)
    usable = samples[np.isfinite(samples)]
    if len(usable) < FEWEST_SAMPLES:
        return Estimate(value, missing="too few usable samples")
    variance = float(usable.var(ddof=1)) * patients / (patients - 1)
    if variance <= 0 or not 0 < value < 1:
        return _wilson(value, patients, _Z)
    return _wilson(value, min(value * (1 - value) / variance, observations), _Z)


def _wilson(value: float, n: float, quantile: float) -> Estimate:
    """Return Wilson's interval (1927) of a share of n."""
    square = quantile**2
    middle = (value + square / (2 * n)) / (1 + square / n)
    half = quantile / (1 + square / n) * np.sqrt(value * (1 - value) / n + square / (4 * n * n))
    return Estimate(value, max(0.0, float(middle - half)), min(1.0, float(middle + half)), "wilson")


# ---- average precision -----------------------------------------------------------------------------------------------


def left_out_weights(patients: NDArray[np.int64], n_patients: int, seed: int = 0) -> Weights:
    """
    Return (groups, n) weights: 0 for the series of one group of patients, 1 for all others.

    A group is one patient, or of more than `MOST_GROUPS` patients several, dealt by ``seed``.
    """
    groups = min(n_patients, MOST_GROUPS)
    dealt = np.random.default_rng(seed).permutation(n_patients) % groups
    return np.asarray(dealt[patients] != np.arange(groups)[:, None], np.float32)


def precision_estimate(value: float, without: NDArray[np.float64], behind: int, *, mean: bool = False) -> Estimate:
    """
    Return the average precision of a label, with the jackknife's interval, taken on log-odds.

    Parameters
    ----------
    without
        (groups,): the value without each group of patients; NaN where that leaves one class.
    behind
        Patients of the rarer class.
    mean
        It is the mean over the sites: of so many, that is nearly normal as it is, without log-odds.
    """
    from scipy.stats import t

    if behind < FEWEST:
        return _too_few(value, behind)
    middle, error = _jackknife(value, without)
    if error <= 0:
        return Estimate(value, missing="the same whoever is left out")
    half = float(t.ppf(0.975, behind - 1)) * error
    low, high = middle - half, middle + half
    if not mean:
        # The bias is the estimate's own: it may lead beyond what an average precision can be.
        inside = min(max(middle, 0.05 * value), 1 - 0.05 * (1 - value), 1 - 1e-6)
        half /= inside * (1 - inside)
        low, high = sigmoid(logit(inside) + np.array([-half, half])).tolist()
    return Estimate(value, max(0.0, min(low, value)), min(1.0, max(high, value)), "jackknife")


def _jackknife(value: float, without: NDArray[np.float64]) -> tuple[float, float]:
    """Return the value less its bias, and its standard error."""
    found = np.where(np.isfinite(without), without, value)
    n = len(found)
    bias = (n - 1) * float(found.mean() - value)
    return value - bias, float(np.sqrt((n - 1) / n * ((found - found.mean()) ** 2).sum()))


# ---- differences and errors ------------------------------------------------------------------------------------------


def difference_estimate(first: Influence, second: Influence) -> Estimate:
    """Return ``first`` minus ``second``, of the same patients."""
    found = combined([first, second], [1, -1], min(first.behind, second.behind))
    if found.behind < FEWEST:
        return _too_few(found.value, found.behind)
    # What few patients don't show is nearly the same in both.
    error = float(np.sqrt((found.effects**2).sum()))
    if error <= 0:
        return Estimate(found.value, missing="no patient makes a difference")
    half = found.quantile * error
    return Estimate(found.value, found.value - half, found.value + half, "t")


def error_estimate(bins: NDArray[np.float64], patients: NDArray[np.int64], n_patients: int) -> Estimate:
    """
    Return the mean over m observations of the absolute differences of their bins.

    Parameters
    ----------
    bins
        (m, bins): in an observation's own bin, its difference.
    """
    from scipy.stats import norm

    m = len(bins)
    means = bins.mean(axis=0)
    value = float(np.abs(means).sum())
    behind = len(np.unique(patients))
    if behind < FEWEST:
        return _too_few(value, behind)
    of_patient = np.zeros((n_patients, bins.shape[1]))
    np.add.at(of_patient, patients, bins / m)
    shares = np.bincount(patients, minlength=n_patients)[:, None] / m
    effects = np.sqrt(behind / (behind - 1)) * (of_patient - shares * means)
    errors = np.sqrt((effects**2).sum(axis=0))
    error = float(np.sqrt(((effects @ np.sign(means)) ** 2).sum()))
    # A difference that is noise has an absolute value all the same: the mean of a folded normal distribution, with
    # as little of a difference behind it as the bin's own error allows.
    least = np.maximum(np.abs(means) - _Z * errors, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(errors > 0, least / errors, 0)
    folded = errors * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) - 2 * least * norm.cdf(-ratio)
    low = value - float(folded.sum()) - _Z * error
    return Estimate(value, max(0.0, low), min(1.0, value + _Z * error), "folded")


def _too_few(value: float, patients: int) -> Estimate:
    return Estimate(value, missing=f"{patients} of {FEWEST} patients that an interval takes")
