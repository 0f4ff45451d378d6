"""The weights of one axis, by the properties that make them right: ramps stay, constants stay, nothing aliases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aneurysm.volume.weights import InPlane, axis_weights, target_axis

gaps = st.lists(st.floats(0.2, 6.0), min_size=3, max_size=40)


@given(gaps=gaps, start=st.floats(-200, 200), spacing=st.floats(0.4, 2.0))
@settings(max_examples=60, deadline=None)
def test_a_ramp_over_uneven_samples_keeps_its_place(gaps, start, spacing):
    samples = start + np.concatenate([[0.0], np.cumsum(gaps)])
    target = target_axis(samples[0], samples[-1], spacing)
    weights = axis_weights(samples, target.positions_mm, spacing, margin_mm=0.0)
    values = weights @ samples
    # Up to the ends, near which the smoothing is narrowed; only float32 weights are in the way.
    assert np.abs(values - target.positions_mm).max() < 1e-5 * max(1, np.abs(samples).max())


@given(gaps=gaps, spacing=st.floats(0.4, 2.0))
@settings(max_examples=40, deadline=None)
def test_rows_sum_to_one_and_no_weight_is_negative(gaps, spacing):
    samples = np.concatenate([[0.0], np.cumsum(gaps)])
    target = target_axis(-1.0, samples[-1] + 1.0, spacing)
    weights = axis_weights(samples, target.positions_mm, spacing, margin_mm=1.0)
    assert np.allclose(np.asarray(weights.sum(axis=1)).ravel(), 1.0, atol=1e-6)
    assert weights.data.min() >= 0


def test_equal_grids_are_copied_exactly():
    samples = np.arange(20.0)
    weights = axis_weights(samples, samples, 1.0, margin_mm=0.5).toarray()
    assert np.array_equal(weights, np.eye(20, dtype=np.float32))


def test_coarse_samples_are_interpolated_linearly_between_two():
    weights = axis_weights(np.array([0.0, 5.0, 10.0]), np.array([0.0, 1.0, 7.5]), 1.0, margin_mm=2.5).toarray()
    assert weights == pytest.approx(np.array([[1, 0, 0], [0.8, 0.2, 0], [0, 0.5, 0.5]]), abs=1e-6)


def test_targets_beyond_the_margin_have_no_weight():
    weights = axis_weights(np.array([0.0, 1.0, 2.0]), np.array([-2.0, -0.4, 2.4, 4.0]), 1.0, margin_mm=0.5).toarray()
    assert weights.sum(axis=1).tolist() == [0, 1, 1, 0]


def test_fine_noise_is_averaged_not_picked():
    # Alternating samples at 0.25 mm can't be shown at 1 mm: picking would give +-1, averaging gives about 0.
    samples = 0.25 * np.arange(400)
    signal = np.where(np.arange(400) % 2, 1.0, -1.0)
    target = target_axis(samples[0], samples[-1], 1.0)
    result = axis_weights(samples, target.positions_mm, 1.0, margin_mm=0.125) @ signal
    assert np.abs(result[2:-2]).max() < 0.03


def test_the_filter_has_the_width_of_the_target_triangle():
    # Variances add: linear interpolation g^2 / 6 and the triangle h^2 / 6 make t^2 / 6 in all. As seen by a
    # quadratic, whose average over a symmetric filter is raised by the filter's variance.
    samples = 0.3 * np.arange(300) - 45.0
    target = np.linspace(-10, 10, 41)
    result = axis_weights(samples, target, 1.0, margin_mm=0.15) @ samples**2
    assert np.mean(result - target**2) == pytest.approx(1 / 6, abs=2e-3)


@pytest.mark.parametrize(
    ("low", "high", "spacing", "size"), [(-0.5, 9.5, 1.0, 10), (0, 10.2, 1.0, 11), (0, 0.4, 1.0, 1)]
)
def test_target_voxels_cover_the_field_of_view_and_are_centred_on_it(low, high, spacing, size):
    axis = target_axis(low, high, spacing)
    assert axis.size == size
    assert axis.positions_mm.mean() == pytest.approx((low + high) / 2)
    assert axis.positions_mm[0] >= low
    assert axis.positions_mm[-1] <= high


def test_a_shift_moves_the_slice_and_uncovers_the_other_side():
    rows = columns = target_axis(-0.5, 19.5, 1.0)
    pixels = np.zeros((20, 20), np.int16)
    pixels[5, 8] = 100
    shrink = InPlane((20, 20), (1.0, 1.0), rows, columns)
    moved = shrink(pixels, (3.0, 0.0))
    assert np.unravel_index(moved.argmax(), moved.shape) == (8, 8)  # (column, row): the row went from 5 to 8
    covered_rows, covered_columns = shrink.covered((3.0, 0.0))
    assert covered_rows.tolist() == [False] * 3 + [True] * 17
    assert covered_columns.all()
