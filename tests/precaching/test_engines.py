"""run_jobs(): what becomes of series that another run was at."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from aneurysm.cache.layout import CacheLayout
from aneurysm.errors import NoSpaceError, Reason
from aneurysm.precaching.build_series import Outcome, SeriesJob, build_series
from aneurysm.precaching.engines import WaitTiming, build_in_child, run_jobs
from aneurysm.precaching.publish import claim
from aneurysm.processes.children import Limits
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.rawdata.tables import SeriesNotes
from aneurysm.spec import load_spec


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
    layout.record("1.3").parent.mkdir(parents=True)
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


class Answers:
    """Answers each call in turn, of every series the same; the last for ever."""

    def __init__(self, *answers: tuple[str, str]) -> None:
        self.answers = list(answers)
        self.calls = 0

    def build(self, jobs):
        self.calls += 1
        status, reason = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        yield from (Outcome(job.source.uid, status, reason, "so") for job in jobs)


def test_what_stays_in_the_hands_of_another_run_is_told(tmp_path):
    engine, timing = Answers(("busy", "")), WaitTiming(patience_s=0.3, poll_s=0.05)
    (outcome,) = run_jobs([job(tmp_path, "1.1")], engine, CacheLayout(tmp_path), timing)
    assert outcome.status == "busy"
    assert engine.calls >= 3


def test_a_series_that_another_run_builds_is_waited_for(tmp_path):
    layout, engine = CacheLayout(tmp_path), Answers(("busy", ""))
    with claim(layout, "1.1"):
        threading.Timer(0.3, layout.volume("1.1").mkdir, kwargs={"parents": True}).start()
        (outcome,) = run_jobs([job(tmp_path, "1.1")], engine, layout, WaitTiming(poll_s=0.05))
    assert outcome.status == "skipped"
    assert engine.calls == 1


@pytest.mark.parametrize(
    "lost, status", [(Reason.WORKER_KILLED, "busy"), (Reason.OUT_OF_MEMORY, "busy"), (Reason.TIMED_OUT, "failed")]
)
def test_a_lost_series_that_somebody_else_has_by_then_is_not_called_tried_twice(tmp_path, lost, status):
    """Only a process that was out of time may live on, in the kernel, and hold its series."""
    layout, timing = CacheLayout(tmp_path), WaitTiming(let_go_s=0.1, poll_s=0.05)
    (outcome,) = run_jobs([job(tmp_path, "1.1")], Answers(("failed", lost), ("busy", "")), layout, timing)
    assert outcome.status == status
    assert "tried twice" not in outcome.detail
    assert layout.record("1.1").exists() == (status == "failed")


def test_the_process_of_a_lost_series_may_take_a_while_to_let_go_of_it(tmp_path):
    """However long each attempt takes: a Dask worker that was killed is first replaced."""
    timing = WaitTiming(let_go_s=0.06, poll_s=0.05)
    engine = Answers(("failed", Reason.WORKER_KILLED), ("busy", ""), ("busy", ""), ("failed", Reason.WORKER_KILLED))
    (outcome,) = run_jobs([job(tmp_path, "1.1")], engine, CacheLayout(tmp_path), timing)
    assert (outcome.status, outcome.reason) == ("failed", Reason.WORKER_KILLED)
    assert "alone" in outcome.detail
    assert engine.calls == 4


def test_a_retry_does_not_count_the_record_of_another_run_but_its_volume(tmp_path):
    layout, retry = CacheLayout(tmp_path), replace(job(tmp_path, "1.1"), retry=True)
    layout.record("1.1").parent.mkdir(parents=True)
    layout.record("1.1").touch()
    assert job(tmp_path, "1.1").is_done(layout)
    assert not retry.is_done(layout)
    layout.volume("1.1").mkdir(parents=True)
    assert retry.is_done(layout)


def test_memory_that_is_not_enough_for_the_record_either_is_a_lost_series(tmp_path):
    def run(*_args, **_options):
        raise MemoryError

    outcome = build_in_child(SimpleNamespace(run=run), job(tmp_path, "1.1"), Limits())  # type: ignore[arg-type]
    assert (outcome.status, outcome.reason) == ("failed", Reason.OUT_OF_MEMORY)


def test_a_disk_that_is_full_when_a_lost_series_is_recorded_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("aneurysm.precaching.engines.publish_record", refuse)
    with pytest.raises(NoSpaceError, match="full"):
        list(run_jobs([job(tmp_path, "1.1")], Losing(), CacheLayout(tmp_path)))


def test_what_was_decoded_is_told_of_a_series_that_is_cached(built, tmp_path):
    source = SeriesSource(built.uids[0], built.data / "series" / built.uids[0])
    outcome = build_series(SeriesJob(source, SeriesNotes(), None, tmp_path, load_spec("rsna-1mm"), b""))
    assert outcome.status == "cached"
    assert (outcome.frames, outcome.voxels) == (12, 12 * 64 * 64)
    assert outcome.syntax == "1.2.840.10008.1.2.1"
