"""Two volumes at the same positions: one of them whole, or a refusal; never a mixture."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset

from tests.support.acquisition import Acquisition, acquire
from tests.support.cached import cached, rejected, run
from tests.support.pattern import Pattern, anatomy
from tests.support.series import new_uid, numbers, write_multiframe, write_series
from tests.support.truth import assert_shows

UID = new_uid("several volumes")


def _pattern(acquisition: Acquisition, base: float = 300.0) -> Pattern:
    return anatomy(acquisition.centre, acquisition.extent_mm, base)


@pytest.mark.parametrize(
    "keyword, first, second",
    [
        pytest.param("EchoTime", 4.6, 9.2, id="two echoes"),
        pytest.param("TemporalPositionIdentifier", 1, 2, id="two time points"),
        pytest.param("KVP", 80, 140, id="dual energy"),
        pytest.param("ImageType", ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"],
                     id="magnitude and phase"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shuffled", [False, True], ids=["in turn", "interleaved"])
def test_the_first_is_kept_where_tags_tell_them_apart(tmp_path, keyword, first, second, shuffled):
    modality = "CT" if keyword == "KVP" else "MR"
    stack = acquire(slices=12)
    pattern, other = (_pattern(stack, base) for base in (500.0, 900.0))
    twice = stack.take([*range(12), *range(12)])
    values = np.concatenate([stack.sample(pattern), stack.sample(other)])
    rank = np.random.default_rng(4).permutation(24) if shuffled else np.arange(24)

    def edit(dataset: Dataset, index: int) -> None:
        setattr(dataset, keyword, first if index < 12 else second)
        dataset.InstanceNumber = int(rank[index]) + 1

    write_series(tmp_path / "s", twice, values, modality=modality, edit=edit)
    image = cached(tmp_path / "s")
    assert "several_volumes" in image.codes
    assert_shows(image, stack, pattern)


@pytest.mark.parametrize("stripped", [False, True], ids=["all tags", "25 tags"])
def test_two_that_no_tag_tells_apart_are_not_mixed(tmp_path, stripped):
    stack = acquire(slices=12)
    pattern, other = (_pattern(stack, base) for base in (200.0, 600.0))
    values = np.concatenate([stack.sample(pattern), stack.sample(other)])
    numbers_ = np.random.default_rng(4).permutation(24)

    def edit(dataset: Dataset, index: int) -> None:
        dataset.InstanceNumber = int(numbers_[index])

    write_series(tmp_path / "s", stack.take([*range(12), *range(12)]), values, edit=edit, stripped=stripped)
    assert rejected(tmp_path / "s") == "several_volumes"


def test_one_position_repeated_with_other_pixels_is_not_silently_mixed(tmp_path):
    """A single ambiguous slice: a choice that is on record, or a refusal; the rest of the stack is as it was."""
    stack = acquire()
    pattern = _pattern(stack)
    write_series(tmp_path / "s", stack, pattern, uid=UID)
    write_series(tmp_path / "s", stack.take([7]), np.full((1, 32, 28), 1200.0), uid=UID, label="other")
    outcome = run(tmp_path / "s")
    if outcome.cached:
        image = outcome.image()
        assert any("duplicate" in code or "several" in code for code in image.codes)
        away = np.abs(image.centres()[..., 2] - stack.positions[7, 2]) > 1.01
        assert_shows(image, stack, pattern, where=away)
    else:
        assert outcome.reason() == "several_volumes"


@pytest.mark.parametrize("order", ["one after the other", "in turn at each position"])
def test_two_that_only_instance_numbers_tell_apart_are_not_mixed(tmp_path, order):
    """25 tags, two phases: kept whole where the numbers leave no doubt, refused where they do."""
    stack = acquire(slices=12)
    pattern, other = (_pattern(stack, base) for base in (200.0, 600.0))
    values = np.concatenate([stack.sample(pattern), stack.sample(other)])

    def edit(dataset: Dataset, index: int) -> None:
        phase, place = divmod(index, 12)
        dataset.InstanceNumber = 1 + (12 * phase + place if order == "one after the other" else 2 * place + phase)

    write_series(tmp_path / "s", stack.take([*range(12), *range(12)]), values, edit=edit, stripped=True)
    outcome = run(tmp_path / "s")
    if outcome.cached:
        assert "several_volumes" in outcome.image().codes
        assert_shows(outcome.image(), stack, pattern)
    else:
        assert outcome.reason() == "several_volumes"


def test_a_second_time_point_that_is_not_complete_is_left_out(tmp_path):
    stack = acquire(slices=12)
    pattern, other = (_pattern(stack, base) for base in (500.0, 900.0))
    values = np.concatenate([stack.sample(pattern), stack.sample(other)[:7]])

    def edit(dataset: Dataset, index: int) -> None:
        dataset.TemporalPositionIdentifier = 1 if index < 12 else 2

    write_series(tmp_path / "s", stack.take([*range(12), *range(7)]), values, modality="MR", edit=edit)
    image = cached(tmp_path / "s")
    assert "several_volumes" in image.codes
    assert_shows(image, stack, pattern)


@pytest.mark.parametrize("keyword, first, second", [("EchoTime", 4.6, 9.2), ("KVP", 80, 140)])
def test_two_whose_positions_are_a_little_apart_are_not_interleaved(tmp_path, keyword, first, second):
    """A table that crept by 0.6 mm between two passes does not make one stack of uneven slices."""
    stack = acquire(slices=12, gap_mm=2.5)
    both = acquire(offsets_mm=[*np.arange(12) * 2.5, *(np.arange(12) * 2.5 + 0.6)])
    pattern, other = (_pattern(stack, base) for base in (500.0, 900.0))
    values = np.concatenate([both.take(range(12)).sample(pattern), both.take(range(12, 24)).sample(other)])

    def edit(dataset: Dataset, index: int) -> None:
        setattr(dataset, keyword, first if index < 12 else second)

    modality = "MR" if keyword == "EchoTime" else "CT"
    write_series(tmp_path / "s", both, values, modality=modality, edit=edit)
    outcome = run(tmp_path / "s")
    if outcome.cached:
        assert "several_volumes" in outcome.image().codes
        assert_shows(outcome.image(), both.take(range(12)), pattern)
    else:
        assert outcome.reason() == "several_volumes"


@pytest.mark.parametrize("downwards", [False, True])
def test_two_scans_without_a_tag_that_lie_between_each_other_are_told_by_their_numbers(tmp_path, downwards):
    """CT without and with contrast agent, the second 0.9 mm further."""
    places = np.arange(12) * 2.5
    both = acquire(offsets_mm=[*places, *(places + 0.9)])
    pattern, other = (_pattern(both, base) for base in (300.0, 500.0))
    values = np.concatenate([both.take(range(12)).sample(pattern), both.take(range(12, 24)).sample(other)])

    def edit(dataset: Dataset, index: int) -> None:
        dataset.InstanceNumber = index + 1 if index < 12 or not downwards else 36 - index

    write_series(tmp_path / "s", both, values, stripped=True, edit=edit)
    image = cached(tmp_path / "s")
    assert "several_volumes" in image.codes
    assert_shows(image, both.take(range(12)), pattern)


def test_one_stack_whose_slices_were_taken_by_turns_is_one(tmp_path):
    stack = acquire(slices=24, gap_mm=1.2)
    order = [*range(0, 24, 2), *range(1, 24, 2)]

    def edit(dataset: Dataset, index: int) -> None:
        dataset.InstanceNumber = order.index(index) + 1

    write_series(tmp_path / "s", stack, _pattern(stack), stripped=True, edit=edit)
    image = cached(tmp_path / "s")
    assert "several_volumes" not in image.codes
    assert_shows(image, stack, _pattern(stack))


@pytest.mark.parametrize("tag", ["TemporalPositionIndex", "EffectiveEchoTime", "StackID"])
def test_an_enhanced_file_of_two_volumes_is_not_mixed(tmp_path, tag):
    stack = acquire(slices=10)
    pattern, other = (_pattern(stack, base) for base in (600.0, 1000.0))
    values = np.concatenate([stack.sample(pattern), stack.sample(other)])

    def edit_frame(frame: Dataset, index: int) -> None:
        second = index >= 10
        if tag == "EffectiveEchoTime":
            frame.MREchoSequence = [Dataset()]
            frame.MREchoSequence[0].EffectiveEchoTime = 50.0 if second else 10.0
        elif tag == "StackID":
            frame.FrameContentSequence[0].StackID = "2" if second else "1"
        else:
            frame.FrameContentSequence[0].TemporalPositionIndex = 2 if second else 1

    write_multiframe(tmp_path / "s", stack.take([*range(10), *range(10)]), values, edit_frame=edit_frame)
    outcome = run(tmp_path / "s")
    if outcome.cached:
        assert "several_volumes" in outcome.image().codes
        assert_shows(outcome.image(), stack, pattern)
    else:
        assert outcome.reason() == "several_volumes"


def test_a_siemens_mosaic_is_refused_as_one(tmp_path):
    acquisition = acquire(slices=3, shape=(64, 64), gap_mm=3)

    def edit(dataset: Dataset, index: int) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        dataset.Manufacturer = "SIEMENS"
        dataset.ImagePositionPatient = numbers(acquisition.positions[0])

    write_series(tmp_path / "s", acquisition, _pattern(acquisition, 700), modality="MR", edit=edit)
    assert rejected(tmp_path / "s") == "mosaic"
