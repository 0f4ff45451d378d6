"""Which kind of image it is: train.csv's word where there is one, else what the tags tell, else `MR` or `CT`."""

from __future__ import annotations

import pytest
from pydicom import Dataset

from tests.support.acquisition import acquire
from tests.support.cached import cached, run
from tests.support.pattern import anatomy
from tests.support.series import new_uid, write_multiframe, write_series
from tests.support.trees import RsnaTree

STACK = acquire(slices=10, gap_mm=2)
UID = new_uid("modality")

TOF = {
    "MRAcquisitionType": "3D", "ScanningSequence": "GR", "AngioFlag": "Y", "RepetitionTime": 22, "EchoTime": 3.6,
    "FlipAngle": 18, "SeriesDescription": "TOF_3D_multi-slab", "ProtocolName": "TOF_3D_multi-slab",
}  # fmt: skip
T2 = {
    "MRAcquisitionType": "2D", "ScanningSequence": "SE", "SequenceVariant": "SK", "RepetitionTime": 5200,
    "EchoTime": 96, "FlipAngle": 150, "SeriesDescription": "t2_tse_tra", "ProtocolName": "t2_tse_tra",
}  # fmt: skip
T1_POST = {
    "MRAcquisitionType": "3D", "ScanningSequence": "GR", "RepetitionTime": 1900, "EchoTime": 2.5,
    "InversionTime": 900, "FlipAngle": 9, "ContrastBolusAgent": "Gadobutrol",
    "SeriesDescription": "t1_mprage_sag_post_gd", "ProtocolName": "t1_mprage_sag",
}  # fmt: skip
T1_PLAIN = {k: v for k, v in T1_POST.items() if k != "ContrastBolusAgent"} | {"SeriesDescription": "t1_mprage_sag"}
FLAIR = T2 | {"InversionTime": 2500, "RepetitionTime": 9000, "SeriesDescription": "flair_tra"}


def _tagged(tags: dict[str, object]):
    def edit(dataset: Dataset, index: int) -> None:
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)

    return edit


def _kind(tmp_path, tags: dict[str, object], modality: str = "MR", **options) -> tuple[str, str]:
    pattern = anatomy(STACK.centre, base=300 if modality == "CT" else 700)
    write_series(tmp_path / "s", STACK, pattern, modality=modality, edit=_tagged(tags), **options)
    image = cached(tmp_path / "s")
    return image.meta["modality"], image.meta["modality_source"]


@pytest.mark.parametrize(
    "tags, expected",
    [
        pytest.param(TOF, "MRA", id="time of flight"),
        pytest.param(T2, "MRI T2", id="T2 turbo spin echo"),
        pytest.param(T1_POST, "MRI T1post", id="T1 with gadolinium"),
        pytest.param(
            T1_PLAIN | {"SeriesDescription": "T1 POSTERIOR FOSSA", "RepetitionTime": 600},
            "MR",
            id="a place, no contrast",
        ),
        pytest.param(
            T1_PLAIN | {"SeriesDescription": "AX T1 POST", "RepetitionTime": 600}, "MRI T1post", id="T1 after contrast"
        ),
        pytest.param({}, "MR", id="no tag that tells"),
    ],
)
def test_mr_is_told_apart_as_well_as_the_tags_allow(tmp_path, tags, expected):
    assert _kind(tmp_path, tags) == (expected, "dicom")


@pytest.mark.parametrize("tags", [pytest.param(T1_PLAIN, id="T1 without contrast"), pytest.param(FLAIR, id="FLAIR")])
def test_an_mr_of_none_of_the_kinds_is_called_mr(tmp_path, tags):
    assert _kind(tmp_path, tags)[0] == "MR"


def test_ct_stays_ct_without_a_table(tmp_path):
    assert _kind(tmp_path, {}, "CT") == ("CT", "dicom")


@pytest.mark.parametrize("tags", [TOF, T2, T1_POST], ids=["TOF", "T2", "T1post"])
def test_25_tags_do_not_tell_more_than_mr(tmp_path, tags):
    assert _kind(tmp_path, tags, stripped=True) == ("MR", "dicom")


@pytest.mark.parametrize("kind", ["CTA", "MRA", "MRI T2", "MRI T1post"])
@pytest.mark.parametrize("stripped", [False, True], ids=["all tags", "25 tags"])
def test_the_tables_word_counts(tmp_path, kind, stripped):
    tree = RsnaTree(tmp_path / "data")
    tree.declare(UID, kind)
    modality = "CT" if kind == "CTA" else "MR"
    pattern = anatomy(STACK.centre, base=300 if modality == "CT" else 700)
    # Headers that say something else must not overrule it.
    tags = _tagged(T2 if kind != "MRI T2" and modality == "MR" else {})
    write_series(tree.folder(UID), STACK, pattern, uid=UID, modality=modality, stripped=stripped, edit=tags)
    outcome = run(tree.write_tables())
    image = outcome.image(UID)
    assert (image.meta["modality"], image.meta["modality_source"]) == (kind, "train.csv")
    row = outcome.row(UID)
    assert (row["modality"], row["modality_source"]) == (kind, "train.csv")


def test_a_table_that_says_mra_for_a_ct_does_not_make_it_mr(tmp_path):
    """Hounsfield units stay Hounsfield units, whatever the table says."""
    tree = RsnaTree(tmp_path / "data")
    tree.declare(UID, "MRA")
    write_series(tree.folder(UID), STACK, anatomy(STACK.centre), uid=UID)
    outcome = run(tree.write_tables())
    if outcome.cached:
        assert outcome.image(UID).meta["intensity"]["unit"] == "HU"
    else:
        assert outcome.reason(UID)


@pytest.mark.parametrize("modality", ["US", "PT", "SR"])
def test_other_modalities_are_refused(tmp_path, modality):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.Modality = modality

    write_series(tmp_path / "s", STACK, anatomy(STACK.centre), edit=edit)
    outcome = run(tmp_path / "s")
    assert outcome.cached == 0
    assert outcome.reason() in {"unsupported_modality", "no_images"}


def test_an_enhanced_time_of_flight_is_mra(tmp_path):
    def edit(dataset: Dataset) -> None:
        _tagged({"SeriesDescription": "TOF", "ProtocolName": "TOF", "AcquisitionContrast": "TOF"})(dataset, 0)

    write_multiframe(tmp_path / "s", STACK, anatomy(STACK.centre, base=700), edit=edit)
    assert cached(tmp_path / "s").meta["modality"] == "MRA"
