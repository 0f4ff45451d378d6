"""Rows of train_localizers.csv land on the anatomy they were drawn on, or are listed with the reason why not."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from aneurysm.labels import LABELS
from tests.support.acquisition import PLANES, Acquisition, acquire, rotation
from tests.support.cached import CachedImage, run
from tests.support.pattern import anatomy, lone_blob
from tests.support.series import Written, new_uid, write_multiframe, write_series
from tests.support.specs import write_spec
from tests.support.trees import LOCATION, RsnaTree

UID = new_uid("lesions")


@pytest.fixture
def tree(tmp_path) -> RsnaTree:
    return RsnaTree(tmp_path / "data")


def _write(tree: RsnaTree, acquisition: Acquisition, modality: str = "CTA", **options) -> Written:
    tree.declare(UID, modality, positive=[LOCATION])
    kind = "CT" if modality == "CTA" else "MR"
    pattern = anatomy(acquisition.centre, acquisition.extent_mm, base=300 if kind == "CT" else 700)
    return write_series(tree.folder(UID), acquisition, pattern, uid=UID, modality=kind, **options)


def _cached(tree: RsnaTree, **options) -> CachedImage:
    return run(tree.write_tables(), **options).image(UID)


def _assert_at(image: CachedImage, expected_lps: np.ndarray, *, number: int = 0, location: str = LOCATION) -> None:
    lesion = image.lesions[number]
    assert lesion["location"] == location
    assert np.allclose(lesion["lps_mm"], expected_lps, atol=1e-3)
    # The voxel coordinates say the same by the volume's own affine.
    assert np.allclose(image.lps(np.array(lesion["zyx"])), expected_lps, atol=1e-3)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("reverse", [False, True], ids=["along the normal", "against the normal"])
def test_a_row_is_placed_by_its_own_slices_header(tree, plane, reverse):
    acquisition = acquire(plane, reverse=reverse, spacing_mm=(0.7, 0.9), gap_mm=1.4)
    written = _write(tree, acquisition)
    tree.localize(UID, written.sops[17], 20.3621, 7.3599)
    _assert_at(_cached(tree), acquisition.lps(17, 20.3621, 7.3599))


def test_whole_numbers_are_pixel_centres(tree):
    acquisition = acquire()
    written = _write(tree, acquisition)
    tree.localize(UID, written.sops[5], 11, 3)
    image = _cached(tree)
    _assert_at(image, acquisition.positions[5] + [11, 3, 0])
    assert np.allclose(image.lesions[0]["zyx"], [5, 3, 11], atol=1e-6), "the grid is the series' own here"


@pytest.mark.parametrize("tilt_deg", [-18, 0, 12])
def test_the_marked_voxel_is_the_bright_one(tree, tilt_deg):
    """End to end: a blob at the marked pixel, through tilt, unevenness and obliqueness."""
    steps = np.random.default_rng(2).uniform(0.7, 1.3, 31)
    acquisition = acquire(
        offsets_mm=[0, *np.cumsum(steps)], tilt_deg=tilt_deg, turn=rotation((1, 1, 0), 7), shape=(44, 36)
    )
    point = acquisition.lps(14, 19.25, 22.5)
    tree.declare(UID, "CTA", positive=[LOCATION])
    written = write_series(tree.folder(UID), acquisition, lone_blob(point, sigma_mm=2.0), uid=UID)
    tree.localize(UID, written.sops[14], 19.25, 22.5)
    image = _cached(tree)
    _assert_at(image, point)
    brightest = np.unravel_index(np.argmax(image.physical), image.stored.shape)
    assert np.abs(np.array(image.lesions[0]["zyx"]) - brightest).max() <= 0.75


@pytest.mark.parametrize("spec", ["rsna-1mm", "rsna-1mm-u8", "rsna-head-0.5mm"])
def test_the_spec_changes_the_voxel_and_not_the_point(tree, spec):
    acquisition = acquire(gap_mm=1.3)
    written = _write(tree, acquisition)
    tree.localize(UID, written.sops[9], 14.5, 12.25)
    _assert_at(_cached(tree, spec=spec), acquisition.lps(9, 14.5, 12.25))


def test_several_rows_keep_their_sites_and_their_order(tree):
    acquisition = acquire()
    written = _write(tree, acquisition)
    marks = [(LABELS[0], 3, 4.5, 6.0), (LABELS[12], 20, 21.0, 30.0), (LABELS[5], 3, 4.5, 6.0)]
    for location, index, x, y in marks:
        tree.localize(UID, written.sops[index], x, y, location)
    image = _cached(tree)
    found = {lesion["location"]: lesion["lps_mm"] for lesion in image.lesions}
    assert found.keys() == {location for location, *_ in marks}
    for location, index, x, y in marks:
        assert np.allclose(found[location], acquisition.lps(index, x, y), atol=1e-3)


def test_a_row_on_a_duplicate_is_placed_like_one_on_the_slice_that_was_kept(tree):
    acquisition = acquire()
    written = _write(tree, acquisition)
    pattern = anatomy(acquisition.centre, acquisition.extent_mm)
    again = write_series(tree.folder(UID), acquisition.take([6]), pattern, uid=UID, label="again", first_number=50)
    tree.localize(UID, written.sops[6], 10.5, 12.0)
    tree.localize(UID, again.sops[0], 10.5, 12.0, LABELS[2])
    image = _cached(tree)
    assert "duplicate_slices" in image.codes
    for number, location in enumerate([LOCATION, LABELS[2]]):
        _assert_at(image, acquisition.lps(6, 10.5, 12.0), number=number, location=location)


def test_a_row_on_an_unreadable_slice_is_placed_by_its_header(tree):
    acquisition = acquire()
    written = _write(tree, acquisition)
    written.paths[12].write_bytes(written.paths[12].read_bytes()[:-600])
    tree.localize(UID, written.sops[12], 10.5, 12.0)
    image = _cached(tree)
    assert "unreadable_slice" in image.codes
    _assert_at(image, acquisition.lps(12, 10.5, 12.0))


def test_a_row_on_a_slice_that_contradicts_the_others_is_placed_by_its_header(tree):
    def edit(dataset: Dataset, index: int) -> None:
        if index == 12:
            dataset.RescaleType = "MGML"

    acquisition = acquire()
    written = _write(tree, acquisition, edit=edit)
    tree.localize(UID, written.sops[12], 10.5, 12.0)
    image = _cached(tree)
    assert image.meta["images"]["codes"] == ["", "inconsistent_slices"]
    _assert_at(image, acquisition.lps(12, 10.5, 12.0))


def test_rows_hold_when_other_slices_are_dropped(tree):
    stray = acquire(offsets_mm=[*np.arange(24), 70.0])
    written = _write(tree, stray)
    scout = acquire("sagittal", slices=1)
    write_series(tree.folder(UID), scout, np.full((1, 32, 28), 900.0), uid=UID, label="scout")
    tree.localize(UID, written.sops[2], 10.5, 12.0)
    image = _cached(tree)
    assert {"dropped_slices", "minority_dropped"} <= image.codes
    _assert_at(image, stray.lps(2, 10.5, 12.0))


def test_a_row_on_a_dropped_slice_is_not_placed_beyond_the_volume(tree):
    """The stray slice lies 46 mm above the volume: its row has a place in the patient but none in the cache."""
    stray = acquire(offsets_mm=[*np.arange(24), 70.0])
    written = _write(tree, stray)
    tree.localize(UID, written.sops[24], 10.5, 12.0)
    image = _cached(tree)
    assert image.lesions == []
    assert image.unplaced[0]["location"] == LOCATION
    assert image.unplaced[0]["reason"]
    assert image.unplaced[0]["detail"]


def test_a_row_on_a_scout_through_the_volume_is_right_or_not_placed(tree):
    acquisition = acquire()
    _write(tree, acquisition)
    scout = acquire("sagittal", slices=1)
    written = write_series(tree.folder(UID), scout, np.full((1, 32, 28), 900.0), uid=UID, label="scout")
    tree.localize(UID, written.sops[0], 14.0, 16.0)
    image = _cached(tree)
    if image.lesions:
        _assert_at(image, scout.lps(0, 14.0, 16.0))
    else:
        assert image.unplaced[0]["reason"]


@pytest.mark.parametrize("index, placed", [(20, True), (2, False)], ids=["inside", "below"])
def test_a_box_leaves_out_the_rows_that_lie_beyond_it(tree, tmp_path, index, placed):
    acquisition = acquire()
    written = _write(tree, acquisition)
    tree.localize(UID, written.sops[index], 14.25, 15.5)
    spec = write_spec(tmp_path / "box.toml", region_mm=(10.0, 20.0, 20.0))
    image = _cached(tree, spec=str(spec))
    if placed:
        _assert_at(image, acquisition.lps(index, 14.25, 15.5))
    else:
        assert image.lesions == []
        assert image.unplaced[0]["reason"]


@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("plane", PLANES)
def test_a_multiframe_row_is_placed_by_its_frame(tree, plane, shuffled):
    acquisition = acquire(plane, spacing_mm=(0.8, 1.2), gap_mm=1.5)
    if shuffled:
        acquisition = acquisition.take(np.random.default_rng(7).permutation(24))
    tree.declare(UID, "MRA", positive=[LOCATION])
    pattern = anatomy(acquisition.centre, base=700)
    written = write_multiframe(tree.folder(UID), acquisition, pattern, uid=UID)
    tree.localize(UID, written.sops[0], 8.25, 15.75, frame=0)
    tree.localize(UID, written.sops[0], 8.25, 15.75, LABELS[3], frame=13)
    image = _cached(tree)
    _assert_at(image, acquisition.lps(0, 8.25, 15.75))
    _assert_at(image, acquisition.lps(13, 8.25, 15.75), number=1, location=LABELS[3])


def test_a_row_of_a_stripped_multiframe_file_is_placed_within_the_fallback_geometry(tree):
    acquisition = acquire(slices=90, gap_mm=0.55, spacing_mm=(0.5, 0.5), shape=(48, 40))
    tree.declare(UID, "MRA", positive=[LOCATION])
    point = acquisition.lps(40, 22.0, 20.0)
    # Wide, so that it is the head to whatever looks for one, and is not clipped flat.
    pattern = lone_blob(point, sigma_mm=4.0, base=2.0)
    written = write_multiframe(tree.folder(UID), acquisition, pattern, uid=UID, stripped=True)
    tree.localize(UID, written.sops[0], 22.0, 20.0, frame=40)
    image = _cached(tree)
    brightest = np.unravel_index(np.argmax(image.physical), image.stored.shape)
    assert np.abs(np.array(image.lesions[0]["zyx"]) - brightest).max() <= 0.75


def test_rows_of_files_stripped_to_25_tags_are_placed(tree):
    acquisition = acquire("coronal", gap_mm=1.3)
    written = _write(tree, acquisition, stripped=True)
    tree.localize(UID, written.sops[8], 3.0, 30.0)
    _assert_at(_cached(tree), acquisition.lps(8, 3.0, 30.0))


class TestRowsThatCanNotBePlaced:
    @pytest.fixture
    def written(self, tree) -> Written:
        return _write(tree, acquire(slices=8))

    def _unplaced(self, tree: RsnaTree) -> dict[str, str]:
        outcome = run(tree.write_tables())
        image = outcome.image(UID)
        assert image.lesions == []
        (row,) = image.unplaced
        assert row["location"] == LOCATION
        assert row["detail"]
        listed = [r for r in outcome.lesion_rows() if row["reason"] in r.values()]
        assert len(listed) == 1, f"lesions.csv must list it: {outcome.lesion_rows()}"
        return row

    def test_an_instance_that_is_not_in_the_series(self, tree, written):
        tree.localize(UID, new_uid("elsewhere"), 5, 5)
        assert self._unplaced(tree)["reason"] == "image_not_in_series"

    @pytest.mark.parametrize("x, y", [(-40, 5), (5, 400), (1e6, 5)], ids=["left of it", "below it", "far off"])
    def test_a_point_outside_the_image(self, tree, written, x, y):
        tree.localize(UID, written.sops[5], x, y)
        assert self._unplaced(tree)["reason"] == "outside_image"

    @pytest.mark.parametrize(
        "text",
        [
            pytest.param("", id="nothing"),
            pytest.param("nan", id="nan"),
            pytest.param("{'x': 3.0}", id="no y"),
            pytest.param("{'x': 'a', 'y': 3}", id="text for a number"),
            pytest.param("[1, 2]", id="a list"),
            pytest.param("{'x': nan, 'y': 2}", id="nan for x"),
            pytest.param("{'x': 1e999, 'y': 2}", id="infinity for x"),
            pytest.param("{'x': 1, 'y': 2, 'f': 1e999}", id="infinity for f"),
            pytest.param(f"{{'x': {'9' * 400}, 'y': 2}}", id="a number beyond floating point"),
            pytest.param("__import__('os')", id="code"),
            pytest.param("{'x': 1,", id="cut off"),
        ],
    )
    def test_coordinates_that_can_not_be_read(self, tree, written, text):
        tree.localizers.append([UID, written.sops[5], text, LOCATION])
        assert self._unplaced(tree)["reason"] == "malformed_row"

    def test_a_frame_that_does_not_exist(self, tree):
        acquisition = acquire()
        tree.declare(UID, "MRA", positive=[LOCATION])
        pattern = anatomy(acquisition.centre, base=700)
        written = write_multiframe(tree.folder(UID), acquisition, pattern, uid=UID)
        tree.localize(UID, written.sops[0], 5, 5, frame=24)
        assert self._unplaced(tree)["reason"] == "no_such_frame"

    def test_a_multiframe_row_without_its_frame(self, tree):
        acquisition = acquire()
        tree.declare(UID, "MRA", positive=[LOCATION])
        pattern = anatomy(acquisition.centre, base=700)
        written = write_multiframe(tree.folder(UID), acquisition, pattern, uid=UID)
        tree.localize(UID, written.sops[0], 5, 5)
        assert self._unplaced(tree)["reason"] == "no_frame_number"

    def test_an_image_of_which_there_are_two_at_different_places(self, tree):
        written = _write(tree, acquire())
        dataset = pydicom.dcmread(written.paths[3])
        dataset.SOPInstanceUID = written.sops[7]
        dataset.save_as(written.paths[3])
        tree.localize(UID, written.sops[7], 5, 5)
        assert self._unplaced(tree)["reason"] == "ambiguous_image"

    def test_each_frame_of_a_file_was_left_out_for_a_reason_of_its_own(self, tree):
        """The last frame repeats another, the second lies across the others."""
        acquisition = acquire(slices=12).take([*range(12), 4])

        def turn(frame: Dataset, index: int) -> None:
            if index == 1:
                item = Dataset()
                item.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
                frame.PlaneOrientationSequence = [item]

        tree.declare(UID, "MRA", positive=[LOCATION])
        pattern = anatomy(acquisition.centre, base=700)
        written = write_multiframe(tree.folder(UID), acquisition, pattern, uid=UID, edit_frame=turn)
        tree.localize(UID, written.sops[0], 5, 5, frame=1)
        row = self._unplaced(tree)
        assert row["reason"] == "image_not_in_volume"
        assert "minority" in row["detail"]


def test_good_rows_are_placed_beside_bad_ones(tree):
    acquisition = acquire()
    written = _write(tree, acquisition)
    tree.localize(UID, new_uid("elsewhere"), 5, 5, LABELS[1])
    tree.localize(UID, written.sops[5], 9.0, 10.0)
    tree.localize(new_uid("another series"), written.sops[5], 5, 5, LABELS[4])
    outcome = run(tree.write_tables())
    image = outcome.image(UID)
    _assert_at(image, acquisition.lps(5, 9.0, 10.0))
    assert [row["location"] for row in image.unplaced] == [LABELS[1]]
    assert outcome.row(UID)["n_lesions"] == "1"
    assert len(outcome.lesion_rows()) == 3, "every row of the table is accounted for"


def test_a_row_of_a_rejected_series_is_listed_with_a_reason(tree):
    written = _write(tree, acquire(slices=1))
    tree.localize(UID, written.sops[0], 5, 5)
    outcome = run(tree.write_tables())
    assert outcome.reason(UID) == "too_few_slices"
    (row,) = outcome.lesion_rows()
    assert UID in row.values()
    assert any("too_few_slices" in value or "reject" in value or "not_cached" in value for value in row.values())


def test_a_row_on_a_slice_of_a_second_part_is_placed_by_that_slice(tree):
    """A block with the gantry tilted below the majority: its slices are in the volume, too, where they lay."""
    upper = acquire(slices=16, gap_mm=3.0, shape=(40, 40), spacing_mm=(1.5, 1.5), middle=(0, 0, 40))
    lower = acquire(
        slices=12, gap_mm=2.0, shape=(40, 40), spacing_mm=(1.5, 1.5), tilt_deg=15.0, middle=(0, 0, 40 - 22.5 - 4 - 11)
    )
    point = lower.lps(5, 23.25, 17.5)
    pattern = lone_blob(point, sigma_mm=3.0)
    uid = new_uid("two parts")
    tree.declare(uid, "CTA", [LOCATION])
    write_series(tree.folder(uid), upper, pattern, uid=uid)
    written = write_series(tree.folder(uid), lower, pattern, uid=uid, label="lower", first_number=100)
    tree.localize(uid, written.sops[5], 23.25, 17.5)
    image = run(tree.write_tables()).image(uid)
    assert "several_parts" in image.codes
    (lesion,) = image.lesions
    assert lesion["lps_mm"] == pytest.approx(point, abs=1e-3)
    assert lesion["zyx"] == pytest.approx(image.zyx(point), abs=1e-3)
    brightest = np.unravel_index(image.stored.argmax(), image.stored.shape)
    assert np.abs(np.array(brightest) - lesion["zyx"]).max() <= 1.0
