"""Local maxima of maps, to a fraction of a cell; and which of them count as one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aneurysm.inference.candidates import RADIUS_MM, best_candidates, map_peaks, window_peaks

MM = np.ones(3)


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
    best = real(map_peaks(dense, stride, MM, whole(dense, stride)))[0].numpy()
    assert best[0] == site
    expected = np.multiply(summit, stride) + (np.array(stride) - 1) / 2
    assert np.allclose(best[2:], expected, atol=1e-3 * max(stride))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), spacing=st.floats(0.4, 3), low=st.integers(0, 5), high=st.integers(6, 11))
def test_peaks_are_local_maxima_within_the_part_and_the_highest_is_among_them(seed, spacing, low, high):
    dense = torch.from_numpy(np.random.default_rng(seed).normal(size=(14, 12, 12, 12))).float()
    part = np.array([[low] * 3, [high] * 3], float)
    peaks = real(map_peaks(dense, (1, 1, 1), MM * spacing, part)).numpy()
    inside = dense[:13].numpy()[(slice(None), *[slice(low, high + 1)] * 3)]
    for site, logit, *zyx in peaks:
        z, y, x = np.rint(zyx).astype(int)
        around = dense[int(site), max(z - 2, 0) : z + 3, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
        assert logit in around.flatten().tolist()
        assert (np.abs(np.array(zyx) - np.clip(zyx, low - 1.5, high + 1.5)) == 0).all()
    site, *cell = np.unravel_index(inside.argmax(), inside.shape)
    cell = np.array(cell) + low
    box = dense[site.item()].numpy()[tuple(slice(max(c - 1, 0), c + 2) for c in cell)]
    if inside.max() >= box.max():
        assert peaks[0, 0] == site
        assert np.abs(peaks[0, 2:] - cell).max() <= 0.5


def test_a_shoulder_of_a_higher_peak_outside_the_part_is_no_peak():
    dense = bowl((12, 12, 12), (6, 6, 9))
    part = np.array([[0, 0, 0], [11, 11, 5]], float)
    found = real(map_peaks(dense, (1, 1, 1), MM, part))
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
    found = best_candidates(map_peaks(dense, (1, 1, 1), MM, whole(dense)).numpy(), np.eye(4), 1000)
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
