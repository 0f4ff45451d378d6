"""Which slices are picked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aneurysm.patches.views.config import SlicesConfig
from tests.support.heads_in_memory import head

MM = (1.0, 1.0, 1.0)


def slices(volume, rng=None, **options) -> list[int]:
    view = SlicesConfig(**{"stack": "bag", "size_mm": 300, **options}).build(MM)
    return [picture.first for picture in view.choose(volume, rng)[view.channels // 2]]


def test_even_ones_lie_at_quarters_of_the_head():
    assert slices(head((100, 80, 60))) == [25, 50, 75]
    assert slices(head((100, 80, 60)), plane="sagittal") == [15, 30, 45]
    above = np.zeros((10, 10, 10), bool)
    above[5:] = True
    assert slices(head((80, 80, 80), head=above)) == [50, 60, 70]


def test_of_a_head_with_a_neck_they_are_taken_from_its_upper_end():
    assert slices(head((400, 80, 80)), size_mm=200) == [250, 300, 350]


def test_random_ones_are_of_equal_parts_and_differ_from_draw_to_draw():
    volume, rng = head((90, 40, 40)), np.random.default_rng(0)
    draws = np.array([slices(volume, rng, pick="random") for _ in range(300)])
    for part, found in enumerate(draws.T):
        assert found.min() >= 30 * part
        assert found.max() < 30 * (part + 1)
        assert len(set(found.tolist())) == 30
    assert slices(volume, pick="random") == [15, 45, 75]


def test_vascular_ones_lie_where_the_survey_has_most_vessels_and_apart():
    bright = np.zeros((12, 8, 8), bool)
    bright[3, :4], bright[9, :2], bright[6, 0, 0] = True, True, True
    volume = head((96, 64, 64), bright=bright)
    best, second = slices(volume, pick="vascular", count=2, apart_mm=24)
    assert (best // 8, second // 8) == (3, 9)
    moved = {tuple(slices(volume, np.random.default_rng(k), pick="vascular", count=2, apart_mm=24)) for k in range(50)}
    assert len(moved) > 20
    assert all(abs(a - best) <= 4 and abs(b - second) <= 4 for a, b in moved)


def test_dark_vessels_of_mr_count_as_bright_ones():
    """From DICOM alone nobody knows which of the two they are."""
    dark, bright = np.zeros((8, 8, 8), bool), np.zeros((8, 8, 8), bool)
    dark[2], bright[5, :2] = True, True
    volume = head((64, 64, 64), bright=bright, dark=dark, unit="arbitrary")
    assert [k // 8 for k in slices(volume, pick="vascular", count=2, apart_mm=16)] == [2, 5]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 120), st.integers(1, 20), st.sampled_from(["even", "random", "vascular"]), st.integers(0, 2),
       st.one_of(st.none(), st.integers(0, 9)))  # fmt: skip
def test_there_are_as_many_as_were_asked_for_in_the_volume_and_rising(length, count, pick, axis, seed):
    shape = [24, 24, 24]
    shape[axis] = length
    plane = ("axial", "coronal", "sagittal")[axis]
    rng = None if seed is None else np.random.default_rng(seed)
    found = slices(head(tuple(shape)), rng, pick=pick, count=count, plane=plane)
    assert len(found) == count
    assert found == sorted(found)
    assert found[0] >= 0
    assert found[-1] < length


def test_neighbours_are_channels_and_stay_in_the_volume():
    view = SlicesConfig(count=2, neighbours=2, size_mm=16).build(MM)
    rows = view.choose(head((4, 16, 16)))
    assert view.shape == (1, 16, 16)
    assert [picture.first for (picture,) in rows] == [0, 0, 1, 2, 3, 0, 1, 2, 3, 3]
    assert view.channels == len(rows) == len(view.planes) == 10


@pytest.mark.parametrize("unit", ["HU", "arbitrary"])
def test_vesselness_finds_the_slices_of_a_tube(unit):
    voxels = np.zeros((60, 60, 60), np.int16)
    y, x = np.ogrid[:60, :60]
    for z in range(18, 26):
        voxels[z][(y - 30) ** 2 + (x - 30) ** 2 < 30] = 20
    voxels[20:23, 10:50, 29:32] = 400  # along y
    volume = head(voxels.shape, voxels=voxels, unit=unit, uid=f"tube {unit}")
    (found,) = slices(volume, pick="vesselness", count=1)
    assert abs(found - 21) <= 2
    assert slices(volume, pick="vesselness", count=1, plane="sagittal")[0] == pytest.approx(30, abs=2)
