"""Which files are one series: a folder of RSNA's layout, or the UIDs in the headers of any tree."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from pathlib import Path

import pydicom
import pytest
from rich.console import Console

from aneurysm.cli.progress import PrecacheProgress
from aneurysm.dicom.header import Header, read_header
from aneurysm.errors import Reason, SeriesRejectedError
from aneurysm.precaching.run import precache
from aneurysm.processes.children import LostError
from aneurysm.rawdata.facts import SeriesFacts
from aneurysm.rawdata.file_facts import FileFacts, lost_facts
from aneurysm.rawdata.folder import SeriesSource, find_series, group_by_series, hashed_name
from tests.support.acquisition import acquire
from tests.support.cached import run
from tests.support.pattern import anatomy
from tests.support.series import new_uid, save, write_series
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
    assert first.meta["voxel_hash"] == second.meta["voxel_hash"]


def test_files_come_in_the_order_of_their_paths_and_each_header_is_read_once(tmp_path, monkeypatch):
    """Folder by folder: as text, "a.b/..." would come before "a/..."."""
    written = write_series(tmp_path / "all", STACK, PATTERN, uid=UID)
    names = ["b/2", "a/1", "a.b/1", "a/0/9", "b/10", "a-", "c/d/e/f", "a/0.5", "b/1", "z"]
    for path, name in zip(written.paths, names, strict=True):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "data" / name)
    read = Counter()
    monkeypatch.setattr(
        "aneurysm.rawdata.file_facts.read_header", lambda path, real=read_header: read.update([path]) or real(path)
    )
    (source,) = find_series(tmp_path / "data", workers=0).sources
    expected = sorted(tmp_path / "data" / name for name in names)
    assert source.list_files() == expected
    assert read == Counter(expected)
    assert all(isinstance(path, Path) for path in source.list_files())


def test_the_size_is_told_from_the_file_in_the_middle(tmp_path):
    for name, size in (("a", 5), ("b", 7), ("c", 100), (".hidden", 1000)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "folder").mkdir()
    assert SeriesSource("1.2", tmp_path).extent() == SeriesFacts(3, 21)
    assert SeriesSource("1.2", files=(str(tmp_path / "c"),)).extent() == SeriesFacts(1, 100)
    assert SeriesSource("1.2", tmp_path / "folder").extent() == SeriesFacts()
    assert SeriesSource("1.2", tmp_path / "absent").facts() == SeriesFacts()


def test_what_is_no_image_in_a_free_tree_is_counted_with_an_example(tmp_path, capsys):
    """A report, a file that lost its pixels with its header, and what is no DICOM; no name of a file is shown."""
    data = tmp_path / "data"
    written = write_series(data / "Smith", STACK, PATTERN, uid=UID)
    for number, name in enumerate(("report-Smith", "other-Smith")):
        report = pydicom.dcmread(written.paths[0])
        report.SOPInstanceUID, report.SeriesInstanceUID = f"1.2.3.{number}", OTHER_UID
        for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated"):
            delattr(report, keyword)
        save(report, data / name)
    torn = written.paths[0].read_bytes()
    (data / "torn-Smith").write_bytes(torn[: torn.index(b"\x08\x00\x16\x00") + 4])
    (data / "letter-Smith").write_text("no image")
    ignored = find_series(data, workers=0).ignored
    assert ignored.counts == {"DICOM without image": 2, "damaged DICOM": 1, "not DICOM": 1}
    assert ignored.examples == {
        "DICOM without image": "image 1.2.3.1",
        "damaged DICOM": "file 14 of 14 by path",
        "not DICOM": "file 11 of 14 by path",
    }
    with PrecacheProgress(Console(stderr=True, width=300)) as progress:
        precache(data, tmp_path / "cache", progress=progress)
    shown = capsys.readouterr().err
    assert "2 DICOM without image (such as image 1.2.3.1)" in shown
    assert "-Smith" not in shown


def test_slices_that_lost_their_pixels_stay_with_their_series(tmp_path):
    """Broken off within the header, or before the pixels: a series of nothing else has a row, too."""
    data = tmp_path / "data"
    first = write_series(data / "a", STACK, PATTERN, uid=UID)
    second = write_series(data / "b", OTHER.take([0, 1]), OTHER_PATTERN, uid=OTHER_UID)
    ends = (b"\xe0\x7f\x10\x00", b"\x28\x00\x30\x00", b"\x28\x00\x30\x00")
    for path, end in zip((first.paths[4], *second.paths), ends, strict=True):
        path.write_bytes(path.read_bytes()[: path.read_bytes().index(end)] + end[: len(end) // 2])
    sources = {source.uid: source for source in find_series(data, workers=0).sources}
    assert [len(sources[uid].files) for uid in (UID, OTHER_UID)] == [10, 2]
    outcome = run(data)
    assert outcome.reason(UID) == "unreadable_pixels", "one of ten slices is more than a spec allows"
    assert outcome.reason(OTHER_UID) == "no_images"


def unreadable(monkeypatch, *lost: Path) -> None:
    """Make reading of these files fail as a disk does, while a tree is scanned."""

    def read(path: Path) -> Header:
        if path in lost:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read_header(path)

    monkeypatch.setattr("aneurysm.rawdata.file_facts.read_header", read)


def test_a_series_is_not_cached_without_a_file_that_the_scan_could_not_read(tmp_path, monkeypatch):
    data = tmp_path / "data"
    written = write_series(data / "Smith", STACK, PATTERN, uid=UID)
    write_series(data / "Smith-other", OTHER, OTHER_PATTERN, uid=OTHER_UID)
    with monkeypatch.context() as patch:
        unreadable(patch, written.paths[4])
        outcome = run(data)
    assert outcome.cached == 1
    assert outcome.row(UID)["status"] == "failed"
    assert outcome.reason(UID) == "read_error"
    number = sorted(written.paths).index(written.paths[4]) + 1
    detail = outcome.row(UID)["detail"]
    assert f"file {number} of 22 by path" in detail
    assert "OSError: Input/output error" in detail
    assert "Smith" not in detail
    again = run(data, retry_failed=True)
    assert_shows(again.image(UID), STACK, PATTERN)


def test_a_link_to_a_file_that_is_not_there_is_a_file_that_can_not_be_read(tmp_path):
    """As in a data set of which not everything was fetched; in either layout."""
    written = write_series(tmp_path / "tree" / "one", STACK, PATTERN, uid=UID)
    written.paths[4].unlink()
    written.paths[4].symlink_to("nowhere")
    shutil.copytree(written.folder, tmp_path / "rsna" / "series" / UID, symlinks=True)
    assert run(tmp_path / "tree").reason(UID) == "read_error"
    assert run(tmp_path / "rsna").reason(UID) == "read_error"


def test_a_series_that_is_spread_over_folders_may_have_lost_any_file(tmp_path, monkeypatch):
    data = tmp_path / "data"
    for i in range(10):
        written = write_series(data / "spread" / str(i), STACK.take([i]), PATTERN, uid=UID, label=str(i))
        last = written.paths[0]
    write_series(data / "whole", OTHER, OTHER_PATTERN, uid=OTHER_UID)
    unreadable(monkeypatch, last)
    outcome = run(data)
    assert outcome.reason(UID) == "read_error"
    assert outcome.row(OTHER_UID)["status"] == "cached"


def test_files_of_a_folder_of_which_none_can_be_read_have_a_row_until_they_can(tmp_path, monkeypatch):
    data = tmp_path / "data"
    written = write_series(data / "Smith", STACK, PATTERN, uid=UID)
    write_series(data / "whole", OTHER, OTHER_PATTERN, uid=OTHER_UID)
    with monkeypatch.context() as patch:
        unreadable(patch, *written.paths)
        outcome = run(data)
    assert outcome.cached == 1
    (name,) = outcome.rows().keys() - {OTHER_UID}
    assert name == hashed_name("unreadable", "Smith")
    assert outcome.reason(name) == "read_error"
    assert "and 9 more of its folder" in outcome.row(name)["detail"]
    assert set(run(data).rows()) == {UID, OTHER_UID}


def test_a_file_that_ends_the_process_which_scans_it_stops_its_series(tmp_path):
    facts = [FileFacts(series_uid=UID)] * 3
    facts[1] = lost_facts("b/2", LostError(Reason.WORKER_KILLED, "the process died of signal 11 (SIGSEGV)"))
    (source,), _ = group_by_series(Path("/"), ["/b/1", "/b/2", "/b/3"], facts)
    assert source.uid == UID
    with pytest.raises(SeriesRejectedError, match=r"file 2 of 3 by path.*SIGSEGV.*may be one of this series") as caught:
        source.check_complete()
    assert caught.value.reason == Reason.WORKER_KILLED


def test_a_folder_that_can_not_be_listed_has_a_row(tmp_path, monkeypatch):
    """But not lost+found, which every disk has; and a link to itself is a file that can't be read."""
    data = tmp_path / "data"
    write_series(data / "one", STACK, PATTERN, uid=UID)
    (data / "lost+found").mkdir()
    (data / "locked").mkdir()
    (data / "links").mkdir()
    (data / "links" / "loop").symlink_to("loop")
    list_folder = os.scandir

    def refuse(folder):
        if Path(folder).name in ("lost+found", "locked"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_series(data, workers=0)
    lost = {source.uid for source in found.sources if source.lost}
    assert lost == {hashed_name("unreadable", name) for name in ("locked", "links")}
    assert [source.uid for source in found.sources if not source.lost] == [UID]
    assert found.ignored.counts == {"unreadable": 1}
