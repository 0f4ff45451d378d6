"""Where patches lie: within the volume, about what was asked for, and every place equally often."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from aneurysm.patches.samplers import block_start, grid_starts, lesion_start, uniform_start
from tests.support.noise_cache import blocks_of

shapes = st.tuples(*[st.integers(1, 120)] * 3)
patches = st.tuples(*[st.integers(1, 100)] * 3)


def inside(start, patch, volume) -> bool:
    """The shorter of the two lies within the longer, along every axis."""
    return all(min(0, n - p) <= s <= max(0, n - p) for s, p, n in zip(start, patch, volume))


def uniform(counts) -> bool:
    return stats.chisquare(counts).pvalue > 1e-4


@given(volume=shapes, patch=patches, seed=st.integers(0, 2**32))
@settings(max_examples=200)
def test_patches_lie_within_the_volume_whatever_the_sampler(volume, patch, seed):
    rng = np.random.default_rng(seed)
    assert inside(uniform_start(rng, volume, patch), patch, volume)
    lesion = np.array([rng.uniform(0, n - 1) for n in volume], np.float32)
    start = lesion_start(rng, volume, patch, lesion, (3, 3, 3))
    assert inside(start, patch, volume)
    assert all(s <= round(float(c)) < s + p for s, c, p in zip(start, lesion, patch))
    counts = tuple(-(-n // 8) for n in volume)
    blocks = blocks_of(volume, tuple(slice(int(rng.integers(c)), None) for c in counts))
    start = block_start(rng, volume, patch, blocks, blocks.head)
    assert inside(start, patch, volume)
    reached = [range(s // 8, (s + p - 1) // 8 + 1) for s, p in zip(start, patch)]
    found = [np.array([k for k in r if 0 <= k < c]) for r, c in zip(reached, counts)]
    assert blocks.head[np.ix_(*found)].any(), "the patch holds none of the blocks it was drawn about"


def test_every_start_is_equally_likely():
    rng = np.random.default_rng(0)
    starts = np.array([uniform_start(rng, (20, 9, 40), (11, 12, 40)) for _ in range(8000)])
    assert starts[:, 2].tolist() == [0] * 8000
    assert set(starts[:, 1]) == {-3, -2, -1, 0}
    assert uniform(np.bincount(starts[:, 0], minlength=10))
    assert uniform(np.bincount(starts[:, 1] + 3))


def test_every_voxel_of_the_head_is_equally_likely_and_its_edges_are_reached():
    volume = (30, 40, 43)  # 43: the last blocks are three voxels thin
    blocks = blocks_of(volume, np.s_[1:3, 0:4, 3:6])
    rng = np.random.default_rng(1)
    focus = np.array([block_start(rng, volume, (1, 1, 1), blocks, blocks.head) for _ in range(12000)])
    for axis, (low, high) in enumerate([(8, 24), (0, 32), (24, 43)]):
        assert focus[:, axis].min() == low
        assert focus[:, axis].max() == high - 1
        assert uniform(np.bincount(focus[:, axis] - low, minlength=high - low))
    chunk = focus // 8
    full = (chunk[:, 2] < 5).sum() / (chunk[:, 2] == 5).sum()
    assert abs(full - 16 / 3) < 0.5, "thin blocks at the face are drawn as often as whole ones"


def test_a_patch_lies_anywhere_about_its_focus():
    volume, patch = (200, 200, 200), (64, 64, 64)
    blocks = blocks_of(volume, np.s_[12:13, 12:13, 12:13])
    rng = np.random.default_rng(2)
    starts = np.array([block_start(rng, volume, patch, blocks, blocks.head) for _ in range(6000)])
    middle = starts + 32 - 100
    assert abs(middle.mean(axis=0)).max() < 1
    assert middle.min() < -16
    assert middle.max() > 16


def test_a_lesion_lies_anywhere_in_the_patch_but_for_the_margin():
    rng = np.random.default_rng(3)
    lesion = np.array([100.4, 90.0, 110.0], np.float32)
    starts = np.array([lesion_start(rng, (200, 200, 200), (64, 48, 32), lesion, (6, 6, 6)) for _ in range(8000)])
    at = np.round(lesion) - starts
    for axis, patch in enumerate((64, 48, 32)):
        assert at[:, axis].min() == 6
        assert at[:, axis].max() == patch - 7
        assert uniform(np.bincount(at[:, axis].astype(int) - 6))


def test_near_a_face_the_margin_gives_way_and_the_patch_stays_inside():
    rng = np.random.default_rng(4)
    for lesion in ([2, 2, 2], [197, 198, 199]):
        start = lesion_start(rng, (200, 200, 200), (64, 64, 64), np.array(lesion, np.float32), (6, 6, 6))
        assert start in {(0, 0, 0), (136, 136, 136)}


@given(volume=shapes, patch=patches, overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]))
@settings(max_examples=150)
def test_a_grid_covers_every_voxel(volume, patch, overlap):
    starts = grid_starts(volume, patch, overlap)
    assert len(set(starts)) == len(starts)
    assert starts == sorted(starts)
    for axis, (n, p) in enumerate(zip(volume, patch)):
        along = sorted({s[axis] for s in starts})
        assert along[0] <= 0
        assert along[-1] + p >= n
        assert inside((along[0],), (p,), (n,))
        assert inside((along[-1],), (p,), (n,))
        assert all(b - a <= max(1, p * (1 - overlap)) for a, b in pairwise(along))
    assert len(starts) == np.prod([len({s[k] for s in starts}) for k in range(3)])


def test_a_grid_of_known_starts():
    assert grid_starts((100, 64, 50), (64, 64, 64), 0.5) == [(0, 0, -7), (18, 0, -7), (36, 0, -7)]
    with pytest.raises(ValueError, match="overlap"):
        grid_starts((10, 10, 10), (5, 5, 5), 1.0)
