"""Log-odds and back, at both ends of float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aneurysm.probability import apply_temperature, logit, mean_of_logits, sigmoid

PROBABILITIES = st.floats(0, 1, allow_subnormal=False)


def test_known_values():
    assert logit([0.5, 0.75, 0.25]) == pytest.approx([0, np.log(3), -np.log(3)])
    assert sigmoid([0, np.log(3), -np.log(3)]) == pytest.approx([0.5, 0.75, 0.25])


def test_only_0_and_1_are_clipped():
    assert logit([0.0, 1.0]) == pytest.approx([-708.396, 36.737], abs=1e-3)
    sure = np.array([1e-300, 1e-16, 1e-9, 1 - 1e-9, 1 - 1e-15])
    assert logit(sure)[:3] == pytest.approx(np.log(sure[:3]))
    assert (np.diff(logit(sure)) > 0).all()


def test_extreme_logits_do_not_overflow():
    assert sigmoid([-1e6, -800, 800, 1e6]).tolist() == [0, 0, 1, 1]
    assert sigmoid([-700.0])[0] == pytest.approx(np.exp(-700))


@given(PROBABILITIES)
def test_there_and_back_is_the_same_to_rounding(p):
    assert float(sigmoid(logit(p))) == pytest.approx(p, rel=1e-12, abs=1e-300)


@given(st.lists(PROBABILITIES, min_size=1, max_size=30), st.integers(1, 5))
def test_the_mean_of_models_that_agree_is_what_they_say(values, models):
    assert mean_of_logits([values] * models).tolist() == values


def test_the_mean_is_of_log_odds():
    # Odds of 9 and 1: their geometric mean is 3.
    assert mean_of_logits([[0.9, 0.2], [0.5, 0.2]]) == pytest.approx([0.75, 0.2])


def test_applying_a_temperature_keeps_the_order_and_a_half():
    p = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    cooled = apply_temperature(p, 2.0)
    assert (np.diff(cooled) > 0).all()
    assert cooled[2] == 0.5
    np.testing.assert_allclose(logit(cooled[1:4]), logit(p[1:4]) / 2)


@given(PROBABILITIES, st.floats(0.05, 20), st.integers(1, 40))
def test_one_value_is_the_same_to_the_bit_alone_and_in_any_array(p, temperature, n):
    alone = float(apply_temperature(p, temperature))
    assert apply_temperature(np.full(n, p), np.full(n, temperature)).tolist() == [alone] * n
    assert apply_temperature(np.full((n, 2), p)[:, 0], temperature).tolist() == [alone] * n
    assert float(apply_temperature(p, 1.0)) == p
