"""--overwrite and --retry-failed: what is there is replaced by what is better, or stays."""

from __future__ import annotations

import errno
import os
import shutil
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from aneurysm.cache.folder import read_spec
from aneurysm.cache.layout import CacheLayout
from aneurysm.errors import ClusterError, Reason, SeriesRejectedError, StoreError
from aneurysm.precaching import publish
from aneurysm.precaching.build_series import record_of
from aneurysm.precaching.publish import claim, publish_record
from aneurysm.precaching.run import RunSummary, precache
from aneurysm.rawdata.tables import SeriesNotes
from tests.support.built import Built
from tests.support.cache_paths import record_paths
from tests.support.cache_state import leftovers, manifest, same_cache, tree_digest
from tests.support.command import call_cli
from tests.support.running import precache_here


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Built:
    """A finished cache of one's own."""
    shutil.copytree(built.cache, tmp_path / "cache")
    return Built(built.data, tmp_path / "cache", built.uids)


def fails_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("aneurysm.rawdata.folder.read_series", fail)


def fail_before(copied: Built, *uids: str) -> None:
    """As if an earlier run had failed on these series."""
    layout = CacheLayout(copied.cache)
    for uid in uids:
        shutil.rmtree(layout.volume(uid))
        record = record_of(read_spec(layout), uid, Reason.READ_ERROR, "before", SeriesNotes())
        publish_record(layout, record)


def test_a_failure_leaves_the_volume_that_is_there(copied: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    uid, layout = copied.uids[1], CacheLayout(copied.cache)
    before = tree_digest(layout.volume(uid))
    fails_with(monkeypatch, OSError(errno.EIO, os.strerror(errno.EIO)))
    summary = precache(copied.data, copied.cache, series=[uid], overwrite=True, workers=0)
    assert (summary.failed, summary.total_cached, summary.total_not_cached) == (1, 4, 0)
    assert tree_digest(layout.volume(uid)) == before
    assert not layout.record(uid).exists()
    assert manifest(copied.cache)[uid]["status"] == "cached"


def test_a_rejection_takes_the_volume_away_in_one_step(copied: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill amid the removal must not leave a part of a volume among the complete ones: nothing is removed here."""
    uid, layout = copied.uids[1], CacheLayout(copied.cache)
    before = tree_digest(layout.volume(uid))
    fails_with(monkeypatch, SeriesRejectedError(Reason.MOSAIC, "a test"))
    with monkeypatch.context() as killed:
        killed.setattr(publish.shutil, "rmtree", lambda *_, **__: None)
        precache(copied.data, copied.cache, series=[uid], overwrite=True, workers=0)
    assert manifest(copied.cache)[uid]["reason"] == "mosaic"
    assert not layout.volume(uid).exists()
    (aside,) = layout.building.glob(f"{uid}@*/replaced-*")
    assert tree_digest(aside) == before
    precache(copied.data, copied.cache, workers=0)
    assert leftovers(copied.cache) == []


@pytest.mark.parametrize("summary", [RunSummary(failed=1), RunSummary(rejected=1)])
def test_what_was_not_built_again_is_exit_code_8(summary: RunSummary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aneurysm.precaching.run.precache", lambda *_, **__: summary)
    assert call_cli("precache").code == 8
    assert call_cli("precache", "--exit-zero").code == 0


@pytest.mark.parametrize(
    "end, words",
    [
        (RunSummary(busy=1, failed=1), "1 series are in the hands of another run"),
        (ClusterError("the Dask scheduler was lost"), "the Dask scheduler was lost"),
        (StoreError("the store answered SlowDown"), "SlowDown"),
    ],
)
def test_what_is_not_finished_is_exit_code_9_whatever_else_is(
    end: RunSummary | Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aneurysm.precaching.run.precache", mock.Mock(side_effect=[end, end]))
    for options in ((), ("--exit-zero",)):
        ran = call_cli("precache", *options)
        assert ran.code == 9
        assert words in ran.text


def test_a_retry_of_some_leaves_the_records_of_the_others(copied: Built) -> None:
    fail_before(copied, *copied.uids[:2])
    ran = precache_here(copied, copied.cache, "--retry-failed", "--limit", 1)
    assert ran.code == 8, ran.text
    assert "1 cached, 0 rejected, 0 failed, 2 done before" in ran.out
    rows = manifest(copied.cache)
    assert [rows[uid]["detail"] for uid in copied.uids if rows[uid]["status"] == "failed"] == ["before"]


def test_a_retry_that_succeeds_leaves_no_record(built: Built, copied: Built) -> None:
    fail_before(copied, copied.uids[0])
    ran = precache_here(copied, copied.cache, "--retry-failed")
    assert ran.code == 0, ran.text
    assert not record_paths(copied.cache)
    assert same_cache(copied.cache, built.cache) == []


def test_series_that_another_run_holds_are_told(copied: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aneurysm.precaching.run.precache", partial(precache, patience_s=0.1))
    layout = CacheLayout(copied.cache)
    shutil.rmtree(layout.volume(copied.uids[0]))
    with claim(layout, copied.uids[0]):
        ran = precache_here(copied, copied.cache)
    assert ran.code == 9
    assert "0 cached, 0 rejected, 0 failed, 3 done before" in ran.out
    assert "1 series are in the hands of another run" in ran.out


def test_a_run_that_is_told_to_stop_leaves_the_tables_to_the_next(built: Built, tmp_path: Path) -> None:
    """Of a large cache they take minutes, and a batch system gives it seconds."""

    class Stops:
        def started(self, *_: object) -> None: ...

        def finished(self, *_: object) -> None:
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        precache(built.data, tmp_path / "cache", progress=Stops(), workers=0)
    assert not (tmp_path / "cache" / "manifest.csv").exists()
    precache(built.data, tmp_path / "cache", workers=0)
    rows = manifest(tmp_path / "cache")
    assert set(rows) == set(built.uids)
    assert all(float(row["seconds"]) > 0 for row in rows.values()), "the times were lost"
    assert leftovers(tmp_path / "cache") == []
