"""Headers that are rounded, jittered, incomplete or impossible: used for what they are, or refused with a reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydicom import Dataset

from tests.support.acquisition import Acquisition, acquire, rotation
from tests.support.cached import cached, rejected, run
from tests.support.pattern import Pattern, anatomy
from tests.support.series import new_uid, write_series
from tests.support.truth import assert_shows

UID = new_uid("geometry faults")


def _pattern(acquisition: Acquisition) -> Pattern:
    return anatomy(acquisition.centre, acquisition.extent_mm)


def test_slices_that_lie_beside_the_line_through_the_stack_are_used_where_they_are(tmp_path):
    """Each slice is displaced in its own plane by up to 2 mm, as after a correction of motion."""
    stack = acquire(shape=(40, 38))
    aside = np.random.default_rng(4).uniform(-2, 2, (24, 2))
    aside -= aside.mean(axis=0)
    positions = stack.positions + aside @ np.stack([stack.row_direction, stack.column_direction])
    jittered = replace(stack, positions=positions)
    pattern = _pattern(stack)
    write_series(tmp_path / "s", jittered, pattern)
    assert_shows(cached(tmp_path / "s"), jittered, pattern)


def test_slices_that_lie_far_beside_each_other_are_no_stack(tmp_path):
    stack = acquire()
    positions = stack.positions + np.outer(np.random.default_rng(4).uniform(-40, 40, 24), stack.row_direction)
    write_series(tmp_path / "s", replace(stack, positions=positions), _pattern(stack))
    assert rejected(tmp_path / "s") in {"not_aligned", "implausible_geometry"}


def test_a_tilt_that_no_gantry_has_is_refused(tmp_path):
    stack = acquire(tilt_deg=52)
    write_series(tmp_path / "s", stack, _pattern(stack))
    assert rejected(tmp_path / "s") == "tilt_too_large"


@pytest.mark.parametrize(
    "keyword, value",
    [
        pytest.param("ImageOrientationPatient", [0, 0, 0, 0, 0, 0], id="no direction"),
        pytest.param("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], id="rows along columns"),
        pytest.param("PixelSpacing", [0, 0], id="no spacing"),
        pytest.param("PixelSpacing", [-1, 1], id="negative spacing"),
    ],
)
def test_impossible_geometry_is_refused(tmp_path, keyword, value):
    def edit(dataset: Dataset, index: int) -> None:
        setattr(dataset, keyword, value)

    stack = acquire()
    write_series(tmp_path / "s", stack, _pattern(stack), edit=edit)
    assert rejected(tmp_path / "s") in {"no_geometry", "implausible_geometry"}


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_missing_geometry_of_single_slices_is_refused_and_not_guessed(tmp_path, keyword):
    def edit(dataset: Dataset, index: int) -> None:
        delattr(dataset, keyword)

    stack = acquire()
    write_series(tmp_path / "s", stack, _pattern(stack), edit=edit)
    assert rejected(tmp_path / "s") in {"no_geometry", "implausible_geometry"}


def test_rounded_headers_are_still_one_stack(tmp_path):
    """Directions with four digits, positions and spacings with two to four: no slice is a foreigner for that."""
    steps = np.random.default_rng(1)
    stack = acquire("coronal", turn=rotation((1, 2, 3), 17), spacing_mm=(0.859375, 0.859375), gap_mm=0.8)
    pattern = _pattern(stack)

    def edit(dataset: Dataset, index: int) -> None:
        noise = steps.uniform(-1e-5, 1e-5, 6)
        dataset.ImageOrientationPatient = [f"{v:.4f}" for v in np.array(stack.orientation) + noise]
        dataset.ImagePositionPatient = [f"{v:.2f}" for v in stack.positions[index]]
        dataset.PixelSpacing = ["0.8594", "0.8594"] if index % 2 else ["0.859375", "0.859375"]

    write_series(tmp_path / "s", stack, pattern, edit=edit)
    image = cached(tmp_path / "s")
    assert image.meta["source"]["shape"][0] == 24
    # Half a unit of the last digit: 0.005 mm of position and 0.002 mm at the far end of a row, times the slope.
    assert_shows(image, stack, pattern, lossy=0.15)


def test_slices_in_two_directions_of_rows_are_not_taken_for_one_stack(tmp_path):
    """The same planes, but some with rows running right to left: their pixels must not be put in unturned."""
    stack = acquire()
    pattern = _pattern(stack)
    turned = acquire((-stack.row_direction, -stack.column_direction))
    write_series(tmp_path / "s", stack.take(range(20)), pattern, uid=UID)
    write_series(tmp_path / "s", turned.take(range(20, 24)), pattern, uid=UID, label="turned")
    outcome = run(tmp_path / "s")
    if outcome.cached:
        image = outcome.image()
        assert_shows(image, stack.take(range(20)), pattern)
    else:
        assert outcome.reason() in {"no_majority", "gap_too_large"}
