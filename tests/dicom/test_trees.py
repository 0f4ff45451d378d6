"""Which files are one series: a folder of RSNA's layout, or the UIDs in the headers of any tree."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from aneurysm.dicom import scan
from tests.support.acquisition import acquire
from tests.support.cached import run
from tests.support.pattern import anatomy
from tests.support.series import new_uid, write_series
from tests.support.trees import RsnaTree, scatter_junk
from tests.support.truth import assert_shows

STACK = acquire(slices=10, gap_mm=2)
PATTERN = anatomy(STACK.centre)
OTHER = acquire("coronal", slices=12, gap_mm=1.5)
OTHER_PATTERN = anatomy(OTHER.centre, base=500)
UID, OTHER_UID = new_uid("one"), new_uid("other")


@pytest.mark.parametrize("stripped", [False, True], ids=["all tags", "25 tags"])
def test_in_rsnas_layout_a_folder_is_a_series(tmp_path, stripped):
    tree = RsnaTree(tmp_path / "data")
    for uid, stack, pattern in ((UID, STACK, PATTERN), (OTHER_UID, OTHER, OTHER_PATTERN)):
        tree.declare(uid, "CTA")
        write_series(tree.folder(uid), stack, pattern, uid=uid, stripped=stripped)
    outcome = run(tree.write_tables())
    assert outcome.cached == 2
    assert_shows(outcome.image(UID), STACK, PATTERN)
    assert_shows(outcome.image(OTHER_UID), OTHER, OTHER_PATTERN)


def test_rsnas_layout_needs_no_tables(tmp_path):
    """As for the test set: only series/."""
    tree = RsnaTree(tmp_path / "data")
    write_series(tree.folder(UID), STACK, PATTERN, uid=UID, stripped=True)
    assert_shows(run(tree.root).image(UID), STACK, PATTERN)


def test_a_series_of_the_table_without_a_folder_has_a_row(tmp_path):
    tree = RsnaTree(tmp_path / "data")
    tree.declare(UID, "CTA")
    tree.declare(OTHER_UID, "CTA")
    write_series(tree.folder(UID), STACK, PATTERN, uid=UID)
    outcome = run(tree.write_tables())
    assert outcome.cached == 1
    assert outcome.rows()[OTHER_UID]["status"] != "cached"
    assert outcome.rows()[OTHER_UID]["reason"] == "no_files"


def test_in_a_free_tree_headers_tell_series_apart(tmp_path):
    """Two series in one folder, and one of them spread over several, among files that are not DICOM."""
    data = tmp_path / "data"
    write_series(data / "mixed", STACK.take(range(0, 10, 2)), PATTERN, uid=UID, extension="")
    write_series(data / "mixed", OTHER, OTHER_PATTERN, uid=OTHER_UID, extension=".ima")
    write_series(data / "deep" / "er", STACK.take(range(1, 10, 2)), PATTERN, uid=UID, extension=".IMG", label="rest")
    scatter_junk(data)
    outcome = run(data)
    assert (outcome.cached, outcome.rejected, outcome.failed) == (2, 0, 0)
    assert set(outcome.rows()) == {UID, OTHER_UID}
    assert_shows(outcome.image(UID), STACK, PATTERN)
    assert_shows(outcome.image(OTHER_UID), OTHER, OTHER_PATTERN)


def test_names_of_files_mean_nothing(tmp_path):
    data = tmp_path / "data"
    written = write_series(data, STACK, PATTERN)
    for number, path in enumerate(written.paths):
        path.rename(data / ["a.txt", "b.nii.gz", "c.csv", "d", "e.jpg", "f.", "g h", "ü.dcm", "i.zip", "IM0"][number])
    assert_shows(run(data).image(written.uid), STACK, PATTERN)


def test_junk_in_a_series_folder_is_not_a_slice(tmp_path):
    tree = RsnaTree(tmp_path / "data")
    tree.declare(UID, "CTA")
    write_series(tree.folder(UID), STACK, PATTERN, uid=UID)
    scatter_junk(tree.folder(UID))
    assert_shows(run(tree.write_tables()).image(UID), STACK, PATTERN)


def test_files_without_a_preamble_are_dicom_too(tmp_path):
    """A bare data set, as some archives and old devices write them: implicit little endian."""
    data = tmp_path / "data"
    written = write_series(data, STACK, PATTERN)
    for path in written.paths:
        path.write_bytes(_without_preamble(path))
    assert_shows(run(data).image(written.uid), STACK, PATTERN)


def _without_preamble(path) -> bytes:
    """The file meta information stays, as in files whose first 132 bytes were lost."""
    content = path.read_bytes()
    assert content[128:132] == b"DICM"
    return content[132:]


def test_files_without_a_series_uid_are_a_series_by_folder(tmp_path):
    data = tmp_path / "data"
    write_series(data / "one", STACK, PATTERN, stripped=True)
    write_series(data / "other", OTHER, OTHER_PATTERN, stripped=True)
    outcome = run(data)
    assert outcome.cached == 2
    shapes = {tuple(outcome.image(uid).meta["source"]["shape"]): uid for uid in outcome.rows()}
    assert_shows(outcome.image(shapes[10, 32, 28]), STACK, PATTERN)
    assert_shows(outcome.image(shapes[12, 32, 28]), OTHER, OTHER_PATTERN)


def test_a_series_is_the_same_from_either_layout(tmp_path):
    tree = RsnaTree(tmp_path / "rsna")
    written = write_series(tree.folder(UID), STACK, PATTERN, uid=UID)
    shutil.copytree(written.folder, tmp_path / "free" / "anywhere")
    first, second = run(tree.root).image(UID), run(tmp_path / "free").image(UID)
    assert (first.stored == second.stored).all()
    assert (first.affine == second.affine).all()
    assert first.meta["content_hash"] == second.meta["content_hash"]


def test_files_come_in_the_order_of_their_paths_and_each_header_is_read_once(tmp_path, monkeypatch):
    """Folder by folder: as text, "a.b/..." would come before "a/..."."""
    written = write_series(tmp_path / "all", STACK, PATTERN, uid=UID)
    names = ["b/2", "a/1", "a.b/1", "a/0/9", "b/10", "a-", "c/d/e/f", "a/0.5", "b/1", "z"]
    for path, name in zip(written.paths, names, strict=True):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "data" / name)
    read = Counter()
    monkeypatch.setattr(scan, "read_header", lambda path, real=scan.read_header: read.update([path]) or real(path))
    (source,) = scan.find_series(tmp_path / "data").sources
    expected = sorted(tmp_path / "data" / name for name in names)
    assert source.list_files() == expected
    assert read == Counter(expected)
    assert all(isinstance(path, Path) for path in source.list_files())


def test_the_size_is_told_from_the_file_in_the_middle(tmp_path):
    for name, size in (("a", 5), ("b", 7), ("c", 100), (".hidden", 1000)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "folder").mkdir()
    assert scan.SeriesSource("1.2", tmp_path).approximate_size() == 21
    assert scan.SeriesSource("1.2", files=(str(tmp_path / "c"),)).approximate_size() == 100
    assert scan.SeriesSource("1.2", tmp_path / "folder").approximate_size() == 0


def test_what_can_not_be_opened_in_a_free_tree_is_counted(tmp_path, monkeypatch):
    """A folder that is root's alone, as lost+found, and a link to itself."""
    data = tmp_path / "data"
    write_series(data / "one", STACK, PATTERN, uid=UID)
    (data / "lost+found").mkdir()
    (data / "loop").symlink_to("loop")
    list_folder = os.scandir

    def refuse(folder):
        if Path(folder).name == "lost+found":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = scan.find_series(data)
    assert [source.uid for source in found.sources] == [UID]
    assert found.ignored == Counter(unreadable=2)
