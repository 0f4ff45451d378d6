"""Thresholds: what they are chosen for, and that no series is judged by a threshold it helped to choose."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, precision_score

from aneurysm.report.ranking import PRESENT
from aneurysm.report.run import read_run
from aneurysm.report.thresholds import (
    operate,
    patient_halves,
    present_by,
    threshold_for_f1,
    threshold_for_precision,
)
from tests.support.fake_runs import fake_series, write_run


@pytest.fixture(scope="module")
def predictions(tmp_path_factory):
    return read_run(write_run(tmp_path_factory.mktemp("r") / "run", fake_series(400, 5), n_folds=1)).predictions


def test_the_smallest_threshold_that_reaches_the_precision(predictions):
    y, p = predictions.positive(PRESENT), predictions.probabilities[:, PRESENT]
    found = threshold_for_precision(y, p, 0.8)
    assert found.reached
    assert precision_score(y, p >= found.value) >= 0.8
    assert all(precision_score(y, p >= t) < 0.8 for t in p if t < found.value)


def test_a_precision_out_of_reach_is_said_to_be():
    found = threshold_for_precision(np.array([False, True, False, False]), np.array([0.9, 0.8, 0.2, 0.1]), 0.8)
    assert not found.reached
    assert found.value == 0.8


def test_the_best_f1(predictions):
    y, p = predictions.positive(2), predictions.probabilities[:, 2]
    best = max(f1_score(y, p >= t) for t in p)
    assert f1_score(y, p >= threshold_for_f1(y, p).value) == pytest.approx(best)


def test_halves_hold_whole_patients_and_share_rare_labels(predictions):
    second = patient_halves(predictions, 0)
    for patient in np.unique(predictions.patients):
        assert len(set(second[predictions.patients == patient])) == 1
    assert abs(second.mean() - 0.5) < 0.05
    for label in range(14):
        positive = predictions.positive(label)
        if len(np.unique(predictions.patients[positive])) >= 4:
            assert 0 < second[positive].sum() < positive.sum()
    np.testing.assert_array_equal(second, patient_halves(predictions, 0))
    assert (second != patient_halves(predictions, 1)).any()


def test_each_half_is_judged_by_the_other_halfs_threshold(predictions):
    second = patient_halves(predictions, 0)
    found = operate(predictions, second, 0.8)
    point = found.labels[PRESENT]
    y, p = predictions.positive(PRESENT), predictions.probabilities[:, PRESENT]
    thresholds = [threshold_for_precision(y[half], p[half], 0.8).value for half in (~second, second)]
    assert [t.value for t in point.halves] == thresholds
    called = np.where(second, p >= thresholds[0], p >= thresholds[1])
    tn, fp, fn, tp = confusion_matrix(y, called).ravel()
    counts = point.counts
    assert (counts.true_positive, counts.false_negative) == (tp, fn)
    assert (counts.false_positive, counts.true_negative) == (fp, tn)
    assert point.rates.sensitivity.value == pytest.approx(tp / (tp + fn))
    assert point.rates.specificity.value == pytest.approx(tn / (tn + fp))
    assert point.rates.f1.value == pytest.approx(f1_score(y, called))
    assert point.rates.sensitivity.low < point.rates.sensitivity.value < point.rates.sensitivity.high
    np.testing.assert_array_equal(found.called[:, PRESENT], called)
    scores = [f1_score(predictions.positive(i), found.called[:, i] == 1, zero_division=0) for i in range(PRESENT)]
    assert found.macro.f1.value == pytest.approx(np.mean(scores))
    sites = f1_score((predictions.truth[:, :PRESENT] == 1).ravel(), (found.called[:, :PRESENT] == 1).ravel())
    assert found.micro.f1.value == pytest.approx(sites)


def test_micro_and_macro_sensitivity_and_specificity(predictions):
    found = operate(predictions, patient_halves(predictions, 0), 0.8)
    y, called = predictions.truth[:, :PRESENT] == 1, found.called[:, :PRESENT] == 1
    assert found.micro.sensitivity.value == pytest.approx(called[y].mean())
    assert found.micro.specificity.value == pytest.approx((~called)[~y].mean())
    assert found.macro.sensitivity.value == pytest.approx(np.mean([called[y[:, i], i].mean() for i in range(PRESENT)]))
    assert found.macro.specificity.low < found.macro.specificity.value < found.macro.specificity.high


def test_decisions_about_present_by_group(predictions):
    operation = operate(predictions, patient_halves(predictions, 0), 0.8)
    found = present_by(predictions, operation, predictions.modalities)
    of = predictions.modalities == "CTA"
    y, called = predictions.positive(PRESENT)[of], operation.called[of, PRESENT]
    assert found["CTA"].f1.value == pytest.approx(f1_score(y, called))
    assert found["CTA"].sensitivity.value == pytest.approx(called[y].mean())
    assert set(found) == set(predictions.modalities.tolist())


@pytest.mark.parametrize("n", [4, 5])
def test_no_interval_from_fewer_than_five_positives(predictions, n):
    changed = predictions.select(np.arange(len(predictions)))
    changed.truth[:, :PRESENT] = 0
    changed.truth[:n, 2] = 1
    changed.probabilities[:n, 2] = [0.9, 0.9, 0.01, 0.01, 0.9][:n]
    changed = replace(changed, patients=changed.uids)
    second = np.arange(len(changed)) % 2 == 1
    found = operate(changed, second, 0.8)
    assert found.labels[2].rates.sensitivity.value is not None
    for rates in (found.labels[2].rates, found.macro, found.micro):
        assert (rates.sensitivity.low is None, rates.f1.low is None) == (n < 5, n < 5)


def test_a_label_with_one_positive_has_no_threshold(predictions):
    changed = predictions.select(np.arange(len(predictions)))
    changed.truth[:, 3] = 0
    changed.truth[0, 3] = 1
    found = operate(changed, patient_halves(changed, 0), 0.8)
    assert found.labels[3].threshold is None
    assert found.labels[3].missing == "one half of the patients has only one class"
    assert (found.called[:, 3] == -1).all()
