"""The rim of a volume: half a voxel beyond the outermost centres belongs to it, with the edge's own values."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.acquisition import PLANES, acquire
from tests.support.cached import cached
from tests.support.pattern import Pattern, level_but_one
from tests.support.series import write_series


@pytest.mark.parametrize("plane", PLANES)
def test_a_constant_series_stays_constant_to_the_last_voxel(tmp_path, plane):
    acquisition = acquire(plane, spacing_mm=(0.7, 1.3), gap_mm=2.4, slices=9)
    write_series(tmp_path / "s", acquisition, level_but_one((9, 32, 28), 437.0))
    image = cached(tmp_path / "s")
    middle = acquisition.lps(4, x=14, y=16)
    # A voxel of 1.3 mm in plane, one of 2.4 mm across, and what linear weights spread it over.
    beyond = np.abs(image.centres() - middle).max(axis=-1) > 4
    assert (image.physical[beyond] == 437).all()
    assert not (image.physical[~beyond] == 437).all()


def test_values_beyond_the_outermost_centres_are_those_of_the_edge(tmp_path):
    acquisition = acquire(gap_mm=4, slices=5, shape=(8, 8), spacing_mm=(3.0, 3.0))
    values = np.zeros((5, 8, 8))
    values[0], values[-1] = 300.0, 700.0
    write_series(tmp_path / "s", acquisition, values)
    image = cached(tmp_path / "s")
    assert image.stored.shape == (20, 24, 24)
    # Slices lie at 0, 4, ... mm; voxel centres at -1.5, -0.5, 0.5, ...
    assert (image.physical[:2] == 300).all()
    assert (image.physical[-2:] == 700).all()
    assert np.allclose(image.physical[2], 300 * (1 - 0.5 / 4), atol=0.51)


@pytest.mark.parametrize("gap_mm", [0.5, 1.0, 2.5, 7.0])
def test_the_field_of_view_reaches_half_a_gap_beyond_the_last_slice(tmp_path, gap_mm):
    slices = round(21 / gap_mm)
    acquisition = acquire(gap_mm=gap_mm, slices=slices)
    write_series(tmp_path / "s", acquisition, level_but_one((slices, 32, 28), 100.0))
    image = cached(tmp_path / "s")
    assert image.stored.shape[0] == int(np.ceil(slices * gap_mm - 1e-6))
    first, last = image.centres()[0, 0, 0, 2], image.centres()[-1, 0, 0, 2]
    middle = acquisition.positions[:, 2].mean()
    assert (first + last) / 2 == pytest.approx(middle, abs=1e-3)


def test_a_field_of_view_that_is_a_whole_number_of_voxels_gets_no_voxel_more(tmp_path):
    """0.1 * 240 is 24.000000000000004 to a computer."""
    acquisition = acquire(spacing_mm=(0.1, 0.3), gap_mm=0.7, slices=30, shape=(240, 70))
    write_series(tmp_path / "s", acquisition, level_but_one((30, 240, 70), 100.0))
    assert cached(tmp_path / "s").stored.shape == (21, 24, 21)


@pytest.mark.parametrize("spacing_mm", [0.3, 0.45, 0.7, 1.0, 1.6])
def test_a_ramp_is_exact_up_to_the_outermost_centres(tmp_path, spacing_mm):
    """Averaging that is cut off on one side only would move structures near the rim inwards."""
    count = round(16 / spacing_mm)
    acquisition = acquire(
        spacing_mm=(spacing_mm, spacing_mm), gap_mm=spacing_mm, slices=count, shape=(count + 1, count + 2)
    )
    pattern = Pattern(acquisition.centre, 300.0, (16.0, -20.0, 24.0), ())
    write_series(tmp_path / "s", acquisition, pattern)
    image = cached(tmp_path / "s")
    points = image.centres()
    corners = acquisition.points().reshape(-1, 3)
    within = ((points >= corners.min(axis=0)) & (points <= corners.max(axis=0))).all(axis=-1)
    assert within.sum() > 1000
    # Rounding of the file and of the cache, half a unit each; 0.1 mm along z would be 2.4 HU.
    assert np.abs(image.physical - pattern(points))[within].max() <= 1.01
