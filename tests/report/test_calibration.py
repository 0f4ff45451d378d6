"""Temperatures: found again where they are known, and the error they are to mend."""

import numpy as np
import pytest

from aneurysm.probability import apply_temperature, sigmoid
from aneurysm.report.calibration import TEMPERATURES, calibrate, calibration_error, fit_temperature
from aneurysm.report.run_tables import Predictions
from aneurysm.report.thresholds import patient_halves


def overconfident(n, temperature, seed=0):
    """True probabilities, and what a model makes of them that divides by too little."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-0.5, 1.5, n)
    return rng.random(n) < sigmoid(logits), sigmoid(logits * temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found(temperature):
    positive, given = overconfident(20_000, temperature)
    assert fit_temperature(positive, given) == pytest.approx(temperature, rel=0.05)


def test_classes_apart_and_one_class_have_none():
    positive = np.arange(20) < 10
    assert fit_temperature(positive, np.where(positive, 0.6, 0.4)) is None
    assert fit_temperature(positive, np.where(positive, 0.4, 0.6)) is None
    assert fit_temperature(np.zeros(5, bool), np.linspace(0, 0.4, 5)) is None


def predictions_of(positive, given):
    """Of present alone."""
    n = len(positive)
    truth, probabilities = np.full((n, 14), 255, np.uint8), np.full((n, 14), 0.5)
    truth[:, 13], probabilities[:, 13] = positive, given
    names = np.array([f"{i:05}" for i in range(n)])
    return Predictions(names, names, names, np.zeros(n, np.int64), probabilities, truth)


@pytest.mark.parametrize("positives", [4, 5])
def test_a_temperature_takes_five_of_each_class_in_each_half(positives):
    """The halves are scored alike, and no half is parted perfectly."""
    second = np.repeat([False, True], 50)
    positive = np.arange(100) % 50 < positives
    given = np.where(positive, 0.6, 0.1)
    given[[0, 49, 50, 99]] = 0.2, 0.7, 0.2, 0.7
    p = predictions_of(positive, given)
    found = calibrate(p, second).labels[13]
    if positives == 5:
        assert found.temperature > TEMPERATURES[0]
        assert found.missing == ""
    else:
        assert found.temperature is None
        assert found.missing == "fewer than 5 positives or negatives in one half of the patients"
        assert found.ece_after.value is None


def test_one_half_that_is_parted_perfectly_has_no_temperature():
    second = np.repeat([False, True], 50)
    positive = np.arange(100) % 5 == 0
    given = np.where(positive, 0.6, 0.4)
    given[0] = 0.3
    p = predictions_of(positive, given)
    found = calibrate(p, second)
    assert found.labels[13].temperature is None
    assert found.labels[13].missing == "none from 0.05 to 20 fits"
    np.testing.assert_array_equal(found.probabilities, p.probabilities)


def test_the_error_of_a_case_worked_by_hand():
    # Two bins: 0.1 and 0.2 share one or not by 1/15 steps; here 0.03, 0.05 are together, 0.97 alone.
    positive, p = np.array([True, False, True]), np.array([0.03, 0.05, 0.97])
    assert calibration_error(positive, p, np.arange(3)).value == pytest.approx((abs(0.08 - 1) + abs(0.97 - 1)) / 3)


def test_calibrating_mends_what_is_too_sure_with_the_other_half():
    n = 4000
    truth, given = np.full((n, 14), 255, np.uint8), np.full((n, 14), 0.5)
    positive, given[:, 13] = overconfident(n, 3.0)
    truth[:, 13] = positive
    truth[:, 0], given[:, 0] = 0, 0.1
    names = np.arange(n).astype(str)
    predictions = Predictions(names, names, names, np.zeros(n, np.int64), given, truth)
    second = patient_halves(predictions, 0)
    found = calibrate(predictions, second)
    present, one_class, unknown = found.labels[13], found.labels[0], found.labels[1]
    assert present.temperature == pytest.approx(3.0, rel=0.1)
    assert present.ece_after.value < 0.3 * present.ece_before.value
    first = fit_temperature(positive[~second], given[~second, 13])
    np.testing.assert_allclose(found.probabilities[second, 13], apply_temperature(given[second, 13], first))
    assert one_class.temperature is None
    assert one_class.ece_before.value == pytest.approx(0.1)
    assert unknown.ece_before.value is None
    np.testing.assert_array_equal(found.probabilities[:, 0], given[:, 0])


def test_the_errors_interval_holds_it_and_is_that_of_its_bins():
    """Of probabilities that are right, too, where noise alone makes up the error."""
    for seed in range(20):
        positive, given = overconfident(300, 1.0, seed)
        found = calibration_error(positive, given, np.arange(300))
        assert found.low <= found.value <= found.high
        assert found.low < 0.01  # the true error is 0
    # One bin, of 0.5: the error is |0.5 - share|, as uncertain as the share.
    positive = np.arange(400) < 120
    found = calibration_error(positive, np.full(400, 0.5), np.arange(400))
    half = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=0.004)
