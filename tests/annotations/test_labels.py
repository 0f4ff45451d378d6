"""train.csv's labels and the patients' keys, in the manifest and in the volumes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import Dataset

from aneurysm.labels import LABELS
from tests.support.acquisition import Acquisition, acquire
from tests.support.cached import Outcome, cached, run
from tests.support.pattern import anatomy
from tests.support.series import new_uid, write_series
from tests.support.trees import LOCATION, RsnaTree

UID = new_uid("tables")


@pytest.fixture
def tree(tmp_path) -> RsnaTree:
    return RsnaTree(tmp_path / "data")


def _write(tree: RsnaTree, acquisition: Acquisition) -> None:
    tree.declare(UID, "CTA", positive=[LOCATION])
    write_series(tree.folder(UID), acquisition, anatomy(acquisition.centre), uid=UID)


def _labels(outcome: Outcome, uid: str) -> list[str]:
    return [outcome.row(uid)[label] for label in LABELS]


def test_labels_stand_in_the_manifest_and_in_the_volume(tree):
    _write(tree, acquire(slices=6))
    outcome = run(tree.write_tables())
    expected = ["1" if label in {LOCATION, LABELS[13]} else "0" for label in LABELS]
    assert _labels(outcome, UID) == expected
    assert outcome.image(UID).meta["labels"] == dict(zip(LABELS, map(int, expected), strict=True))


def test_labels_of_a_rejected_series_stand_in_the_manifest_too(tree):
    _write(tree, acquire(slices=1))
    assert _labels(run(tree.write_tables()), UID)[6] == "1"


def test_a_positive_series_without_a_localizer_is_cached_with_its_labels(tree):
    _write(tree, acquire(slices=6))
    image = run(tree.write_tables()).image(UID)
    assert image.lesions == []
    assert image.meta["labels"][LABELS[13]] == 1


def test_a_free_tree_has_no_labels(tmp_path: Path):
    acquisition = acquire(slices=6)
    write_series(tmp_path / "s", acquisition, anatomy(acquisition.centre))
    image = cached(tmp_path / "s")
    assert image.meta["labels"] is None
    assert image.lesions == []


def test_a_patient_of_two_series_has_one_key(tmp_path: Path):
    def patient(name: str):
        def edit(dataset: Dataset, index: int) -> None:
            dataset.PatientID = name

        return edit

    acquisition = acquire(slices=4)
    uids = []
    for number, name in enumerate(["A", "A", "B"]):
        written = write_series(
            tmp_path / "data" / str(number), acquisition, anatomy(acquisition.centre), edit=patient(name)
        )
        uids.append(written.uid)
    outcome = run(tmp_path / "data")
    keys = [outcome.row(uid)["patient_key"] for uid in uids]
    assert keys[0] == keys[1] != keys[2]
    assert not {"A", "B"} & set(keys)
    assert all(len(key) == 16 for key in keys)
