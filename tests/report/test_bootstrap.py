"""Metrics of all samples at once are scikit-learn's of each, drawn one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from aneurysm.report.bootstrap import patient_weights, ranked_samples


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 6))
def test_samples_are_scored_as_scikit_learn_does_with_ties(seed, n, distinct):
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.5
    positive[0] = True
    scores = rng.integers(0, distinct, n) / 7
    weights = rng.integers(0, 3, (5, n)).astype(np.float32)
    drawn = ranked_samples(positive, scores, weights, np.arange(n))
    for w, auc, precision in zip(weights, drawn.auc(), drawn.average_precision(), strict=True):
        y, p = np.repeat(positive, w.astype(int)), np.repeat(scores, w.astype(int))
        if y.all() or not y.any():
            assert np.isnan(auc)
            assert np.isnan(precision)
        else:
            assert np.isclose(auc, roc_auc_score(y, p))
            assert np.isclose(precision, average_precision_score(y, p))


@pytest.mark.parametrize("distinct", [5, 10_000], ids=["ties", "no ties"])
def test_the_samples_curves_are_those_that_are_drawn(distinct):
    rng = np.random.default_rng(0)
    positive, scores = np.arange(306) < 6, rng.integers(0, distinct, 306) / 7
    weights = np.concatenate([np.ones((1, 306)), patient_weights(np.arange(306).astype(str), 5, 0)]).astype(np.float32)
    drawn, grid = ranked_samples(positive, scores, weights, np.arange(306)), np.linspace(0, 1, 101)
    fine = np.linspace(0, 1, 200_001)
    np.testing.assert_allclose(drawn.roc(fine).mean(axis=1), drawn.auc(), atol=1e-4)
    np.testing.assert_allclose(drawn.precision(fine).mean(axis=1), drawn.average_precision(), atol=1e-4)
    for w, roc, precision in zip(weights, drawn.roc(grid), drawn.precision(grid)):
        y, p = np.repeat(positive, w.astype(int)), np.repeat(scores, w.astype(int))
        x, height, _ = roc_curve(y, p, drop_intermediate=False)
        np.testing.assert_allclose(roc, np.interp(grid + 1e-9, x, height), atol=1e-6)
        values, recalls, _ = precision_recall_curve(y, p)
        # Of the points that reach a sensitivity, the last before the curve's end is of the highest threshold.
        expected = [values[np.flatnonzero(recalls >= max(r - 1e-9, 1e-9))[-1]] for r in grid]
        np.testing.assert_allclose(precision, expected)


def test_many_thresholds_are_counted_in_chunks_as_in_one():
    rng = np.random.default_rng(0)
    positive, scores = rng.random(1500) < 0.6, rng.random(1500)
    drawn = ranked_samples(positive, scores, np.ones((1, 1500), np.float32), np.arange(1500))
    assert drawn.true_positives.shape[1] > 512
    assert np.isclose(drawn.auc()[0], roc_auc_score(positive, scores))


def test_several_observations_of_one_series_are_drawn_together():
    positive, scores = np.array([True, False, True, False]), np.array([0.9, 0.5, 0.4, 0.6])
    weights = np.array([[1, 0], [0, 1], [2, 1]], np.float32)
    drawn = ranked_samples(positive, scores, weights, np.array([0, 0, 1, 1]))
    # Pairs right: (0.9 over 0.5), (0.4 over 0.6: wrong); in the third, 2 x 2 + 2 x 1 of the 3 x 3 pairs.
    np.testing.assert_allclose(drawn.auc(), [1, 0, 6 / 9])


def test_a_patient_is_drawn_with_all_series():
    patients = np.array(["a", "b", "a", "c", "b"])
    weights = patient_weights(patients, 200, seed=1)
    assert weights.shape == (200, 5)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)
    np.testing.assert_array_equal(weights, patient_weights(patients, 200, seed=1))
    assert (weights != patient_weights(patients, 200, seed=2)).any()
