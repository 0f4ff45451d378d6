"""The paths that `aneurysm predict` is given: no series stands for another, and none is lost."""

from __future__ import annotations

import shutil

import pytest

from aneurysm.cli.predict_input import find, split
from aneurysm.errors import DataError, UsageError
from aneurysm.inference.series_paths import find_paths, unnamed_place
from aneurysm.precaching.run import precache
from aneurysm.rawdata.bucket import BucketSource
from aneurysm.rawdata.folder import find_series
from tests.support.acquisition import acquire
from tests.support.cache_paths import volume_path
from tests.support.pattern import lone_blob
from tests.support.series import write_multiframe, write_series

STACK = acquire("axial", slices=12)
PATTERN = lone_blob(STACK.centre)


def found(*paths):
    series, absent = find([str(path) for path in paths], None, None)
    assert not absent
    return series


def test_two_folders_of_one_name_without_a_uid_are_two_series_whichever_way_they_are_named(
    tmp_path, monkeypatch, capsys
):
    for name in ("a", "b"):
        write_series(tmp_path / name / "scan", STACK, PATTERN, uid="1.2.3", stripped=True)
    monkeypatch.chdir(tmp_path / "a")
    both = found("scan", "../b/scan")
    assert len({s.uid for s in both}) == 2
    assert [s.uid for s in found(tmp_path)] == [s.uid for s in both]
    assert found("../b/scan")[0].uid == both[1].uid
    said = capsys.readouterr().err
    assert f"scan has no SeriesInstanceUID: it is called {both[0].uid}" in said
    assert f"a series in {tmp_path} has no SeriesInstanceUID: it is called {both[0].uid}" in said
    assert not any("scan" in s.uid for s in both)


def test_two_files_of_one_name_without_a_uid_are_two_series(tmp_path):
    files = []
    for name in ("a", "b"):
        write_multiframe(tmp_path / name, STACK, PATTERN, stripped=True)
        (file,) = (tmp_path / name).iterdir()
        files.append(file.rename(file.with_name("IM0001")))
    assert len({s.uid for s in found(*files)}) == 2


def test_a_folder_or_file_that_is_called_as_a_uid_keeps_its_name(tmp_path, monkeypatch):
    write_series(tmp_path / "1.2.3", STACK, PATTERN, stripped=True)
    write_multiframe(tmp_path / "x", STACK, PATTERN, stripped=True)
    (file,) = (tmp_path / "x").iterdir()
    monkeypatch.chdir(tmp_path / "1.2.3")
    assert [s.uid for s in found(".", file.rename(tmp_path / "1.2.4.dcm"))] == ["1.2.3", "1.2.4"]


def test_a_series_without_a_uid_in_an_object_store_is_named_by_its_url():
    stored = [BucketSource(f"folder-{'0' * 16}", url=f"s3://b/{name}", keys=("scan/1.dcm",)) for name in "ac"]
    assert [unnamed_place(source) for source in stored] == ["s3://b/a/scan", "s3://b/c/scan"]
    assert unnamed_place(BucketSource("1.2.3", url="s3://b/a", keys=("scan/1.dcm",))) is None


def test_two_folders_below_one_that_are_called_as_one_uid_are_two_series(tmp_path):
    for name in ("a", "b"):
        write_series(tmp_path / name / "1.2.3", STACK, PATTERN, stripped=True)
    sources = find_series(tmp_path).sources
    assert sources[0].uid == "1.2.3"
    assert sources[1].uid.startswith("folder-")


def test_one_series_that_is_named_twice_is_one(tmp_path):
    write_series(tmp_path / "data" / "1.2.3", STACK, PATTERN, uid="1.2.3")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert [s.uid for s in found(tmp_path / "data", tmp_path / "data" / "1.2.3", tmp_path / "link")] == ["1.2.3"]


def test_other_files_of_one_series_are_refused(tmp_path):
    written = write_series(tmp_path / "one", STACK, PATTERN, uid="1.2.3")
    (tmp_path / "other").mkdir()
    for path in written.paths[6:]:
        shutil.move(path, tmp_path / "other")
    words = rf"{tmp_path}/one and {tmp_path}/other hold different files of series 1\.2\.3"
    with pytest.raises(UsageError, match=words):
        found(tmp_path / "one", tmp_path / "other")


def test_a_series_and_its_cached_volume_are_not_taken_for_one(tmp_path):
    write_series(tmp_path / "data" / "1.2.3", STACK, PATTERN, uid="1.2.3")
    precache(tmp_path / "data", tmp_path / "cache", workers=0)
    volume = volume_path(tmp_path / "cache", "1.2.3")
    assert len(found(tmp_path / "cache", volume)) == 1
    with pytest.raises(UsageError, match="different files"):
        found(tmp_path / "data", tmp_path / "cache")
    with pytest.raises(UsageError, match=r"copy\.zarr is no volume in its cache: name it as CACHE/volumes/../"):
        find_paths(shutil.copytree(volume, tmp_path / "copy.zarr"))


def test_two_empty_folders_of_one_name_are_two_rows(tmp_path):
    for name in ("a/scan", "b/scan", "1.2.3"):
        (tmp_path / name).mkdir(parents=True)
    series, absent = find([str(tmp_path / name) for name in ("a/scan", "b/scan", "1.2.3", "a/scan")], None, None)
    assert not series
    assert len({failure.series_uid for failure in absent}) == len(absent) == 3
    assert absent[2].series_uid == "1.2.3"
    assert all(failure.reason == "no_images" for failure in absent)


@pytest.mark.parametrize("content", [("config.toml",), ("checkpoints/last.ckpt",)])
def test_a_run_without_a_best_checkpoint_is_no_series(tmp_path, content):
    for name in content:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).touch()
    (tmp_path / "x.ckpt").touch()
    with pytest.raises(UsageError, match="run is a run's folder that has no best checkpoint yet"):
        split([str(tmp_path / "x.ckpt"), str(tmp_path / "run"), str(tmp_path)])


def test_what_can_t_be_read_is_told(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()

    def refused(_path):
        raise PermissionError(13, "Permission denied", "data/deep")

    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(DataError, match="data, or something in it, can't be read: Permission denied"):
        find_paths(tmp_path / "data")
    series, (failure,) = find([str(tmp_path / "data")], None, None)
    assert (series, failure.status, failure.reason) == ([], "failed", "read_error")
    monkeypatch.undo()
    with pytest.raises(UsageError, match="can't be read: File name too long"):
        split(["x" * 300])
