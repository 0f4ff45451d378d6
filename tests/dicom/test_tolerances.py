"""Measured numbers: what rounding and drift leave the same is the same, and what differs stays apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pydicom import Dataset

from aneurysm.dicom.tolerances import same_orientation, same_spacing, same_tag, shown
from tests.support.acquisition import acquire, rotation
from tests.support.cached import CachedImage, cached, rejected, run
from tests.support.pattern import Pattern, anatomy
from tests.support.series import new_uid, numbers, write_series
from tests.support.truth import assert_shows

UID = new_uid("tolerances")
STACK = acquire(slices=24)
PATTERN = anatomy(STACK.centre, STACK.extent_mm, 700.0)


def _alike(groups: list[int]) -> bool:
    return len(set(groups)) == 1


@pytest.mark.parametrize("pair", [(1.95, 1.953125), (0.49, 0.488281), (0.35, 0.3515625), (0.4883, 0.48828125)])
def test_a_rounded_spacing_is_the_same_in_either_order(pair):
    assert _alike(same_spacing(pair))
    assert _alike(same_spacing(pair[::-1]))


@pytest.mark.parametrize("pair", [(0.488281, 0.507813), (1.0, 2.0), (1.95, 1.97), (0.4, 0.41)])
def test_spacings_of_different_fields_of_view_are_different(pair):
    assert not _alike(same_spacing(pair))


@pytest.mark.parametrize("pair", [(3.4, 3.404), (98, 98.5), (120, 120.0), (0.0, 0.001)])
def test_an_echo_time_with_more_digits_is_the_same(pair):
    assert _alike(same_tag(pair))


@pytest.mark.parametrize("pair", [(7.001, 10), (2.46, 4.92), (1.1, 1.2), (80, 140), (0, 5)])
def test_two_echoes_are_two(pair):
    assert not _alike(same_tag(pair))


def test_a_long_row_of_echoes_is_not_one_echo():
    """Each is within tolerance of the next, the first and the last are far apart."""
    values = [10 * 1.008**i for i in range(40)]
    numbers_ = same_tag(values)
    groups = [[v for v, n in zip(values, numbers_, strict=True) if n == k] for k in set(numbers_)]
    assert len(groups) > 10
    assert all(max(group) <= 1.03 * min(group) for group in groups)


def test_groups_do_not_depend_on_the_order():
    values = [3.4, 3.404, 7.0, 3.38, 7.05, 120.0]
    expected = dict(zip(values, same_tag(values), strict=True))
    for order in itertools.permutations(values):
        assert dict(zip(order, same_tag(order), strict=True)) == expected


def test_an_orientation_that_drifts_is_one_and_a_turned_one_another():
    def cosines(degrees: float) -> np.ndarray:
        turn = rotation((1, 0, 0), degrees)
        return np.concatenate([turn @ [1, 0, 0], turn @ [0, 1, 0]])

    drifting = np.array([cosines(0.01 * i) for i in range(40)])
    groups = same_orientation(np.concatenate([drifting[::-1], [cosines(3.0)], drifting[:4]]))
    assert _alike(groups[:40] + groups[41:])
    assert groups[40] != groups[0]


def test_shown_values_differ_where_the_values_do():
    assert shown([1.0, 2.0], 2) == ["1.00", "2.00"]
    assert shown([4.0, 4.0004], 2) == ["4.0000", "4.0004"]
    assert shown([1.95, 1.953125], 2) == ["1.950", "1.953"]
    assert shown([3.0, 3.0], 2) == ["3.00", "3.00"]


def assert_one_volume(image: CachedImage, acquisition=STACK, pattern: Pattern = PATTERN) -> None:
    assert not image.codes & {"several_volumes", "minority_dropped", "dropped_slices"}
    assert image.meta["source"]["shape"][0] == len(acquisition)
    assert_shows(image, acquisition, pattern)


@pytest.mark.parametrize("rounded", [3, 12, 21])
def test_echo_times_written_with_and_without_a_digit_are_one_volume(tmp_path, rounded):
    """By turns, so that as text they would be two volumes between each other."""

    def edit(dataset: Dataset, index: int) -> None:
        dataset.EchoTime = "3.4" if index * rounded // 24 < (index + 1) * rounded // 24 else "3.404"

    write_series(tmp_path / "s", STACK, PATTERN, modality="MR", edit=edit)
    assert_one_volume(cached(tmp_path / "s"))


def test_two_echoes_are_told_apart_although_each_is_written_in_two_ways(tmp_path):
    values = np.concatenate([STACK.sample(PATTERN), STACK.sample(PATTERN) + 300])

    def edit(dataset: Dataset, index: int) -> None:
        echo = ("4.6", "4.604") if index < 24 else ("9.2", "9.204")
        dataset.EchoTime = echo[index % 2]

    write_series(tmp_path / "s", STACK.take([*range(24), *range(24)]), values, modality="MR", edit=edit)
    image = cached(tmp_path / "s")
    assert "several_volumes" in image.codes
    assert_shows(image, STACK, PATTERN)
    (told,) = [d["detail"] for d in image.meta["decisions"] if d["code"] == "several_volumes"]
    assert told == "2 volumes told apart by EchoTime; the first is kept: EchoTime 4.6"


@pytest.mark.parametrize("rounded", [range(1), range(10), range(14), range(23), range(23, 24)], ids=str)
def test_a_spacing_that_some_files_round_is_one_spacing(tmp_path, rounded):
    stack = acquire(slices=24, spacing_mm=(1.953125, 1.953125), gap_mm=2.0)
    pattern = anatomy(stack.centre, stack.extent_mm, 700.0)

    def edit(dataset: Dataset, index: int) -> None:
        if index in rounded:
            dataset.PixelSpacing = ["1.95", "1.95"]

    write_series(tmp_path / "s", stack, pattern, edit=edit)
    image = cached(tmp_path / "s")
    assert "minority_dropped" not in image.codes
    assert image.meta["source"]["shape"][0] == 24
    assert image.meta["source"]["spacing_mm"][1] == (1.95 if len(rounded) > 12 else 1.953125)


def test_an_orientation_that_drifts_over_the_stack_is_one_stack(tmp_path):
    """0.1 degrees over 40 slices, and the first file is at one end of it."""
    stack = acquire(slices=40)
    pattern = anatomy(stack.centre, stack.extent_mm, 700.0)

    def edit(dataset: Dataset, index: int) -> None:
        turn = rotation((1, 0, 0), 0.1 * index / 39)
        dataset.ImageOrientationPatient = numbers([*(turn @ stack.row_direction), *(turn @ stack.column_direction)])

    write_series(tmp_path / "s", stack, pattern, edit=edit)
    assert_one_volume(cached(tmp_path / "s"), stack, pattern)


def test_a_step_in_the_orientation_below_the_tolerance_is_one_stack(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        if index % 2:
            dataset.ImageOrientationPatient = ["1", "0.001", "0", "-0.001", "1", "0"]

    write_series(tmp_path / "s", STACK, PATTERN, edit=edit)
    assert_one_volume(cached(tmp_path / "s"))


def test_an_orientation_that_drifts_by_degrees_is_refused(tmp_path):
    stack = acquire(slices=40)

    def edit(dataset: Dataset, index: int) -> None:
        turn = rotation((1, 0, 0), 0.08 * index)
        dataset.ImageOrientationPatient = numbers([*(turn @ stack.row_direction), *(turn @ stack.column_direction)])

    write_series(tmp_path / "s", stack, anatomy(stack.centre, stack.extent_mm), edit=edit)
    outcome = run(tmp_path / "s")
    assert outcome.reason() == "not_aligned"
    assert "degrees from the middle of the stack" in outcome.row()["detail"]


@pytest.mark.parametrize("apart_mm", [0.25, 0.4])
def test_slices_a_quarter_of_a_millimetre_apart_are_two_places(tmp_path, apart_mm):
    """dcm2niix issue 22: 0 to 77.5 mm by 2.5, then from 77.75 mm by 7.5."""
    offsets = [*np.arange(20) * 2.5, *(19 * 2.5 + apart_mm + np.arange(6) * 7.5)]
    stack = acquire(offsets_mm=offsets, shape=(64, 64), spacing_mm=(2.0, 2.0))
    pattern = anatomy(stack.centre, stack.extent_mm)
    write_series(tmp_path / "s", stack, pattern)
    image = cached(tmp_path / "s")
    assert image.meta["source"]["shape"][0] == 26
    assert image.codes == {"uneven_slices"}
    assert_shows(image, stack, pattern)


def test_copies_whose_positions_were_rounded_are_at_one_place(tmp_path):
    stack = acquire(offsets_mm=np.arange(24) * 1.26)

    def edit(dataset: Dataset, index: int) -> None:
        dataset.ImagePositionPatient = [f"{v:.1f}" for v in stack.positions[index]]

    pattern = anatomy(stack.centre, stack.extent_mm)
    write_series(tmp_path / "s", stack, pattern, uid=UID)
    write_series(tmp_path / "s", stack, pattern, uid=UID, label="again", edit=edit)
    image = cached(tmp_path / "s")
    assert image.meta["source"]["shape"][0] == 24
    assert "duplicate_slices" in image.codes


def test_a_gap_just_beyond_the_limit_is_told_with_enough_digits(tmp_path):
    stack = acquire(offsets_mm=[*np.arange(12) * 1.0, *(15.002 + np.arange(12))])
    write_series(tmp_path / "s", stack, anatomy(stack.centre, stack.extent_mm))
    outcome = run(tmp_path / "s")
    assert outcome.reason() == "gap_too_large"
    assert "a gap of 4.002 mm" in outcome.row()["detail"]
    assert "the limit 4.000 mm" in outcome.row()["detail"]


def test_kinds_of_frames_that_differ_little_are_shown_with_enough_digits(tmp_path):
    one, two = (acquire(slices=8, spacing_mm=(s, s)) for s in (0.4883, 0.4913))
    for label, stack in (("one", one), ("two", two)):
        write_series(tmp_path / "s", stack, anatomy(stack.centre, stack.extent_mm), uid=UID, label=label)
    outcome = run(tmp_path / "s")
    assert outcome.reason() == "no_majority"
    assert "0.488 x 0.488 mm" in outcome.row()["detail"]
    assert "0.491 x 0.491 mm" in outcome.row()["detail"]


def test_slices_of_another_kind_in_a_gap_are_named_with_it(tmp_path):
    offsets = np.arange(40) * 1.0
    ends = [*range(15), *range(25, 40)]
    stack = acquire(offsets_mm=offsets)
    write_series(tmp_path / "s", stack.take(ends), anatomy(stack.centre, stack.extent_mm), uid=UID)
    middle = acquire(offsets_mm=offsets, shape=(30, 26)).take(range(15, 25))
    write_series(tmp_path / "s", middle, np.full((10, 30, 26), 40.0), uid=UID, label="other")
    outcome = run(tmp_path / "s")
    assert outcome.reason() == "gap_too_large"
    assert "10 frames that were left out lie in it" in outcome.row()["detail"]


def test_unreadable_slices_next_to_each_other_are_no_gap_of_the_data(tmp_path):
    stack = acquire(slices=80, shape=(16, 16))
    written = write_series(tmp_path / "s", stack, anatomy(stack.centre, stack.extent_mm))
    for path in written.paths[40:44]:
        path.write_bytes(path.read_bytes()[:-200])
    assert rejected(tmp_path / "s") == "unreadable_pixels"
