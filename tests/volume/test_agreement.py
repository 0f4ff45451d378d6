"""Slices of one stack agree in rescale, unit and bits; the few that don't are left out, or get what they lack."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRBigEndian

from tests.support.acquisition import acquire
from tests.support.cached import cached, rejected
from tests.support.pattern import anatomy
from tests.support.pixels import Storage, put_pixels
from tests.support.series import write_multiframe, write_series
from tests.support.truth import assert_shows

STACK = acquire(slices=40, shape=(20, 22))
PATTERN = anatomy(STACK.centre, STACK.extent_mm)
MR_PATTERN = anatomy(STACK.centre, STACK.extent_mm, base=1500)
RAW, SIGNED = Storage(16, 12, signed=False, intercept=-1024.0), Storage(16, 16, signed=True, intercept=-1024.0)
SCALED = Storage(16, 12, signed=False, slope=4.0, intercept=0.0)


def without_rescale(*where: int):
    def edit(dataset: Dataset, index: int) -> None:
        if index in where:
            del dataset.RescaleSlope, dataset.RescaleIntercept

    return edit


@pytest.mark.parametrize(
    "modality, storage",
    [("CT", RAW), ("CT", SIGNED), ("MR", SCALED)],
    ids=["unsigned CT", "signed CT", "MR, 4 times too bright"],
)
@pytest.mark.parametrize("where", [(18, 19, 20), (0, 17, 39), (25,)], ids=str)
def test_slices_without_a_rescale_get_their_neighbours(tmp_path, modality, storage, where):
    pattern = PATTERN if modality == "CT" else MR_PATTERN
    write_series(tmp_path / "s", STACK, pattern, modality=modality, storage=storage, edit=without_rescale(*where))
    image = cached(tmp_path / "s")
    assert_shows(image, STACK, pattern, step=storage.slope)
    assert image.codes == {"rescale_from_neighbours"}
    assert f"{len(where)} of 40 slices" in image.meta["decisions"][0]["detail"]


@pytest.mark.parametrize("many", [5, 20, 30])
def test_a_rescale_that_many_slices_lack_is_no_accident(tmp_path, many):
    write_series(tmp_path / "s", STACK, PATTERN, edit=without_rescale(*range(many)))
    assert rejected(tmp_path / "s") == "unsupported_pixels"


def test_frames_without_a_rescale_among_others_that_have_one(tmp_path):
    def edit(frame: Dataset, index: int) -> None:
        if index in (7, 8):
            del frame.PixelValueTransformationSequence

    write_multiframe(tmp_path / "s", STACK, PATTERN, modality="CT", storage=RAW, edit_frame=edit)
    image = cached(tmp_path / "s")
    assert_shows(image, STACK, PATTERN)
    assert "rescale_from_neighbours" in image.codes


def test_a_slice_in_hu_without_a_rescale_does_not_get_one(tmp_path):
    """Its neighbours' rescale would put it 1,024 HU too low."""
    bare = Storage(16, 16, signed=True, slope=None, intercept=None)
    storage = [bare if i == 9 else SIGNED for i in range(40)]
    write_series(tmp_path / "s", STACK, PATTERN, storage=storage)
    image = cached(tmp_path / "s")
    assert_shows(image, STACK.take([i for i in range(40) if i != 9]), PATTERN)
    assert "inconsistent_slices" in image.codes


@pytest.mark.parametrize(
    "other, named",
    [
        (Storage(16, 12, signed=True, intercept=300.0), "PixelRepresentation"),
        (Storage(16, 13, signed=False, intercept=-1024.0), "BitsStored"),
        (Storage(16, 12, 15, signed=False, intercept=-1024.0), "HighBit"),
        (Storage(32, 12, signed=False, intercept=-1024.0), "BitsAllocated"),
        (Storage(16, 12, signed=False, intercept=-1024.0, inverted=True), "PhotometricInterpretation"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_slice_whose_bits_are_others_is_left_out(tmp_path, modality, other, named):
    storage = [other if i == 12 else RAW for i in range(40)]
    pattern = PATTERN if modality == "CT" else MR_PATTERN
    write_series(tmp_path / "s", STACK, pattern, modality=modality, storage=storage)
    image = cached(tmp_path / "s")
    (detail,) = [d["detail"] for d in image.meta["decisions"] if d["code"] == "inconsistent_slices"]
    assert detail.startswith("1 of 40 slices differ from the others in ")
    assert named in detail
    assert_shows(image, STACK.take([i for i in range(40) if i != 12]), pattern)


def test_signs_that_change_within_a_stack_are_refused(tmp_path):
    signed = Storage(16, 12, signed=True, intercept=300.0)
    write_series(tmp_path / "s", STACK, PATTERN, storage=[signed if i % 3 == 0 else RAW for i in range(40)])
    assert rejected(tmp_path / "s") == "unsupported_pixels"


def test_a_slice_in_another_unit_is_left_out(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        if index == 5:
            dataset.RescaleType = "MGML"

    write_series(tmp_path / "s", STACK, PATTERN, edit=edit)
    image = cached(tmp_path / "s")
    assert "unit" in next(d["detail"] for d in image.meta["decisions"] if d["code"] == "inconsistent_slices")
    assert image.meta["images"]["codes"] == ["", "inconsistent_slices"]
    assert_shows(image, STACK.take([i for i in range(40) if i != 5]), PATTERN)


@pytest.mark.parametrize("wrong", [{"RescaleIntercept": 1024}, {"RescaleIntercept": 0}, {"RescaleSlope": 3}], ids=str)
def test_a_slice_whose_rescale_makes_it_another_level_is_left_out(tmp_path, wrong):
    def edit(dataset: Dataset, index: int) -> None:
        if index == 20:
            dataset.update(wrong)

    write_series(tmp_path / "s", STACK, PATTERN, edit=edit)
    image = cached(tmp_path / "s")
    assert "inconsistent_slices" in image.codes
    assert_shows(image, STACK.take([i for i in range(40) if i != 20]), PATTERN)


def test_rescales_by_turns_that_tear_slices_apart_are_refused(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        if index % 2:
            dataset.RescaleIntercept = -10

    write_series(tmp_path / "s", STACK, PATTERN, edit=edit)
    assert rejected(tmp_path / "s") == "implausible_hu"


def test_an_intercept_of_its_own_for_each_slice_is_obeyed(tmp_path):
    storage = [Storage(16, 16, signed=True, intercept=-1024.0 + 7 * i) for i in range(40)]
    write_series(tmp_path / "s", STACK, PATTERN, storage=storage)
    image = cached(tmp_path / "s")
    assert_shows(image, STACK, PATTERN)
    assert image.codes == set()


def test_slopes_of_mr_may_differ_by_any_usual_factor(tmp_path):
    slopes = np.random.default_rng(3).uniform(0.5, 20, 40)
    storage = [Storage(16, 16, signed=False, slope=float(s), intercept=0.0) for s in slopes.round(3)]
    write_series(tmp_path / "s", STACK, MR_PATTERN, modality="MR", storage=storage)
    image = cached(tmp_path / "s")
    assert_shows(image, STACK, MR_PATTERN, step=20)
    assert image.codes == set()


def test_an_identity_that_some_slices_state_is_none(tmp_path):
    bare = Storage(16, 12, signed=False, slope=None, intercept=None)
    storage = [Storage(16, 12, signed=False) if i % 2 else bare for i in range(40)]
    write_series(tmp_path / "s", STACK, MR_PATTERN, modality="MR", storage=storage)
    image = cached(tmp_path / "s")
    assert_shows(image, STACK, MR_PATTERN)
    assert image.codes == set()


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_slope_of_0_is_not_applied_and_that_is_on_record(tmp_path, modality):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.RescaleSlope = 0

    pattern = PATTERN if modality == "CT" else MR_PATTERN
    storage = RAW if modality == "CT" else Storage(16, 12, signed=False)
    write_series(tmp_path / "s", STACK, pattern, modality=modality, storage=storage, edit=edit)
    image = cached(tmp_path / "s")
    assert_shows(image, STACK, pattern)
    assert image.codes == {"zero_slope"}


@pytest.mark.parametrize("slope", ["1e30", "1e-30"])
def test_slopes_of_no_size_at_all_are_refused_or_left_out(tmp_path, slope):
    def everywhere(dataset: Dataset, index: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, 0

    def once(dataset: Dataset, index: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = (slope if index == 3 else 1), 0

    write_series(tmp_path / "all", STACK, MR_PATTERN, modality="MR", edit=everywhere)
    assert rejected(tmp_path / "all") == "unsupported_pixels"
    write_series(tmp_path / "one", STACK, MR_PATTERN, modality="MR", edit=once)
    image = cached(tmp_path / "one")
    assert "inconsistent_slices" in image.codes
    assert_shows(image, STACK.take([i for i in range(40) if i != 3]), MR_PATTERN)


def test_an_intercept_of_no_size_at_all_is_refused(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        del dataset.RescaleSlope
        dataset.RescaleIntercept = "1e12"

    write_series(tmp_path / "s", STACK, PATTERN, edit=edit)
    assert rejected(tmp_path / "s") == "unsupported_pixels"


def test_slices_of_other_byte_order_are_alike(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        if index % 2:
            stored = np.frombuffer(dataset.PixelData, "<u2").reshape(1, *STACK.shape)
            put_pixels(dataset, RAW, stored, ExplicitVRBigEndian)

    write_series(tmp_path / "s", STACK, PATTERN, storage=RAW, edit=edit)
    image = cached(tmp_path / "s")
    assert_shows(image, STACK, PATTERN)
    assert image.codes == set()
