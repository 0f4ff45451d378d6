"""What the headers of some files say must not decide over the others, and what none can say is not made up."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import JPEGLSLossless

from aneurysm.dicom.header import read_header
from aneurysm.dicom.multiframe import frames_of_file
from aneurysm.dicom.series import read_series
from aneurysm.errors import Reason, SeriesRejectedError
from tests.support.acquisition import acquire
from tests.support.cached import cached, rejected
from tests.support.pattern import anatomy
from tests.support.pixels import Storage
from tests.support.series import new_uid, write_multiframe, write_series
from tests.support.truth import assert_shows

STACK = acquire(slices=24, shape=(20, 20))
PATTERN = anatomy(STACK.centre, STACK.extent_mm)
UID = new_uid("foreign")


def rewrite(path, *changes: tuple[bytes, bytes]) -> None:
    content = path.read_bytes()
    for old, new in changes:
        assert content.count(old) == 1
        content = content.replace(old, new)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change, keyword",
    [
        pytest.param((b"-1024.0 ", b"-1024.0,"), "RescaleIntercept", id="intercept"),
        pytest.param((b"-1024.0 ", b"   nan  "), "RescaleIntercept", id="not a number"),
        pytest.param((b"DS\x04\x001.0 (\x00\x54", b"DS\x04\x001,0 (\x00\x54"), "RescaleSlope", id="slope"),
        pytest.param((b"\x03\x01US\x02\x00\x00\x00", b"\x03\x01SH\x02\x00no"), "PixelRepresentation", id="sign"),
    ],
)
def test_a_slice_with_a_malformed_rescale_is_left_out_and_named(tmp_path, change, keyword):
    written = write_series(tmp_path / "s", STACK, PATTERN)
    rewrite(written.paths[9], change)
    image = cached(tmp_path / "s")
    assert_shows(image, STACK.take([i for i in range(24) if i != 9]), PATTERN)
    (told,) = [d["detail"] for d in image.meta["decisions"] if d["code"] == "unsupported_file"]
    assert told == f"image {written.sops[9]}: {keyword} malformed"


def test_a_malformed_rescale_of_one_frame_makes_the_file_unusable(tmp_path):
    written = write_multiframe(tmp_path / "s", STACK, PATTERN, modality="CT")
    content = written.paths[0].read_bytes()
    written.paths[0].write_bytes(content.replace(b"-1024.0 ", b"-1024.0,", 1))
    assert rejected(tmp_path / "s") == "unsupported_pixels"


def test_unsigned_ct_without_an_intercept_says_so(tmp_path):
    bare = Storage(16, 16, signed=False, slope=None, intercept=None)
    values = np.abs(STACK.sample(PATTERN))
    write_series(tmp_path / "s", STACK, values, storage=bare)
    assert "no_rescale" in cached(tmp_path / "s").codes


class TestWhoseFolderItIs:
    def test_files_of_the_series_that_the_folder_bears_are_kept_and_those_that_name_none(self, tmp_path):
        def edit(dataset: Dataset, index: int) -> None:
            if index == 3:
                del dataset.SeriesInstanceUID
            if index > 20:
                dataset.SeriesInstanceUID = "1.2.3"

        written = write_series(tmp_path / "s", STACK, PATTERN, uid=UID, edit=edit)
        series = read_series(UID, written.paths)
        assert len(series.frames) == 21
        assert [(d.code, d.detail) for d in series.decisions] == [("foreign_files", "3 files of 1 other series")]

    def test_one_file_without_a_uid_does_not_make_the_others_foreign(self, tmp_path):
        def edit(dataset: Dataset, index: int) -> None:
            if index == 3:
                del dataset.SeriesInstanceUID

        written = write_series(tmp_path / "s", STACK, PATTERN, uid=UID, edit=edit)
        assert len(read_series("9.9", written.paths).frames) == 24

    def test_several_series_in_a_folder_of_another_uid_are_not_mixed(self, tmp_path):
        first = write_series(tmp_path / "s", STACK.take(range(12)), PATTERN, uid="1.2.3")
        second = write_series(tmp_path / "s", STACK.take(range(12, 24)), PATTERN, uid="1.2.4")
        with pytest.raises(SeriesRejectedError, match=r"24 files of 2 series, none of which is 9\.9") as caught:
            read_series("9.9", [*first.paths, *second.paths])
        assert caught.value.reason == Reason.SEVERAL_VOLUMES


@pytest.mark.parametrize("placed", [True, False], ids=["with a place", "without"])
def test_a_screenshot_among_the_slices_does_not_say_what_they_are(tmp_path, placed):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.Modality = "OT"
        del dataset.InstanceNumber
        if not placed:
            del dataset.ImagePositionPatient

    write_series(tmp_path / "s", STACK, PATTERN, uid=UID)
    shot = acquire(offsets_mm=[30.0], shape=(20, 20))
    write_series(tmp_path / "s", shot, np.zeros((1, 20, 20)), uid=UID, label="shot", edit=edit)
    image = cached(tmp_path / "s")
    assert_shows(image, STACK, PATTERN)
    assert image.meta["modality"] == "CT"


@pytest.mark.parametrize("unit", ["MGML", "Z_EFF"])
@pytest.mark.parametrize("many", [False, True], ids=["file per slice", "multi-frame"])
def test_maps_of_another_unit_are_no_ct(tmp_path, unit, many):
    def edit(dataset: Dataset, index: int) -> None:
        target = dataset.PixelValueTransformationSequence[0] if many else dataset
        target.RescaleType = unit

    if many:
        write_multiframe(tmp_path / "s", STACK, PATTERN, modality="CT", edit_frame=edit)
    else:
        write_series(tmp_path / "s", STACK, PATTERN, edit=edit)
    assert rejected(tmp_path / "s") == "unsupported_pixels"


@pytest.mark.parametrize("unit", ["HU_MOD", "US", "hu", ""])
def test_hounsfield_units_by_any_name_are_ct(tmp_path, unit):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.RescaleType = unit

    write_series(tmp_path / "s", STACK, PATTERN, edit=edit)
    assert_shows(cached(tmp_path / "s"), STACK, PATTERN)


def test_a_slice_whose_pixel_data_is_too_long_is_one_slice(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.PixelData = dataset.PixelData * 2

    written = write_series(tmp_path / "s", STACK, PATTERN, edit=edit)
    frames, decisions = frames_of_file(read_header(written.paths[0]))
    assert len(frames) == 1
    assert decisions == []
    assert_shows(cached(tmp_path / "s"), STACK, PATTERN)


def test_jpeg_ls_of_bits_that_are_not_the_lowest_is_refused(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.HighBit = 15

    write_series(tmp_path / "s", STACK, PATTERN, syntax=JPEGLSLossless, edit=edit)
    assert rejected(tmp_path / "s") == "unsupported_pixels"


def test_one_note_for_each_kind_of_file_that_is_of_no_use(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        if index > 15:
            dataset.BitsAllocated = 12

    written = write_series(tmp_path / "s", STACK, PATTERN, edit=edit)
    (told,) = read_series(written.uid, written.paths).decisions
    assert told.detail.count("BitsAllocated") == 5
    assert told.detail.endswith(" and 3 more")
