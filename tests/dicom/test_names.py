"""Names of files and folders may be a patient's: none of them gets into the cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from aneurysm.dicom.series import read_series
from aneurysm.inference.series_paths import find_paths
from tests.support.acquisition import acquire
from tests.support.cached import run
from tests.support.pattern import anatomy
from tests.support.series import new_uid, write_series
from tests.support.trees import RsnaTree

STACK = acquire(slices=30, shape=(20, 20))
PATTERN = anatomy(STACK.centre, STACK.extent_mm)
UID = new_uid("names")


def write_trouble(folder: Path) -> None:
    """A series with something to say of several files, none of which has a name that may be told."""

    def edit(dataset: Dataset, index: int) -> None:
        if index == 20:
            dataset.SOPInstanceUID = "1.SECRET"
            dataset.BitsAllocated = 12

    with pydicom.config.disable_value_validation():
        written = write_series(folder, STACK, PATTERN, uid=UID, edit=edit)
    written.paths[5].write_bytes(written.paths[5].read_bytes()[:-300])
    written.paths[9].write_bytes(b"not DICOM")
    other = acquire("sagittal", slices=1, shape=(20, 20))
    write_series(folder, other, np.ones((1, 20, 20)), uid=UID, label="scout")
    far = acquire(slices=1, offsets_mm=[0], middle=(0, 0, 400), shape=(20, 20))
    write_series(folder, far, np.ones((1, 20, 20)), uid=UID, label="far")
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"SECRET^JANE_{number}.dcm")


def assert_secret(cache: Path) -> None:
    for path in cache.rglob("*"):
        assert "SECRET" not in str(path.relative_to(cache))
        assert path.is_dir() or b"SECRET" not in path.read_bytes(), path


@pytest.mark.parametrize("layout", ["rsna", "tree"])
def test_no_name_gets_into_the_cache(tmp_path, layout):
    data = tmp_path / "data"
    folder = data / ("series" if layout == "rsna" else "archive") / "SECRET_JANE"
    write_trouble(folder)
    outcome = run(data)
    codes = outcome.image().codes
    # A tree knows before that a file is none of DICOM.
    assert {"unsupported_file", "unreadable_slice", "minority_dropped", "dropped_slices"} <= codes
    assert layout == "tree" or "unreadable_files" in codes
    assert_secret(outcome.cache)
    assert not any("SECRET" in path.uid for path in find_paths(data))


def test_nor_where_it_is_rejected(tmp_path):
    folder = tmp_path / "data" / "series" / "SECRET_JANE"
    write_trouble(folder)
    for path in sorted(folder.iterdir())[3:20]:
        path.write_bytes(path.read_bytes()[:-300])
    outcome = run(tmp_path / "data")
    assert outcome.reason() == "unreadable_pixels"
    assert_secret(outcome.cache)


def test_a_file_is_told_by_its_image_or_by_its_place(tmp_path):
    folder = tmp_path / "s"
    write_trouble(folder)
    series = read_series(UID, sorted(folder.iterdir()))
    told = {d.code: d.detail for d in series.decisions}
    assert told["unsupported_file"].startswith("file ")
    assert " of 32 by name: BitsAllocated is 12" in told["unsupported_file"]
    assert series.frames[0].name == f"image {series.frames[0].sop_uid}"


def test_a_folder_that_is_no_uid_is_told_by_its_hash_unless_the_tables_name_it(tmp_path):
    tree = RsnaTree(tmp_path / "data")
    tree.declare("case-7", "CTA")
    for name in ("case-7", "case-8", UID):
        write_series(tree.folder(name), STACK, PATTERN, uid=new_uid(name))
    found = run(tree.write_tables()).rows()
    assert set(found) == {"case-7", UID, f"folder-{hashlib.sha256(b'case-8').hexdigest()[:16]}"}
    assert all(row["status"] == "cached" for row in found.values())


def test_a_uid_that_is_none_is_not_told(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.SeriesInstanceUID = "SECRET^JANE"

    with pydicom.config.disable_value_validation():
        write_series(tmp_path / "data" / "a", STACK, PATTERN, edit=edit)
    outcome = run(tmp_path / "data")
    assert outcome.reason() == "invalid_uid"
    assert_secret(outcome.cache)
