"""Stacks with too few, too many or foreign slices: what is kept, what is dropped, what is refused and why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from tests.support.acquisition import PLANES, Acquisition, acquire, rotation
from tests.support.cached import CachedImage, cached, rejected, run
from tests.support.pattern import Pattern, anatomy
from tests.support.series import Written, new_uid, numbers, write_series
from tests.support.truth import assert_frame, assert_shows

UID = new_uid("stacks")


def _pattern(acquisition: Acquisition, base: float = 300.0) -> Pattern:
    return anatomy(acquisition.centre, acquisition.extent_mm, base)


def assert_main_shown(folder: Path, other: Acquisition, *, main: Acquisition | None = None, **options) -> CachedImage:
    """A main stack of 24 slices and a foreign one in the same series: the main one must show, undisturbed."""
    main = main or acquire()
    pattern = _pattern(main)
    write_series(folder, main, pattern, uid=UID)
    write_series(folder, other, np.full((len(other), *other.shape), 1500.0), uid=UID, label="other", **options)
    image = cached(folder)
    assert_frame(image)
    assert_shows(image, main, pattern)
    return image


@pytest.mark.parametrize("where", [[11], [5, 6], [3, 9, 15], [4, 5, 6]], ids=lambda w: f"{len(w)} from {w[0]}")
def test_missing_slices_are_bridged_by_their_neighbours(tmp_path, where):
    whole = acquire(gap_mm=1.2)
    acquisition = whole.take([i for i in range(len(whole)) if i not in where])
    pattern = _pattern(whole)
    write_series(tmp_path / "s", acquisition, pattern)
    image = cached(tmp_path / "s")
    assert_shows(image, acquisition, pattern)
    assert image.stored.shape[0] == int(np.ceil(24 * 1.2)), "the field of view is that of the whole stack"
    if min(where) > 3:
        # Right next to the hole nothing may have moved: the tolerance there is that of ordinary slices.
        beside = whole.take(range(min(where)))
        assert_shows(image, beside, pattern, at_least=50)


def test_a_gap_that_is_too_large_is_refused(tmp_path):
    acquisition = acquire(offsets_mm=[*np.arange(0, 12, 1.0), *np.arange(40, 52, 1.0)])
    write_series(tmp_path / "s", acquisition, _pattern(acquisition))
    assert rejected(tmp_path / "s") == "gap_too_large"


@pytest.mark.parametrize("stray", [-31.0, 60.0], ids=["below", "above"])
def test_a_stray_slice_far_from_the_stack_is_dropped(tmp_path, stray):
    offsets = [*np.arange(0, 24, 1.0), stray]
    everything = acquire(offsets_mm=offsets)
    stack = everything.take(range(24))
    pattern = _pattern(stack)
    write_series(tmp_path / "s", everything, np.clip(everything.sample(pattern), -900, 1900))
    image = cached(tmp_path / "s")
    assert_shows(image, stack, pattern)
    assert image.stored.shape[0] == 24
    assert "dropped_slices" in image.codes


def test_thick_slices_with_one_doubled_gap_are_interpolated(tmp_path):
    """T2 stacks of 5 mm whose gaps double inside some."""
    acquisition = acquire(offsets_mm=[0, 5, 10, 20, 25, 30, 35, 40, 45, 50], shape=(36, 36))
    pattern = _pattern(acquisition, 700.0)
    write_series(tmp_path / "s", acquisition, pattern, modality="MR")
    assert_shows(cached(tmp_path / "s"), acquisition, pattern)


def test_identical_duplicates_are_dropped(tmp_path):
    acquisition = acquire()
    pattern = _pattern(acquisition)
    write_series(tmp_path / "s", acquisition, pattern, uid=UID)
    write_series(tmp_path / "s", acquisition.take([3, 9, 9]), pattern, uid=UID, label="again", first_number=40)
    image = cached(tmp_path / "s")
    assert_shows(image, acquisition, pattern)
    assert "duplicate_slices" in image.codes


def test_a_whole_series_stored_twice_is_one_volume(tmp_path):
    acquisition = acquire(slices=12)
    pattern = _pattern(acquisition)
    write_series(tmp_path / "s" / "a", acquisition, pattern, uid=UID)
    write_series(tmp_path / "s" / "b", acquisition, pattern, uid=UID)
    image = cached(tmp_path / "s")
    assert_shows(image, acquisition, pattern)
    assert "duplicate_slices" in image.codes


@pytest.mark.parametrize("plane", ["coronal", "sagittal"])
def test_scouts_of_another_orientation_are_dropped(tmp_path, plane):
    image = assert_main_shown(tmp_path / "s", acquire(plane, slices=3, gap_mm=10))
    assert "minority_dropped" in image.codes


def test_slices_of_another_shape_are_dropped(tmp_path):
    image = assert_main_shown(tmp_path / "s", acquire(slices=4, shape=(20, 20)))
    assert "minority_dropped" in image.codes


def test_slices_of_another_pixel_spacing_are_dropped(tmp_path):
    image = assert_main_shown(tmp_path / "s", acquire(slices=4, spacing_mm=(2.0, 2.0)))
    assert "minority_dropped" in image.codes


def test_slices_turned_by_a_few_degrees_are_dropped(tmp_path):
    image = assert_main_shown(tmp_path / "s", acquire(slices=4, turn=rotation((1, 0, 0), 6)))
    assert "minority_dropped" in image.codes


def test_scouts_other_shapes_and_strays_together_are_dropped(tmp_path):
    folder = tmp_path / "s"
    write_series(folder, acquire("sagittal", slices=1), np.full((1, 32, 28), 900.0), uid=UID, label="scout")
    write_series(
        folder,
        acquire(slices=1, offsets_mm=[0], middle=(0, 0, 400)),
        np.ones((1, 32, 28)),
        uid=UID,
        label="far",
    )
    image = assert_main_shown(folder, acquire(slices=2, shape=(24, 40)))
    assert {"minority_dropped", "dropped_slices"} <= image.codes


def test_a_report_among_the_slices_is_not_a_slice(tmp_path):
    """A secondary capture without geometry, in the same series."""

    def edit(dataset: Dataset, index: int) -> None:
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing

    assert_main_shown(tmp_path / "s", acquire(slices=1, shape=(64, 64)), edit=edit)


def test_two_stacks_of_equal_size_have_no_majority(tmp_path):
    acquisition = acquire(slices=8)
    other = acquire("coronal", slices=8)
    write_series(tmp_path / "s", acquisition, _pattern(acquisition), uid=UID)
    write_series(tmp_path / "s", other, _pattern(other), uid=UID, label="other")
    assert rejected(tmp_path / "s") == "no_majority"


@pytest.mark.parametrize("plane", PLANES)
def test_two_slices_are_a_volume(tmp_path, plane):
    acquisition = acquire(plane, slices=2, gap_mm=5)
    pattern = _pattern(acquisition)
    write_series(tmp_path / "s", acquisition, pattern)
    image = cached(tmp_path / "s")
    assert_frame(image)
    assert_shows(image, acquisition, pattern)


def test_one_slice_is_not_a_volume(tmp_path):
    acquisition = acquire(slices=1)
    write_series(tmp_path / "s", acquisition, _pattern(acquisition))
    assert rejected(tmp_path / "s") == "too_few_slices"


def test_different_slices_at_one_position_are_not_a_volume(tmp_path):
    acquisition = acquire(offsets_mm=[0.0] * 6)
    values = np.stack([np.full((32, 28), 100.0 * i) for i in range(6)])
    write_series(tmp_path / "s", acquisition, values)
    assert rejected(tmp_path / "s") in {"one_position", "several_volumes"}


def test_an_empty_folder_has_a_row_with_a_reason(tmp_path):
    (tmp_path / "data" / "series" / UID).mkdir(parents=True)
    (tmp_path / "data" / "series" / UID / "notes.txt").write_text("nothing here")
    outcome = run(tmp_path / "data")
    assert outcome.cached == 0
    assert outcome.reason(UID) in {"no_files", "no_images"}


def _shorten(written: Written, indices: Iterable[int]) -> None:
    for index in indices:
        path = written.paths[index]
        path.write_bytes(path.read_bytes()[:-700])


def test_one_unreadable_slice_is_bridged_like_a_missing_one(tmp_path):
    acquisition = acquire()
    pattern = _pattern(acquisition)
    _shorten(write_series(tmp_path / "s", acquisition, pattern), [10])
    image = cached(tmp_path / "s")
    assert_shows(image, acquisition.take([i for i in range(24) if i != 10]), pattern)
    assert "unreadable_slice" in image.codes


@pytest.mark.parametrize("broken", ["a", "b"])
def test_of_two_files_of_one_slice_the_one_that_can_be_read_is_taken(tmp_path, broken):
    acquisition = acquire()
    pattern = _pattern(acquisition)
    write_series(tmp_path / "s" / "a", acquisition, pattern, uid=UID)
    write_series(tmp_path / "s" / "b", acquisition.take([4, 9, 9]), pattern, uid=UID, label="again")
    sop = new_uid(UID, "", 9) if broken == "a" else new_uid(UID, "again", 1)
    path = tmp_path / "s" / broken / f"{sop}.dcm"
    path.write_bytes(path.read_bytes()[:-700])
    image = cached(tmp_path / "s")
    assert_shows(image, acquisition, pattern)
    assert {"duplicate_slices", "unreadable_slice"} <= image.codes


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("where", [[2, 7, 11, 12, 19], range(24)], ids=["5 of 24", "all"])
def test_too_many_unreadable_slices_are_refused(tmp_path, where, modality):
    acquisition = acquire()
    _shorten(write_series(tmp_path / "s", acquisition, _pattern(acquisition), modality=modality), where)
    assert rejected(tmp_path / "s") == "unreadable_pixels"


def test_unreadable_slices_may_be_those_by_which_stored_values_are_judged(tmp_path):
    acquisition = acquire(slices=120, gap_mm=0.5)
    pattern = _pattern(acquisition)
    samples = np.linspace(0, 119, 7).round().astype(int)[1:-1].tolist()
    _shorten(write_series(tmp_path / "s", acquisition, pattern), samples)
    image = cached(tmp_path / "s")
    assert_shows(image, acquisition.take([i for i in range(120) if i not in samples]), pattern)
    assert image.codes == {"unreadable_slice", "uneven_slices"}


@pytest.mark.parametrize("tilt_deg", [0, 14])
@pytest.mark.parametrize("plane", PLANES)
def test_everything_at_once(tmp_path, plane, tilt_deg):
    """Uneven, oblique, maybe tilted, a slice missing, duplicates, a scout, junk names, a lying header."""
    steps = np.random.default_rng(5).uniform(0.8, 1.7, 29)
    steps[12] = 3.1
    turn = rotation((0.5, 0.4, 1.0), 12)
    stack = acquire(plane, offsets_mm=[0, *np.cumsum(steps)], turn=turn, tilt_deg=tilt_deg, shape=(38, 34))
    pattern = _pattern(stack)

    def edit(dataset: Dataset, index: int) -> None:
        dataset.SpacingBetweenSlices = numbers([9.0])[0]
        dataset.InstanceNumber = 1

    folder = tmp_path / "s"
    order = np.random.default_rng(6).permutation(len(stack))
    write_series(folder, stack.take(order), pattern, uid=UID, edit=edit, extension="")
    write_series(folder, stack.take([4, 20]), pattern, uid=UID, label="twice", edit=edit)
    scout = acquire("sagittal" if plane == "axial" else "axial", slices=1, shape=(38, 34))
    write_series(folder, scout, np.full((1, 38, 34), 700.0), uid=UID, label="scout")
    (folder / "notes").write_text("not DICOM")
    image = cached(folder)
    assert_frame(image)
    assert_shows(image, stack, pattern)
    assert {"minority_dropped", "duplicate_slices"} <= image.codes


def test_a_file_that_was_cut_off_in_its_header_is_no_slice(tmp_path):
    acquisition = acquire()
    pattern = _pattern(acquisition)
    written = write_series(tmp_path / "s", acquisition, pattern)
    written.paths[6].write_bytes(written.paths[6].read_bytes()[:400])
    image = cached(tmp_path / "s")
    assert_shows(image, acquisition.take([i for i in range(24) if i != 6]), pattern)


def test_a_slice_with_an_impossible_position_does_not_bend_the_stack(tmp_path):
    acquisition = acquire()
    pattern = _pattern(acquisition)

    def edit(dataset: Dataset, index: int) -> None:
        if index == 5:
            dataset.ImagePositionPatient = numbers([0, 0, 1e7])

    write_series(tmp_path / "s", acquisition, pattern, edit=edit)
    outcome = run(tmp_path / "s")
    if outcome.cached:
        assert_shows(outcome.image(), acquisition.take([i for i in range(24) if i != 5]), pattern)
    else:
        assert outcome.reason() in {"gap_too_large", "implausible_geometry"}
