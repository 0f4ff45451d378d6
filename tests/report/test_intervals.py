"""Intervals with known answers, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import average_precision_score, roc_auc_score

from aneurysm.report.bootstrap import ranked_samples
from aneurysm.report.intervals import (
    FEWEST,
    MOST_GROUPS,
    Estimate,
    Influence,
    auc_estimate,
    auc_influence,
    combined,
    difference_estimate,
    error_estimate,
    left_out_weights,
    mean_estimate,
    precision_estimate,
    sampled_estimate,
    share_estimate,
    share_influence,
)


def scored(rng, positives, negatives, shift):
    positive = np.arange(positives + negatives) < positives
    return positive, rng.normal(positive * shift)


def delong_variance(positive, scores):
    """DeLong's, by its definition: the variances of each observation's share of pairs in the right order."""
    right = (scores[positive][:, None] > scores[~positive]) + 0.5 * (scores[positive][:, None] == scores[~positive])
    return right.mean(1).var(ddof=1) / positive.sum() + right.mean(0).var(ddof=1) / (~positive).sum()


@pytest.mark.parametrize("distinct", [6, None], ids=["ties", "no ties"])
def test_without_clusters_the_influence_is_delongs(distinct):
    rng = np.random.default_rng(0)
    positive, scores = scored(rng, 30, 70, 1.0)
    if distinct:
        scores = np.round(scores * distinct / 4)
    found = auc_influence(positive, scores, np.arange(100), 100).influence
    assert found.value == pytest.approx(roc_auc_score(positive, scores))
    assert (found.effects**2).sum() == pytest.approx(delong_variance(positive, scores))


def test_a_series_that_stands_twice_is_no_second_patient():
    rng = np.random.default_rng(1)
    positive, scores = scored(rng, 20, 60, 1.0)
    once = auc_influence(positive, scores, np.arange(80), 80)
    twice = auc_influence(np.tile(positive, 2), np.tile(scores, 2), np.tile(np.arange(80), 2), 80)
    assert (twice.positives, twice.negatives) == (20, 60)
    np.testing.assert_allclose(twice.influence.effects, once.influence.effects, atol=1e-12)
    ends = [(found.low, found.high) for found in (auc_estimate(twice), auc_estimate(once))]
    assert ends[0] == pytest.approx(ends[1])


def test_newcombes_interval_by_its_equation():
    rng = np.random.default_rng(2)
    positive, scores = scored(rng, 12, 90, 1.2)
    found = auc_estimate(auc_influence(positive, scores, np.arange(102), 102))
    m, n = 12, 90
    middle = (m + n) / 2 - 1

    def variance(auc):
        return auc * (1 - auc) * (1 + middle * (1 - auc) / (2 - auc) + middle * auc / (1 + auc)) / (m * n)

    wider = max(1, delong_variance(positive, scores) / variance(found.value))
    for end in (found.low, found.high):
        assert (end - found.value) ** 2 == pytest.approx(1.959964**2 * wider * variance(end), rel=1e-6)
    assert 0 < found.low < found.value < found.high < 1
    assert found.kind == "newcombe"


def test_perfect_ranks_are_no_certainty():
    positive = np.arange(60) < 6
    found = auc_estimate(auc_influence(positive, positive.astype(float), np.arange(60), 60))
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.6 < found.low < 0.95
    found = auc_estimate(auc_influence(positive, -positive.astype(float), np.arange(60), 60))
    assert (found.value, found.low) == (0.0, 0.0)
    assert 0.05 < found.high < 0.4


@pytest.mark.parametrize("k, n", [(0, 6), (6, 6), (3, 11), (40, 90)])
def test_a_plain_share_has_wilsons_interval(k, n):
    found = share_estimate(share_influence((np.arange(n) < k).astype(float), np.ones(n), np.arange(n), n), n)
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((k / n, expected.low, expected.high), abs=1e-6)


def test_a_share_of_patients_who_are_alike_is_that_of_as_many_patients():
    hits = (np.arange(40) % 4 > 0).astype(float)
    twice = share_estimate(share_influence(np.repeat(hits, 2), np.ones(80), np.repeat(np.arange(40), 2), 40), 80)
    once = binomtest(30, 40).proportion_ci(method="wilson")
    assert twice.high - twice.low == pytest.approx(once.high - once.low, rel=0.1)
    assert twice.high - twice.low > once.high - once.low


@pytest.mark.parametrize("patients", [FEWEST - 1, FEWEST])
def test_too_few_patients_are_said_beside_the_number(patients):
    """However many series they have."""
    hits, of = np.tile([1.0, 0.0, 1.0], patients), np.repeat(np.arange(patients), 3)
    found = share_estimate(share_influence(hits, np.ones(len(hits)), of, patients), len(hits))
    assert found.value == pytest.approx(2 / 3)
    assert (found.low is None) == (patients < FEWEST)
    assert found.missing == ("4 of 5 patients that an interval takes" if patients < FEWEST else "")
    assert str(Estimate(0.5)) == "0.500"
    assert str(Estimate(None)) == "n/a"


def test_nothing_to_share_is_no_value():
    assert share_estimate(share_influence(np.zeros(9), np.zeros(9), np.arange(9), 9), 0) == Estimate(None)


def test_the_score_is_the_sum_of_its_parts_of_the_same_patients():
    """Two labels with the same scores vary together: the mean of both is no surer than one."""
    rng = np.random.default_rng(3)
    positive, scores = scored(rng, 40, 80, 1.0)
    one = auc_influence(positive, scores, np.arange(120), 120).influence
    both = combined([one, one], [0.5, 0.5], 40)
    assert both.value == pytest.approx(one.value)
    assert (both.effects**2).sum() == pytest.approx((one.effects**2).sum())
    other = auc_influence(positive, rng.normal(positive * 1.0), np.arange(120), 120).influence
    assert (combined([one, other], [0.5, 0.5], 40).effects ** 2).sum() < 0.8 * (one.effects**2).sum()
    found = mean_estimate(both)
    assert found.low < both.value < found.high


def test_patients_are_left_out_one_by_one_or_in_groups():
    weights = left_out_weights(np.array([0, 0, 1, 2]), 3)
    assert sorted(map(tuple, weights.tolist())) == [(0, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)]
    n = 2 * MOST_GROUPS + 5
    many = left_out_weights(np.arange(n), n)
    assert many.shape == (MOST_GROUPS, n)
    np.testing.assert_array_equal((many == 0).sum(axis=0), 1)
    assert set((many == 0).sum(axis=1)) == {2, 3}


def test_the_jackknife_is_that_of_average_precisions_without_each_patient():
    rng = np.random.default_rng(4)
    positive, scores = scored(rng, 10, 40, 1.0)
    patients = np.arange(50) // 2
    without = ranked_samples(positive, scores, left_out_weights(patients, 25), np.arange(50)).average_precision()
    expected = [average_precision_score(positive[patients != k], scores[patients != k]) for k in range(25)]
    np.testing.assert_allclose(np.sort(without), np.sort(expected))
    value = average_precision_score(positive, scores)
    found = precision_estimate(value, without, 5)
    assert 0 <= found.low <= value <= found.high <= 1
    plain = precision_estimate(value, without, 1000, mean=True)
    middle = value - 24 * (np.mean(expected) - value)
    half = 1.962 * np.sqrt(24 / 25 * np.square(expected - np.mean(expected)).sum())
    assert plain.low == pytest.approx(max(0, min(value, middle - half)), abs=1e-3)
    assert plain.high == pytest.approx(min(1, max(value, middle + half)), abs=1e-3)


def test_a_difference_of_two_models_is_that_of_their_patients():
    effects = np.random.default_rng(5).normal(size=200) / 200
    first, second = (Influence(value, effects * k, 0.0, 50) for value, k in ((0.9, 1.1), (0.8, 1.0)))
    found = difference_estimate(first, second)
    assert found.value == pytest.approx(0.1)
    assert found.high - found.value == pytest.approx(1.98 * 0.1 * np.sqrt((effects**2).sum()), rel=0.02)
    assert difference_estimate(first, first).missing == "no patient makes a difference"


def test_a_sampled_share_has_the_interval_of_its_variance():
    rng = np.random.default_rng(6)
    found = sampled_estimate(0.7, rng.normal(0.7, 0.1, 4000), 100, 50)
    # 0.7 * 0.3 / (0.1 ** 2 * 50 / 49) observations.
    expected = binomtest(144, 206).proportion_ci(method="wilson")
    assert found.high - found.low == pytest.approx((expected.high - expected.low) * np.sqrt(206 / 20.6), rel=0.1)
    assert sampled_estimate(1.0, np.ones(100), 20, 20).low == pytest.approx(
        binomtest(20, 20).proportion_ci(method="wilson").low
    )


def coverage(draw, truth, rounds=200):
    """How often, in per cent, the interval of ``draw()`` holds the truth."""
    found = [draw() for _ in range(rounds)]
    return 100 * np.mean([x.low <= truth <= x.high for x in found])


@pytest.mark.parametrize("positives", [5, 10])
@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_the_auc_of_few_positives_is_covered(positives, shift):
    rng = np.random.default_rng(7)
    patients = np.arange(positives + 100)

    def draw():
        return auc_estimate(auc_influence(*scored(rng, positives, 100, shift), patients, len(patients)))

    # With a standard error of 1.5 at 95.
    assert coverage(draw, norm.cdf(shift / np.sqrt(2))) >= 91


def test_two_series_of_a_patient_are_covered_as_one_is():
    rng = np.random.default_rng(8)
    positive, patients = np.repeat(np.arange(60) < 12, 2), np.repeat(np.arange(60), 2)

    def draw():
        scores = positive * 1.2 + np.repeat(rng.normal(size=60), 2) * 0.9 + rng.normal(size=120) * np.sqrt(0.19)
        return auc_estimate(auc_influence(positive, scores, patients, 60))

    assert coverage(draw, norm.cdf(1.2 / np.sqrt(2))) >= 91


def test_the_error_of_right_probabilities_may_be_0():
    rng = np.random.default_rng(9)

    def draw():
        p = rng.uniform(0, 1, 150)
        bins = np.zeros((150, 15))
        bins[np.arange(150), (p * 15).astype(int)] = p - (rng.random(150) < p)
        return error_estimate(bins, np.arange(150), 150)

    assert coverage(draw, 0.0) >= 91
