"""Local maxima of maps, to a fraction of a cell; and which of them count as one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aneurysm.windows.candidates import RADIUS_MM, best_candidates, map_peaks, window_peaks


def whole(dense, stride=(1, 1, 1)):
    return np.array([[0, 0, 0], np.multiply(dense.shape[1:], stride) - 1], float)


def bowl(shape, summit, site=0, height=5.0, bend=(0.5, 0.3, 0.2)):
    """A paraboloid about ``summit``, in one of 14 channels; the others are low and flat."""
    dense = torch.full((14, *shape), -20.0)
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij")
    fall = sum(b * (g - s) ** 2 for b, g, s in zip(bend, grid, summit))
    dense[site] = torch.from_numpy(height - fall).float()
    return dense


def real(peaks):
    return peaks[torch.isfinite(peaks[:, 1])]


@settings(max_examples=60, deadline=None)
@given(
    summit=st.tuples(st.floats(1, 8), st.floats(1, 10), st.floats(1, 12)),
    stride=st.tuples(*[st.sampled_from([1, 2, 4])] * 3),
    site=st.integers(0, 12),
)
def test_the_summit_of_a_paraboloid_is_found_exactly(summit, stride, site):
    dense = bowl((10, 12, 14), summit, site)
    best = real(map_peaks(dense, stride, whole(dense, stride)))[0].numpy()
    assert best[0] == site
    expected = np.multiply(summit, stride) + (np.array(stride) - 1) / 2
    assert np.allclose(best[2:], expected, atol=1e-3 * max(stride))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), low=st.integers(0, 5), high=st.integers(8, 10))
def test_peaks_are_all_local_maxima_within_the_part(seed, low, high):
    dense = torch.from_numpy(np.random.default_rng(seed).normal(size=(14, 12, 12, 12))).float()
    part = np.array([[low] * 3, [high] * 3], float)
    peaks = real(map_peaks(dense, (1, 1, 1), part)).numpy()
    padded = np.pad(dense[:13].numpy(), ((0, 0), *[(1, 1)] * 3), constant_values=-np.inf)
    highest = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3), (1, 2, 3)).max((4, 5, 6))
    expected = np.argwhere(dense[:13].numpy() == highest)
    expected = expected[((expected[:, 1:] >= low) & (expected[:, 1:] <= high)).all(axis=1)]
    assert len(expected) == len(peaks) > 0
    assert sorted(peaks[:, 1].tolist()) == sorted(dense.numpy()[tuple(expected.T)].tolist())
    cells = np.rint(np.delete(peaks, 1, axis=1))
    assert np.abs(cells[:, None] - expected[None]).max(axis=2).min(axis=1).max() <= 1


def blobs(shape, places, heights, spacing_mm, sigma_mm=1.2, site=4):
    """Gaussian bumps in one channel, of logits up to ``heights`` above a floor of -8; the highest of them counts."""
    dense = torch.full((14, *shape), -8.0)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * spacing_mm
    bumps = [h * np.exp(((grid - p) ** 2).sum(-1) / (-2 * sigma_mm**2)) for p, h in zip(places, heights)]
    dense[site] = torch.from_numpy(np.max(bumps, axis=0) - 8).float()
    return dense


def places_found(dense, spacing_mm, n=10):
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]], affine[3, 3] = spacing_mm, 1
    found = best_candidates(map_peaks(dense, (1, 1, 1), whole(dense)).numpy(), affine, n)
    return np.array([c.lps_mm[::-1] for c in found if c.probability > 0.01]).reshape(-1, 3)


@pytest.mark.parametrize("spacing_mm", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("apart_mm", [5.4, 6.0, 7.4])
def test_two_lesions_of_one_site_farther_apart_than_the_radius_are_both_found(spacing_mm, apart_mm):
    rng = np.random.default_rng(0)
    for _ in range(25):
        way = rng.normal(size=3)
        first = rng.uniform(9, 11, 3)
        pair = [first, first + apart_mm * way / np.linalg.norm(way)]
        found = places_found(blobs([round(20 / spacing_mm)] * 3, pair, (12, 9), spacing_mm), spacing_mm)
        assert len(found) == 2
        np.testing.assert_allclose(found, pair, atol=0.5)


def test_a_peak_that_is_no_candidate_takes_no_other_with_it():
    """In a row of three, 4 mm from each to the next, the middle one is too near to the first; the last is not."""
    places = [[8, 8, 4 + 4 * i] for i in range(3)]
    found = places_found(blobs((16, 16, 20), places, (12, 10, 8), 1.0, sigma_mm=0.8), 1.0)
    np.testing.assert_allclose(found, [places[0], places[2]], atol=0.3)


def test_a_rough_map_about_one_lesion_does_not_hide_another():
    dense = blobs((40, 40, 40), [[12, 12, 12]], [14], 0.5, sigma_mm=4)
    dense[4] += torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, dense.shape[1:])).float()
    dense[4, 36, 36, 36] = 0
    found = places_found(dense, 0.5, n=200)
    assert (np.abs(found - 18).max(axis=1) < 0.3).any()


def test_a_shoulder_of_a_higher_peak_outside_the_part_is_no_peak():
    dense = bowl((12, 12, 12), (6, 6, 9))
    part = np.array([[0, 0, 0], [11, 11, 5]], float)
    found = real(map_peaks(dense, (1, 1, 1), part))
    assert found[found[:, 0] == 0].numel() == 0


@pytest.mark.parametrize("apart_mm, expected", [(RADIUS_MM - 0.5, 1), (RADIUS_MM + 0.5, 2)])
def test_near_peaks_of_one_site_are_one_candidate(apart_mm, expected):
    affine = np.array([[0, 0, 0.5, 0], [0, 0.5, 0, 0], [0.5, 0, 0, 0], [0, 0, 0, 1]])
    peaks = np.array([[2, 1.0, 0, 0, 0], [2, 3.0, 0, apart_mm / 0.5, 0]], np.float32)
    found = best_candidates(peaks, affine, 5)
    assert len(found) == expected
    assert found[0].lps_mm == pytest.approx((0, apart_mm, 0))
    assert found[0].probability == pytest.approx(1 / (1 + np.exp(-3)))


def test_peaks_of_two_sites_at_one_place_are_two_candidates_and_the_most_probable_come_first():
    peaks = np.array([[2, 1.0, 1, 2, 3], [5, 2.0, 1, 2, 3], [1, -np.inf, 0, 0, 0], [0, -4.0, 9, 9, 9]], np.float32)
    assert [c.site for c in best_candidates(peaks, np.eye(4), 9)] == [5, 2, 0]
    assert [c.site for c in best_candidates(peaks, np.eye(4), 1)] == [5]
    assert best_candidates(peaks[:0], np.eye(4), 3) == []


def test_a_flat_map_gives_no_more_than_one_candidate_a_place():
    dense = torch.zeros(14, 10, 10, 10)
    found = best_candidates(map_peaks(dense, (1, 1, 1), whole(dense)).numpy(), np.eye(4), 1000)
    for site in range(13):
        places = np.array([c.zyx for c in found if c.site == site]).reshape(-1, 3)
        apart = np.linalg.norm(places[:, None] - places[None], axis=2)
        assert (apart[~np.eye(len(places), dtype=bool)] >= RADIUS_MM).all()


def test_windows_that_share_a_lesion_place_it_in_their_midst():
    middles = np.array([[z, y, x] for z in (8, 16, 24) for y in (8, 16, 24) for x in (8, 16, 24)], float)
    logits = np.full((27, 14), -6.0, np.float32)
    logits[(middles <= 16).all(axis=1), 4] = 6
    found = window_peaks(logits, middles, (16, 16, 16), 1)
    best = found[found[:, 0] == 4][0]
    assert best[1] == 6
    assert np.allclose(best[2:], 12, atol=0.01)
