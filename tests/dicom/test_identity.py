"""One SeriesInstanceUID over two patients, studies or frames of reference: refused, and never one volume."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydicom import Dataset

from aneurysm.dicom.series import read_series
from aneurysm.errors import Reason, SeriesRejectedError
from tests.support.acquisition import acquire
from tests.support.cached import cached, run
from tests.support.pattern import anatomy
from tests.support.series import new_uid, write_multiframe, write_series
from tests.support.truth import assert_shows

UID = new_uid("identity")
STACK = acquire(slices=20, gap_mm=2.0)
PATTERN = anatomy(STACK.centre, STACK.extent_mm)
OTHER = anatomy(STACK.centre, STACK.extent_mm, 700.0)
IDENTITY = ("PatientID", "FrameOfReferenceUID", "StudyInstanceUID")


def _another(keyword: str) -> str:
    return "SOMEONE ELSE" if keyword == "PatientID" else new_uid("another", keyword)


def _half_a_gap_on(folder, keywords, *, stripped: bool = False, n: int = 20) -> None:
    """A second head, half a gap from the first."""

    def edit(dataset: Dataset, index: int) -> None:
        for keyword in keywords:
            setattr(dataset, keyword, _another(keyword))

    moved = acquire(slices=20, gap_mm=2.0, middle=(-7.3, 21.7, 144.1)).take(range(n))
    write_series(folder, moved, OTHER, uid=UID, label="second", edit=edit, stripped=stripped)


@pytest.mark.parametrize("layout", ["tree", "one folder of the RSNA layout"])
@pytest.mark.parametrize("keywords", [*((k,) for k in IDENTITY), IDENTITY], ids="+".join)
def test_two_heads_with_one_uid_are_refused(tmp_path, keywords, layout):
    data = tmp_path / "d"
    first, second = (data / "a", data / "b") if layout == "tree" else (data / "series" / UID,) * 2
    write_series(first, STACK, PATTERN, uid=UID, stripped=layout != "tree")
    _half_a_gap_on(second, keywords, stripped=layout != "tree")
    # In the RSNA layout the folder alone bears the UID: the test set's files have none.
    outcome = run(data)
    assert outcome.reason() == "several_subjects"
    detail = outcome.row()["detail"]
    assert detail.startswith("40 frames with this SeriesInstanceUID are of 2 ")
    assert detail.endswith("20 and 20 frames")
    assert "SOMEONE" not in json.dumps(outcome.rows())


@pytest.mark.parametrize("keyword", IDENTITY)
def test_two_multiframe_files_of_two_patients_are_refused(tmp_path, keyword):
    def edit(dataset: Dataset) -> None:
        dataset.SOPInstanceUID = new_uid("second file")
        setattr(dataset, keyword, _another(keyword))

    write_multiframe(tmp_path / "s", STACK, PATTERN, uid=UID)
    write_multiframe(tmp_path / "s", STACK, OTHER, uid=UID, edit=edit)
    assert run(tmp_path / "s").reason() == "several_subjects"


@pytest.mark.parametrize("keyword", IDENTITY)
@pytest.mark.parametrize("value", [None, "", "0"], ids=["absent", "empty", "placeholder"])
@pytest.mark.parametrize("part", [range(3), range(10), range(17)], ids=len)
def test_what_is_absent_in_some_files_contradicts_nothing(tmp_path, keyword, value, part):
    def edit(dataset: Dataset, index: int) -> None:
        if index not in part:
            return
        if value is None:
            delattr(dataset, keyword)
        elif keyword == "PatientID":
            dataset.PatientID = "Anonymous" if value else ""
        else:
            setattr(dataset, keyword, value)

    written = write_series(tmp_path / "s", STACK, PATTERN, uid=UID, edit=edit)
    series = read_series(UID, written.paths)
    assert len(series.frames) == 20
    assert series.decisions == []
    assert series.patient_id == "SYNTHETIC"


def test_writers_that_pad_or_change_case_do_not_make_two_patients(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.PatientID = ("p-7", "P-7 ")[index % 2]

    written = write_series(tmp_path / "s", STACK, PATTERN, uid=UID, edit=edit)
    assert len(read_series(UID, written.paths).frames) == 20


@pytest.mark.parametrize("keyword", IDENTITY)
def test_an_identity_of_its_own_for_every_file_is_not_believed(tmp_path, keyword):
    def edit(dataset: Dataset, index: int) -> None:
        setattr(dataset, keyword, f"1.2.3.{index}")

    write_series(tmp_path / "s", STACK, PATTERN, uid=UID, edit=edit)
    image = cached(tmp_path / "s")
    assert "identity_per_file" in image.codes
    assert_shows(image, STACK, PATTERN)


@pytest.mark.parametrize("keyword", IDENTITY)
def test_a_stray_file_of_another_patient_is_left_out(tmp_path, keyword):
    write_series(tmp_path / "s", STACK, PATTERN, uid=UID)
    _half_a_gap_on(tmp_path / "s", [keyword], n=2)
    image = cached(tmp_path / "s")
    assert "foreign_files" in image.codes
    assert_shows(image, STACK, PATTERN)


def test_files_of_another_series_and_of_another_patient_are_one_decision(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        if index == 4:
            dataset.SeriesInstanceUID = "1.2.3"
        if index == 7:
            dataset.PatientID = "SOMEONE ELSE"

    written = write_series(tmp_path / "s", STACK, PATTERN, uid=UID, edit=edit)
    (decision,) = read_series(UID, written.paths).decisions
    assert (decision.code, decision.detail) == (
        "foreign_files",
        "1 files of other patients; 1 files of 1 other series",
    )


def test_which_files_come_first_makes_no_difference(tmp_path):
    write_series(tmp_path / "s", STACK, PATTERN, uid=UID)
    _half_a_gap_on(tmp_path / "s", ["PatientID"], n=2)
    paths = sorted((tmp_path / "s").iterdir())
    expected = {f.sop_uid for f in read_series(UID, paths).frames}
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(paths))
        series = read_series(UID, [paths[i] for i in order])
        assert {f.sop_uid for f in series.frames} == expected
        assert series.patient_id == "SYNTHETIC"


def test_three_patients_are_counted(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.PatientID = "ABC"[index // 7]

    written = write_series(tmp_path / "s", STACK, PATTERN, uid=UID, edit=edit)
    with pytest.raises(SeriesRejectedError, match=r"20 frames .* of 3 patients: 7 and 7 and 6 frames") as caught:
        read_series(UID, written.paths)
    assert caught.value.reason == Reason.SEVERAL_SUBJECTS
