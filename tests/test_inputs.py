"""What lies at a path that a user named is called by its name, with what to do where something else is wanted."""

from __future__ import annotations

import errno
import gzip
import os
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from aneurysm.cli.predict_input import find, split
from aneurysm.errors import DataError, UsageError
from aneurysm.inference.series_paths import find_paths
from aneurysm.inputs import InputKind, Wanted, describe, folders_inside, mistake
from aneurysm.rawdata.folder import check_level, find_series
from aneurysm.report.run import read_run
from tests.support.acquisition import acquire
from tests.support.command import call_cli
from tests.support.pattern import lone_blob
from tests.support.series import write_series

STACK = acquire("axial", slices=4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One of each thing that is named by mistake."""
    root = tmp_path_factory.mktemp("inputs")
    write_series(root / "scan", STACK, lone_blob(STACK.centre), uid="1.2.3").paths[0].rename(root / "one.dcm")
    content = (root / "one.dcm").read_bytes()
    (root / "one.dcm.gz").write_bytes(gzip.compress(content))
    with zipfile.ZipFile(root / "data.zip", "w") as archive:
        archive.writestr("x.dcm", content)
    for name, mode in (("data.tar", "w"), ("data.tgz", "w:gz")):
        with tarfile.open(root / name, mode) as archive:
            archive.add(root / "one.dcm", "x.dcm")
    (root / "scan.nii").write_bytes(bytes(344) + b"n+1\0")
    (root / "scan.nii.gz").write_bytes(gzip.compress(bytes(344) + b"n+1\0"))
    (root / "notes.txt").write_text("hello")
    (root / "empty").mkdir()
    volume = root / "cache" / "volumes" / "ab" / "1.2.zarr"
    volume.mkdir(parents=True)
    for file in (root / "cache" / "spec.toml", volume / "zarr.json"):
        file.touch()
    run = root / "runs" / "a"
    (run / "checkpoints").mkdir(parents=True)
    (run / "evaluation").mkdir()
    for file in (run / "config.toml", run / "evaluation" / "report.html"):
        file.touch()
    for path in (run / "checkpoints" / "best.ckpt", root / "weights"):
        torch.save({"x": 1}, path)
    (root / "set" / "series" / "1.2.3" / "sub").mkdir(parents=True)
    (root / "set" / "train.csv").touch()
    (root / "gone").symlink_to(root / "not there")
    return root


@pytest.mark.parametrize(
    "name, kind, words",
    [
        ("one.dcm", InputKind.DICOM, "a DICOM file"),
        ("one.dcm.gz", InputKind.COMPRESSED_DICOM, "a DICOM file compressed with gzip"),
        ("data.zip", InputKind.ARCHIVE, "a ZIP archive"),
        ("data.tar", InputKind.ARCHIVE, "a tar archive"),
        ("data.tgz", InputKind.ARCHIVE, "a tar archive"),
        ("scan.nii", InputKind.NIFTI, "a NIfTI file"),
        ("scan.nii.gz", InputKind.NIFTI, "a NIfTI file"),
        ("notes.txt", InputKind.FILE, "a file"),
        ("empty", InputKind.EMPTY, "an empty folder"),
        ("scan", InputKind.FOLDER, "a folder"),
        ("cache", InputKind.CACHE, "a cache"),
        ("cache/volumes", InputKind.CACHE_VOLUMES, "the folder of a cache's volumes"),
        ("cache/volumes/ab", InputKind.CACHE_VOLUMES, "the folder of a cache's volumes"),
        ("cache/volumes/ab/1.2.zarr", InputKind.CACHE_VOLUME, "a volume of a cache"),
        ("runs", InputKind.RUNS, "a folder of runs (a)"),
        ("runs/a", InputKind.RUN, "a run of `aneurysm train`"),
        ("runs/a/evaluation", InputKind.RUN_PART, "a folder within a run"),
        ("runs/a/checkpoints/best.ckpt", InputKind.CHECKPOINT, "a checkpoint"),
        ("weights", InputKind.CHECKPOINT, "a checkpoint"),
        ("set", InputKind.DATA_SET, "a data set in the RSNA layout"),
    ],
)
def test_it_is_known_whatever_way_it_is_named(place, monkeypatch, name, kind, words):
    monkeypatch.chdir(place)
    for path in (place / name, name, f"./{name}", f"{name}/" if (place / name).is_dir() else name):
        found = describe(path)
        assert (found.kind, found.words) == (kind, words)


@pytest.mark.parametrize(
    "path, words",
    [
        ("1.2.826.0.1.3680043", "A UID alone does not say where the series is: name its folder, or its volume"),
        (r"C:\data\scan", "that is how Windows names a place"),
        ("data/*", "there is nothing that matches data/*"),
        ("{place}/a/b", "there is no {place}/a/b, and no {place}/a"),
        ("{place}/notes.txt/b", "there is no {place}/notes.txt/b: {place}/notes.txt is no folder"),
        ("{place}/gone", "{place}/gone is a link to something that is not there"),
        ("{place}/my scan", "there is no {place}/my scan"),
        ("x" * 300, "can't be read: File name too long"),
    ],
)
def test_what_is_not_there_has_one_reason(place, monkeypatch, path, words):
    monkeypatch.chdir(place)
    for wanted in Wanted:
        told = mistake(describe(path.format(place=place)), wanted)
        assert told is not None
        assert words.format(place=place) in told


REFUSED = {
    "one.dcm": "is a DICOM file: name the folder above all series",
    "one.dcm.gz": "unpack it (gunzip)",
    "data.zip": "is a ZIP archive: unpack it",
    "data.tar": "is a tar archive: unpack it",
    "scan.nii.gz": "is a NIfTI file: only DICOM is read",
    "notes.txt": "is a file: name the folder",
    "empty": "is an empty folder",
    "cache": "is a cache: a cache is named with --cache",
    "cache/volumes/ab/1.2.zarr": "is a volume of a cache: a cache is named with --cache",
    "runs": "is a folder of runs (a): there are no series in it",
    "runs/a": "is a run of `aneurysm train`: there are no series in it",
    "runs/a/checkpoints/best.ckpt": "is a checkpoint: there are no series in it",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_data(place, tmp_path, name):
    ran = call_cli("precache", "--data", place / name, "--cache", tmp_path / "cache", "--workers", 1)
    assert ran.code == 2, ran.text
    assert ran.err.count("\n") == 1
    assert str(place / name) in ran.err
    assert REFUSED[name] in ran.err


@pytest.mark.parametrize(
    "name, words",
    [
        ("scan", "there is no cache at {place}/scan: it has no spec.toml"),
        ("cache/volumes/ab/1.2.zarr", "is a volume of a cache: the cache is {place}/cache"),
        ("cache/volumes", "is the folder of a cache's volumes: the cache is {place}/cache"),
        ("runs/a", "the cache that a run was trained on is named in its config.toml"),
        ("set", "is a data set in the RSNA layout: `aneurysm precache --data` builds a cache from it"),
        ("data.zip", "is a ZIP archive: a cache is a folder"),
        ("nowhere", "there is no {place}/nowhere"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "info", "manifest", "train"])
def test_what_is_no_cache(place, command, name, words):
    ran = call_cli(command, "--cache", place / name)
    assert ran.code == 3, ran.text
    assert words.format(place=place) in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("name", ["cache/volumes", "runs/a", "set"])
def test_no_cache_is_made_in_what_is_something_else(place, tmp_path, name):
    write_series(tmp_path / "data" / "1.2.3", STACK, lone_blob(STACK.centre), uid="1.2.3")
    before = sorted(place.rglob("*"))
    ran = call_cli("precache", "--data", tmp_path / "data", "--cache", place / name, "--workers", 1)
    assert ran.code == 2, ran.text
    assert "Name another folder with --cache" in ran.err
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    "name, words",
    [
        ("runs", "name one of the runs in it, as {place}/runs/a"),
        ("runs/a/checkpoints/best.ckpt", "is a checkpoint: the run is {place}/runs/a"),
        ("runs/a/evaluation", "the run is {place}/runs/a"),
        ("cache", "is a cache: a run is a folder that `aneurysm train` wrote"),
        ("data.zip", "is a ZIP archive: a run is a folder"),
        ("runs/a", "has no predictions_val.csv: the run has not validated yet"),
        ("nowhere", "there is no {place}/nowhere"),
    ],
)
def test_what_is_no_run(place, name, words):
    with pytest.raises(DataError) as told:
        read_run(place / name)
    assert words.format(place=place) in str(told.value)


@pytest.mark.parametrize(
    "name, words",
    [
        ("runs/a", "name its checkpoint, {place}/runs/a/checkpoints/best.ckpt"),
        ("runs", "name one of the runs in it"),
        ("data.zip", "a checkpoint is a file that `aneurysm train` wrote"),
        ("cache", "is a cache: a checkpoint is a file"),
    ],
)
def test_what_is_no_checkpoint(place, name, words):
    ran = call_cli("train", "--init", place / name)
    assert ran.code == 2
    assert words.format(place=place) in ran.err


@pytest.mark.parametrize(
    "name, words",
    [
        ("data.zip", "is a ZIP archive: unpack it, and name the folder"),
        ("one.dcm.gz", "unpack it (gunzip), with all of its series"),
        ("scan.nii", "is a NIfTI file: only DICOM is read"),
        ("runs", "a run is named by its own folder, as {place}/runs/a"),
        ("cache/volumes", "name the cache, {place}/cache, or one of the volumes"),
    ],
)
def test_what_is_no_series_for_predict(place, name, words):
    with pytest.raises(UsageError) as told:
        split([str(place / "weights"), str(place / name)])
    assert words.format(place=place) in str(told.value)


def test_one_image_and_a_file_that_is_none_are_no_series(place):
    with pytest.raises(UsageError, match=r"one\.dcm is one image of a series: name the folder that holds all of them"):
        find_paths(place / "one.dcm")
    with pytest.raises(UsageError, match=r"notes\.txt is a file, and no DICOM: name the folder of a series"):
        find_paths(place / "notes.txt")


def test_rows_of_paths_without_series_name_no_folder(tmp_path):
    (tmp_path / "DOE^JANE").mkdir()
    (tmp_path / "DOE^JANE" / "notes.txt").write_text("x")
    _, (failure,) = find([str(tmp_path / "DOE^JANE")], None, None)
    assert failure.detail.startswith("path 1 of 1 of series: ")
    assert "not DICOM" in failure.detail
    assert "DOE" not in failure.detail


def test_a_level_too_high_or_too_low_is_said(place):
    with pytest.raises(DataError, match="is one level too high: name the folder in it that has series/ and train"):
        check_level(place)
    with pytest.raises(DataError, match=re.escape(f"and the tables lie above it: name {place / 'set'}")):
        check_level(place / "set" / "series")
    check_level(place / "scan")
    check_level(place / "set")
    with pytest.raises(DataError, match="hold folders, and no files: the files of a series lie directly in series/<UI"):
        find_series(place / "set")


def test_few_of_many_folders_are_looked_into_and_none_that_is_locked(tmp_path, monkeypatch):
    """As lost+found is, which every disk has; nor a link to itself."""
    for i in range(300):
        (tmp_path / f"{i:03}").mkdir()
    (tmp_path / "000.csv").touch()
    (tmp_path / "loop").symlink_to("loop")
    may, stat = os.access, Path.stat

    def refuse(path, **options):
        if path.parent.name == "003":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "003" and may(path, mode))
    monkeypatch.setattr(Path, "stat", refuse)
    expected = [f"{i:03}" for i in range(21) if i != 3]
    assert [path.name for path in folders_inside(tmp_path)] == expected
    check_level(tmp_path)


def test_data_beside_a_configuration_are_data(tmp_path):
    write_series(tmp_path / "data" / "1.2.3", STACK, lone_blob(STACK.centre), uid="1.2.3")
    (tmp_path / "config.toml").touch()
    for path in (tmp_path, tmp_path / "data"):
        assert mistake(describe(path), Wanted.DATA) is None


def test_what_may_be_series_in_a_tree_without_dicom(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.dcm.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match="3 of the files are compressed DICOM files by their names: unpack them first"):
        find_series(tmp_path)
    for k in range(5):
        (tmp_path / f"{k}.nii.gz").touch()
    with pytest.raises(DataError, match="5 of the files are NIfTI files by their names: only DICOM is read"):
        find_series(tmp_path)


def test_info_of_a_path_says_how_it_is_named(place):
    for name, words in (
        ("cache", f"aneurysm info --cache {place}/cache"),
        ("cache/volumes/ab/1.2.zarr", f"aneurysm info 1.2 --cache {place}/cache"),
    ):
        ran = call_cli("info", place / name)
        assert ran.code == 2
        assert words in ran.err
