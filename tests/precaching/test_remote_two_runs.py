"""Several runs at one cache in a store: they share the work, and none takes another's away for good."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from aneurysm.cache.layout import CacheLayout
from aneurysm.errors import Reason
from aneurysm.precaching import remote_destination
from aneurysm.precaching.build_series import Outcome, SeriesJob, build_series
from aneurysm.precaching.engines import Local, run_jobs
from aneurysm.precaching.remote_slot import RemoteSlot
from aneurysm.precaching.run import precache
from aneurysm.precaching.verify import verify
from aneurysm.processes.children import NO_LIMITS, InProcess
from aneurysm.rawdata.folder import Inventory, safe_source
from aneurysm.rawdata.tables import read_tables
from aneurysm.remote.client import ObjectStore
from aneurysm.spec import load_spec
from tests.support.built import Built
from tests.support.cache_paths import record_name
from tests.support.s3 import Bucket

pytestmark = pytest.mark.usefixtures("s3_settings")


class Order:
    """Notes in which order series are done."""

    def __init__(self) -> None:
        self.uids: list[str] = []

    def started(self, inventory: Inventory, todo: int, there: int, bytes_in: int) -> None:
        pass

    def finished(self, outcome: Outcome) -> None:
        self.uids.append(outcome.uid)


def job_of(built: Built, uid: str, url: str, tmp_path: Path) -> SeriesJob:
    source, notes = safe_source(uid, built.data / "series" / uid), read_tables(built.data).of(uid)
    return SeriesJob(source, notes, None, tmp_path / "elsewhere" / "cache", load_spec("rsna-1mm"), b"key", url=url)


def test_series_that_another_run_is_at_come_last_and_are_built_if_it_is_dead(built: Built, bucket: Bucket) -> None:
    url, order = f"{bucket.url}/cache", Order()
    marked = built.uids[:2]
    for uid in marked:
        bucket.put(f"cache/.building/{uid}", b"")
    summary = precache(built.data, url, progress=order, workers=0)
    assert (summary.cached, summary.skipped) == (4, 0)
    assert set(order.uids[2:]) == set(marked)
    assert bucket.keys("cache/.building/") == []


def test_two_runs_at_once_share_the_series(built: Built, bucket: Bucket, tmp_path: Path) -> None:
    url, (first, second) = f"{bucket.url}/cache", built.uids[:2]
    jobs = [job_of(built, uid, url, tmp_path) for uid in (first, second)]
    with RemoteSlot(url, first, tmp_path).marked(insist=False) as ours:
        assert ours
        assert bucket.keys("cache/.building/") == [f"cache/.building/{first}"]
        assert build_series(jobs[0]).status == "busy"
        assert build_series(jobs[1]).status == "cached"
    assert build_series(jobs[0]).status == "cached"
    assert build_series(replace(jobs[0], insist=True)).status == "skipped"
    assert bucket.keys("cache/.building/") == []


def test_what_another_run_has_rejected_is_not_tried_again_unless_it_is_asked_for(
    built: Built, bucket: Bucket, tmp_path: Path
) -> None:
    uid, url = built.uids[0], f"{bucket.url}/cache"
    bucket.put(f"cache/{record_name(uid)}", b"{}")
    job = job_of(built, uid, url, tmp_path)
    assert build_series(job).status == "skipped"
    assert build_series(replace(job, retry=True)).status == "cached"
    assert bucket.keys("cache/rejected/") == []


def test_a_series_whose_process_was_lost_is_tried_again_in_spite_of_its_mark(
    built: Built, bucket: Bucket, tmp_path: Path
) -> None:
    uid, url = built.uids[0], f"{bucket.url}/cache"

    class Loses:
        """Loses the first process, which leaves mark and record."""

        lost = False

        def build(self, jobs: Sequence[SeriesJob]) -> Iterator[Outcome]:
            if self.lost:
                yield from Local(InProcess(), 1, NO_LIMITS).build(jobs)
                return
            self.lost = True
            bucket.put(f"cache/.building/{uid}", b"")
            bucket.put(f"cache/{record_name(uid)}", b"{}")
            yield Outcome(uid, "failed", Reason.OUT_OF_MEMORY)

    (outcome,) = run_jobs([job_of(built, uid, url, tmp_path)], Loses(), CacheLayout(tmp_path / "shadow"))
    assert outcome.status == "cached"


def test_old_marks_are_removed(built: Built, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    url = bucket.upload(built.cache, "cache")
    bucket.put("cache/.building/9.9", b"")
    precache(built.data, url, workers=0)
    assert bucket.keys("cache/.building/") == ["cache/.building/9.9"], "it may be somebody's"
    monkeypatch.setattr(remote_destination, "ABANDONED_AFTER", timedelta(0))
    precache(built.data, url, workers=0)
    assert bucket.keys("cache/.building/") == []


def test_the_mark_of_a_worker_that_died_after_it_had_sent_its_series_is_removed(built: Built, bucket: Bucket) -> None:
    bucket.put(f"cache/.building/{built.uids[0]}", b"")
    time.sleep(1.1)  # the store tells seconds
    url = bucket.upload(built.cache, "cache")
    precache(built.data, url, workers=0)
    assert bucket.keys("cache/.building/") == []


def test_what_is_deleted_while_a_volume_is_sent_is_sent_again(
    built: Built, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a run that took the objects of the dead run, which are written over, for abandoned ones."""
    write, deleted = ObjectStore.write, []

    def undone(self: ObjectStore, key: str, content: bytes | Path) -> str:
        tag = write(self, key, content)
        if key.endswith("/c/0/0/0") and key not in deleted:
            deleted.append(key)
            self.delete([key])
        return tag

    monkeypatch.setattr(ObjectStore, "write", undone)
    assert precache(built.data, f"{bucket.url}/cache", series=built.uids[1:2], workers=0).cached == 1
    assert deleted
    assert verify(f"{bucket.url}/cache", deep=True, workers=0).faults == []
