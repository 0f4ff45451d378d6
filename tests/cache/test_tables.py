"""manifest.csv and lesions.csv by parts: what a rerun reads again, and what it must not take from before."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aneurysm.cache import table_parts, tables
from aneurysm.cache.layout import SUBFOLDERS, CacheLayout, subfolder_of
from aneurysm.cache.manifest import leave_seconds
from aneurysm.cache.metadata import Record, read_document
from aneurysm.cache.table_parts import read_part
from aneurysm.cache.tables import TableCounts, write_tables
from aneurysm.precaching.publish import publish_record
from aneurysm.spec import load_spec
from tests.support.cache_state import leftovers, manifest
from tests.support.noise_cache import add_volume, blocks_of

UIDS = [f"1.2.{i}" for i in range(6)]
TEMPLATE = "9.9.9"


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A volume with a lesion, to be copied under other UIDs."""
    root = tmp_path_factory.mktemp("template")
    add_volume(root, TEMPLATE, shape=(16, 16, 16), sites=(3,), blocks=blocks_of((16, 16, 16), np.s_[0:1, 0:1, 0:1]))
    return root


@pytest.fixture
def layout(template, tmp_path, monkeypatch) -> CacheLayout:
    """Four volumes and a record, all of them settled."""
    monkeypatch.setattr(table_parts, "_GRANULARITY_NS", -(10**15))
    (tmp_path / "spec.toml").write_text(load_spec("rsna-1mm").to_toml())
    layout = CacheLayout(tmp_path)
    for uid in UIDS[:4]:
        put_volume(layout, template, uid)
    put_record(layout, UIDS[4])
    return layout


def put_volume(layout: CacheLayout, template: Path, uid: str) -> None:
    folder = layout.volume(uid)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(CacheLayout(template).volume(TEMPLATE), folder)
    document = read_document(folder).with_changes(series_uid=uid)
    (folder / "zarr.json").write_bytes(document.sealed(folder).to_bytes())


def put_record(layout: CacheLayout, uid: str, detail: str = "a test") -> None:
    record = Record(
        series_uid=uid, status="rejected", reason="mosaic", detail=detail, modality="CTA", modality_source="",
        digest=load_spec("rsna-1mm").digest, labels=None, unplaced_lesions=(),
    )  # fmt: skip
    publish_record(layout, record.sealed())


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Volumes and records that were read, in order."""
    names: list[str] = []
    for name in ("read_document", "read_record"):
        read = getattr(tables, name)
        monkeypatch.setattr(tables, name, lambda path, read=read: (names.append(path.stem), read(path))[1])
    return names


def content(layout: CacheLayout) -> tuple[bytes, bytes]:
    return layout.manifest.read_bytes(), layout.lesions.read_bytes()


def assert_as_derived_afresh(layout: CacheLayout) -> None:
    before = content(layout)
    assert b"series_uid" in before[0]
    write_tables(layout, afresh=True)
    assert content(layout) == before


def test_a_rerun_reads_only_what_changed_and_writes_only_the_parts_of_that(layout, template, reads):
    assert write_tables(layout, {UIDS[0]: 1.5}) == TableCounts(4, 1)
    assert sorted(reads) == UIDS[:5]
    parts = {path.name: path.stat().st_ino for path in layout.tables.iterdir()}
    assert len(parts) == 5
    reads.clear()
    put_volume(layout, template, UIDS[1])
    put_record(layout, UIDS[4], "for another reason")
    put_volume(layout, template, UIDS[5])
    shutil.rmtree(layout.volume(UIDS[2]))
    assert write_tables(layout) == TableCounts(4, 1)
    assert sorted(reads) == [UIDS[1], UIDS[4], UIDS[5]]
    written = {name for name, inode in parts.items() if layout.tables.joinpath(name).stat().st_ino != inode}
    assert written == {f"{subfolder_of(UIDS[i])}.jsonl" for i in (1, 2, 4)}
    rows = manifest(layout.root)
    assert list(rows) == [UIDS[i] for i in (0, 1, 3, 4, 5)]
    assert (rows[UIDS[0]]["seconds"], rows[UIDS[4]]["detail"]) == ("1.500", "for another reason")
    assert_as_derived_afresh(layout)


def test_what_was_changed_just_before_it_was_read_is_read_again(layout, template, reads, monkeypatch):
    """The clock may not have moved on: the same times, and the same size, of other content."""
    monkeypatch.setattr(table_parts, "_GRANULARITY_NS", 2 * 10**9)
    write_tables(layout)
    reads.clear()
    write_tables(layout)
    assert sorted(reads) == UIDS[:5]
    part = read_part(layout.table_part(subfolder_of(UIDS[0])))
    assert part is not None
    assert part[UIDS[0]].stamp == ""


def test_a_file_that_is_edited_in_place_and_gets_its_times_back_is_read_again(layout, reads):
    path = layout.record(UIDS[4])
    write_tables(layout)
    status = path.stat()
    text = path.read_text()
    with path.open("r+") as file:
        file.write(text.replace("mosaic", "mosaiC"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    reads.clear()
    assert write_tables(layout) == TableCounts(4, 0), "it is damaged"
    assert reads == [UIDS[4]]


def test_a_file_that_changes_while_it_is_read_has_no_stamp(layout, template, monkeypatch):
    read = tables.read_document

    def replaced(path):
        document = read(path)
        if path.stem == UIDS[0]:
            (path / "zarr.json").write_bytes((path / "zarr.json").read_bytes())
        return document

    monkeypatch.setattr(tables, "read_document", replaced)
    write_tables(layout)
    stamps = {uid: read_part(layout.table_part(subfolder_of(uid)))[uid].stamp for uid in UIDS[:2]}
    assert stamps[UIDS[0]] == ""
    assert stamps[UIDS[1]]


def test_a_volume_whose_mask_is_being_replaced_is_read_again(layout, reads):
    """Its zarr.json is no other once the old mask is gone, but its size is."""
    (layout.volume(UIDS[0]) / "labels.next").mkdir()
    (layout.volume(UIDS[0]) / "labels.next" / "x").write_bytes(bytes(1000))
    write_tables(layout)
    shutil.rmtree(layout.volume(UIDS[0]) / "labels.next")
    reads.clear()
    write_tables(layout)
    assert reads == [UIDS[0]]
    assert_as_derived_afresh(layout)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"cached", b"failed")),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2')),
        lambda path: path.write_bytes(b"\xff" * 100),
        lambda path: path.unlink(),
    ],
)
def test_a_damaged_part_is_derived_again_and_times_are_not_lost(layout, damage, reads):
    write_tables(layout, dict.fromkeys(UIDS[:4], 2.5))
    before = content(layout)
    damage(layout.table_part(subfolder_of(UIDS[0])))
    reads.clear()
    write_tables(layout)
    assert reads == [UIDS[0]]
    assert content(layout) == before


def test_times_that_come_later_reach_rows_that_are_there(layout, reads):
    write_tables(layout)
    reads.clear()
    leave_seconds(layout, {UIDS[0]: 3.25})
    write_tables(layout, {UIDS[1]: 4.0})
    assert reads == []
    rows = manifest(layout.root)
    assert [rows[uid]["seconds"] for uid in UIDS[:3]] == ["3.250", "4.000", ""]
    assert not layout.seconds.exists()
    assert_as_derived_afresh(layout)


def test_a_volume_counts_before_its_record_and_a_record_only_while_that_cant_be_read(layout, reads):
    put_record(layout, UIDS[0])
    zarr_json = layout.volume(UIDS[1]) / "zarr.json"
    sound = zarr_json.read_bytes()
    put_record(layout, UIDS[1])
    zarr_json.write_text("{")
    assert write_tables(layout) == TableCounts(3, 2)
    zarr_json.write_bytes(sound)
    assert write_tables(layout) == TableCounts(4, 1)
    shutil.rmtree(layout.volume(UIDS[1]))
    assert write_tables(layout) == TableCounts(3, 2)
    assert_as_derived_afresh(layout)


def test_what_a_killed_writer_left_is_swept(layout):
    write_tables(layout)
    for name in (".manifest.csv.01234567.tmp", ".ab.jsonl.01234567.tmp", ".clock.01234567.tmp"):
        (layout.tables / name).touch()
    write_tables(layout)
    assert leftovers(layout.root) == []


def test_several_writers_at_once_agree(layout):
    counts: list[TableCounts] = []
    threads = [threading.Thread(target=lambda: counts.append(write_tables(layout))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [TableCounts(4, 1)] * 4
    assert leftovers(layout.root) == []
    assert_as_derived_afresh(layout)


def test_in_a_folder_that_a_group_shares_the_group_may_write_the_parts(layout):
    layout.root.chmod(0o2775)
    umask = os.umask(0o077)
    try:
        write_tables(layout)
    finally:
        os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o060 for path in (layout.tables, *layout.tables.iterdir())}
    assert len(modes) == 6
    assert set(modes.values()) == {0o060}


def test_parts_of_any_series_are_one_of_256():
    assert {subfolder_of(f"1.2.{i}") for i in range(5000)} == set(SUBFOLDERS)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["volume", "record", "no volume", "no record", "tables", "damage", "unreadable"]),
        st.sampled_from(UIDS[:3]),
    ),
    max_size=10,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_happens_the_tables_are_those_of_what_is_there(layout, template, steps, tmp_path_factory):
    own = CacheLayout(tmp_path_factory.mktemp("own"))
    shutil.copy(layout.spec, own.spec)
    write_tables(own)
    for step, uid in steps:
        match step:
            case "volume":
                put_volume(own, template, uid)
            case "record":
                put_record(own, uid)
            case "no volume":
                shutil.rmtree(own.volume(uid), ignore_errors=True)
            case "no record":
                own.record(uid).unlink(missing_ok=True)
            case "unreadable" if own.volume(uid).exists():
                (own.volume(uid) / "zarr.json").write_text("{}")
            case "damage" if own.table_part(subfolder_of(uid)).exists():
                own.table_part(subfolder_of(uid)).write_text("{}")
            case "tables":
                write_tables(own)
    write_tables(own)
    assert_as_derived_afresh(own)
