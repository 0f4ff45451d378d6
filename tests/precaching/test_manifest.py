"""manifest.csv: derived from what is on disk, and kept up to date on the way without holding up the run."""

from __future__ import annotations

import errno
import json
import os
import shutil
from types import SimpleNamespace

import pytest

from aneurysm.cache.folder import done_series, is_done, read_spec
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.tables import TableCounts, write_tables
from aneurysm.errors import CacheError, Reason
from aneurysm.precaching import run
from aneurysm.precaching.build_series import Outcome, record_of
from aneurysm.precaching.publish import publish_record
from aneurysm.rawdata.tables import SeriesNotes
from tests.support.built import Built
from tests.support.cache_state import manifest, same_cache


@pytest.fixture
def layout(built: Built, tmp_path) -> CacheLayout:
    shutil.copytree(built.cache, tmp_path / "cache")
    return CacheLayout(tmp_path / "cache")


def put_record(layout: CacheLayout, uid: str) -> None:
    record = record_of(read_spec(layout), uid, Reason.NO_FILES, "a test", SeriesNotes())
    publish_record(layout, record)


def rows_written(layout: CacheLayout) -> list[str]:
    rows: list[str] = []
    write_tables(layout, on_row=lambda row: rows.append(row["series_uid"]))
    return rows


def test_the_tables_are_the_same_when_derived_again(built, layout):
    lesions = layout.lesions.read_bytes()
    layout.lesions.unlink()
    write_tables(layout)
    assert same_cache(layout.root, built.cache) == []
    assert layout.lesions.read_bytes() == lesions


def test_a_volume_counts_before_a_record_and_a_record_before_a_volume_that_cant_be_read(built, layout):
    for uid in built.uids[:2]:
        put_record(layout, uid)
    (layout.volume(built.uids[1]) / "zarr.json").write_text("{")
    (layout.volume(built.uids[2]) / "zarr.json").unlink()
    write_tables(layout)
    rows = manifest(layout.root)
    assert rows[built.uids[0]]["status"] == "cached"
    assert (rows[built.uids[1]]["status"], rows[built.uids[1]]["detail"]) == ("rejected", "a test")
    assert built.uids[2] not in rows
    assert rows[built.uids[3]]["status"] == "cached"
    assert list(rows) == sorted(rows)


@pytest.mark.parametrize("record", ["[]", "{}", '{"status": "failed", "lesions": 3}', "null"])
def test_a_record_that_is_none_has_no_row(built, layout, record):
    put_record(layout, "1.2.3")
    layout.record("1.2.4").parent.mkdir(exist_ok=True)
    layout.record("1.2.4").write_text(record)
    assert write_tables(layout) == TableCounts(4, 1)
    assert set(manifest(layout.root)) == {*built.uids, "1.2.3"}


@pytest.mark.parametrize("key, value", [("source", None), ("source", {}), ("lesions", [{}]), ("decisions", 3)])
def test_a_volume_with_odd_metadata_has_no_row(built, layout, key, value):
    path = layout.volume(built.uids[0]) / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["aneurysm"][key] = value
    path.write_text(json.dumps(content))
    assert rows_written(layout) == built.uids[1:]


def test_a_volume_that_vanishes_meanwhile_has_no_row(built, layout, monkeypatch):
    """--overwrite sets it aside between the look at its metadata and that at its size."""

    def vanish(folder):
        if folder == layout.volume(built.uids[0]):
            raise FileNotFoundError(folder)
        return 1

    monkeypatch.setattr("aneurysm.cache.manifest.tree_bytes", vanish)
    assert rows_written(layout) == built.uids[1:]


def test_what_is_done_is_told_from_listings(built, layout, tmp_path):
    put_record(layout, "1.2.3")
    layout.record("1.2.3").with_name(".1.2.4.json.0123abcd.tmp").touch()
    done = done_series(layout)
    assert done == {*built.uids, "1.2.3"}
    assert all(is_done(layout, uid) for uid in done)
    assert done_series(CacheLayout(tmp_path / "absent")) == set()


@pytest.mark.parametrize("takes_s, times", [(0.0, 10), (1.0, 10), (9.0, 2), (60.0, 1)])
def test_the_manifest_is_written_the_more_seldom_the_longer_it_takes(monkeypatch, tmp_path, takes_s, times):
    """Some ten minutes of outcomes, one a second: a manifest each minute, or as seldom as makes it 3 % of the time."""
    now, written = 0.0, []

    def write(_seconds):
        nonlocal now
        now += takes_s
        written.append(now)
        return []

    def outcomes():
        nonlocal now
        start = now
        while now < start + 620:
            now += 1.0
            yield Outcome("1.2", "cached")

    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: now))
    place = SimpleNamespace(write_tables=write, layout=CacheLayout(tmp_path))
    run._run(outcomes(), place, run.RunSummary(), {}, None, None)  # type: ignore[arg-type]
    assert len(written) == times


def test_a_manifest_that_can_not_be_written_on_the_way_is_told(tmp_path):
    def refuse(_seconds):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    place = SimpleNamespace(write_tables=refuse, layout=CacheLayout(tmp_path))
    with pytest.raises(CacheError, match="read-only"):
        run._run([Outcome("1.2", "cached")], place, run.RunSummary(), {}, None, None, manifest_every_s=0.0)  # type: ignore[arg-type]
