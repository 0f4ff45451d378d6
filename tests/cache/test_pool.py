"""run_jobs(): what becomes of series that another run was at."""

from __future__ import annotations

from pathlib import Path

from aneurysm.annotations.tables import SeriesNotes
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.pool import run_jobs
from aneurysm.cache.series import Outcome, SeriesJob
from aneurysm.cache.spec import load_spec
from aneurysm.dicom.scan import SeriesSource
from aneurysm.errors import Reason


class Engine:
    """At its first call others are at every series but the first; it says what it was asked to build."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def build(self, jobs):
        uids = [job.source.uid for job in jobs]
        self.asked.append(uids)
        for number, uid in enumerate(uids):
            yield Outcome(uid, "busy" if len(self.asked) == 1 and number else "cached")


def job(cache: Path, uid: str, *, overwrite: bool = False) -> SeriesJob:
    return SeriesJob(SeriesSource(uid), SeriesNotes(), None, cache, load_spec("rsna-1mm"), b"", overwrite)


def test_what_another_run_has_finished_is_not_built_and_what_it_left_is(tmp_path):
    layout, engine = CacheLayout(tmp_path), Engine()
    layout.volume("1.2").mkdir(parents=True)
    layout.record("1.3").parent.mkdir()
    layout.record("1.3").touch()
    jobs = [job(tmp_path, uid) for uid in ("1.1", "1.2", "1.3", "1.4", "1.5")]
    outcomes = {outcome.uid: outcome.status for outcome in run_jobs(jobs, engine, layout)}
    assert outcomes == {"1.1": "cached", "1.2": "skipped", "1.3": "skipped", "1.4": "cached", "1.5": "cached"}
    assert engine.asked == [["1.1", "1.2", "1.3", "1.4", "1.5"], ["1.4", "1.5"]]


def test_what_is_there_is_built_again_where_that_was_asked_for(tmp_path):
    layout, engine = CacheLayout(tmp_path), Engine()
    for uid in ("1.1", "1.2"):
        layout.volume(uid).mkdir(parents=True)
    jobs = [job(tmp_path, uid, overwrite=True) for uid in ("1.1", "1.2")]
    assert [outcome.status for outcome in run_jobs(jobs, engine, layout)] == ["cached", "cached"]
    assert engine.asked == [["1.1", "1.2"], ["1.2"]]


class Losing(Engine):
    """Every process that builds is lost."""

    def build(self, jobs):
        for outcome in super().build(jobs):
            yield outcome if outcome.status == "busy" else Outcome(outcome.uid, "failed", Reason.WORKER_KILLED, "died")


def test_what_another_run_left_and_is_then_lost_is_tried_alone_and_recorded(tmp_path):
    layout, engine = CacheLayout(tmp_path), Losing()
    jobs = [job(tmp_path, uid) for uid in ("1.1", "1.2")]
    assert [outcome.status for outcome in run_jobs(jobs, engine, layout)] == ["failed", "failed"]
    assert engine.asked == [["1.1", "1.2"], ["1.2"], ["1.1"], ["1.2"]]
    assert layout.record("1.1").is_file()
    assert layout.record("1.2").is_file()
