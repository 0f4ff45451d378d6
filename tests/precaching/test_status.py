"""How far a run is, by ledgers whose answer is known; and by such as a run or a stranger left."""

from __future__ import annotations

import json
import random
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from aneurysm.errors import CacheNotFoundError, UsageError
from aneurysm.precaching.ledger import run_ledger
from aneurysm.precaching.ledger_files import parse_entry
from aneurysm.precaching.run_id import host_name
from aneurysm.precaching.status import RunWatch, odd_hosts, status_facts
from tests.support.command import call_cli, call_in_process, environment
from tests.support.ledgers import T0, LedgerFile, empty_cache


@pytest.fixture
def cache(tmp_path):
    return empty_cache(tmp_path / "cache")


def look(cache, at: float, run: str | None = None):
    return RunWatch(cache, run).look(T0 + at)


def test_a_series_counts_once_and_as_what_it_became(cache):
    one, two = LedgerFile(cache, "node1", task="0/2"), LedgerFile(cache, "node2", task="1/2")
    one.plan(1, 12, done=3, not_cached=1, todo=5)
    two.plan(1, 12, done=3, not_cached=1, todo=4)
    one.end(2, "1.1", "failed", reason="worker_killed")
    one.end(3, "1.1", seconds=1)  # tried again, alone
    one.end(4, "1.2", "rejected", reason="mosaic")
    two.end(4, "1.3")
    one.end(5, "1.3", "skipped")  # it was faster
    two.end(6, "1.4", "skipped")  # by another run
    two.end(7, "1.5", "failed", reason="timed_out")
    two.end(8, "1.6", "failed", reason="no such reason")
    two.line("busy", 9, series="1.7")
    status = look(cache, 10)
    assert (status.total, status.done, status.done_before) == (12, 9, 3)
    assert (status.cached, status.rejected, status.failed, status.skipped) == (2, 1, 2, 1)
    assert status.reasons == {"mosaic": 1, "not known": 1, "timed_out": 1}
    assert status.not_cached == 4
    assert not status.is_complete
    assert [(t.task, t.state) for t in status.tasks] == [("0/2", "running"), ("1/2", "running")]


def test_rate_and_time_left_are_of_the_last_minutes(cache):
    ledger = LedgerFile(cache)
    ledger.plan(0, 1000, todo=1000, bytes=1000 * 10**6, expected_s=0)
    for second in range(600):  # slow for five minutes, then two a second
        if second >= 300 or second % 10 == 0:
            for half in range(2 if second >= 300 else 1):
                ledger.end(second + half / 2, f"1.{second}.{half}", bytes_in=10**6, seconds=1.0)
    status = look(cache, 600)
    assert status.done == 630
    assert status.series_per_min == pytest.approx(120, rel=0.05)
    assert status.bytes_per_s == pytest.approx(2e6, rel=0.05)
    assert status.left_s == pytest.approx(370 / 2, rel=0.05)


def test_expected_seconds_tell_the_time_left_better_than_bytes(cache):
    ledger = LedgerFile(cache)
    ledger.plan(0, 200, todo=200, bytes=200, expected_s=100 * 1.0 + 100 * 9.0)
    for n in range(100):
        ledger.end(n, f"1.{n}", bytes_in=1, expected_s=1.0)
    assert look(cache, 100).left_s == pytest.approx(900, rel=0.1)


def test_tasks_that_have_not_begun_are_taken_to_be_like_the_others(cache):
    ledger = LedgerFile(cache, task="1/4")
    ledger.plan(0, 400, todo=100, bytes=100)
    for n in range(50):
        ledger.end(n, f"1.{n}", bytes_in=1)
    status = look(cache, 50)
    assert status.tasks_total == 4
    assert status.left_s == pytest.approx(350, rel=0.1)
    ledger.line("run_ended", 51, how="done")
    assert not look(cache, 52).is_over  # the others are still to come


def test_who_has_what_and_for_how_long_and_who_takes_too_long(cache):
    ledger = LedgerFile(cache, "node7", task="3/8", job="70_3")
    ledger.plan(0, 20, todo=20)
    for n in range(6):
        ledger.end(10 + n, f"1.{n}", bytes_in=1000, seconds=2.0)
    ledger.begin(0, "2.1", bytes=1000)  # for 100 s: of its size others take 2
    ledger.begin(75, "2.2", bytes=1000)  # 25 s are no time
    ledger.begin(0, "2.3", bytes=40_000)  # 80 s are expected
    ledger.begin(40, "2.4", bytes=1000, expected_s=15)
    ledger.begin(40, "2.5", bytes=1000, expected_s=30)
    ledger.begin(50, "2.6")
    ledger.line("dropped", 51, series="2.6")
    status = look(cache, 100)
    assert [(s.uid, s.for_s, s.is_straggler) for s in status.in_hand] == [
        ("2.1", 100, True), ("2.3", 100, False), ("2.4", 60, True), ("2.5", 60, False), ("2.2", 25, False),
    ]  # fmt: skip
    assert {(s.host, s.job, s.task) for s in status.in_hand} == {("node7", "70_3", "3/8")}
    assert [s.expected_s for s in status.in_hand] == [2, 80, 15, 30, 2]


def test_what_a_plan_expects_is_taken_at_the_pace_of_the_run(cache):
    """The machine that its constants are of is ten times as fast; and until some are done, nobody knows that."""
    ledger = LedgerFile(cache)
    ledger.plan(0, 20, todo=20)
    ledger.begin(0, "2.1", expected_s=5)
    ledger.begin(0, "2.2", expected_s=1)
    assert [s.is_straggler for s in look(cache, 100).in_hand] == [False, False]
    for n in range(6):
        ledger.end(10 + n, f"1.{n}", seconds=20, expected_s=2)
    assert [(s.uid, s.expected_s, s.is_straggler) for s in look(cache, 100).in_hand] == [
        ("2.1", 50, False), ("2.2", 10, True),
    ]  # fmt: skip


def test_a_task_whose_lock_is_gone_and_who_is_silent_is_dead(cache):
    ledger = LedgerFile(cache, task="0/1")
    ledger.plan(0, 5, todo=5)
    ledger.begin(1, "1.1")
    ledger.line("alive", 60)
    (task,) = look(cache, 200).tasks
    assert task.state == "running"  # its lock may not reach this node
    status = look(cache, 60 + 181)
    assert (status.tasks[0].state, status.lost, status.in_hand) == ("dead", 1, ())
    assert status.is_over
    with ledger.held():
        status = look(cache, 60 + 181)
        assert status.tasks[0].state == "silent"
        assert [s.uid for s in status.in_hand] == ["1.1"]
        assert not status.is_over
    # Another process takes up its part.
    again = LedgerFile(cache, "node2", task="0/1", at=300)
    again.plan(301, 5, todo=5)
    status = look(cache, 302)
    assert [(t.host, t.state) for t in status.tasks] == [("node2", "running")]


def test_a_process_of_this_host_that_is_gone_is_dead_at_once(cache):
    ledger = LedgerFile(cache, host_name(), pid=2**22 + 1)
    ledger.plan(0, 5, todo=5)
    assert look(cache, 1).tasks[0].state == "dead"
    with ledger.held():
        assert look(cache, 1).tasks[0].state == "running"


@pytest.mark.parametrize("how", ["terminated", "interrupted", "error"])
def test_a_task_that_was_stopped_says_how(cache, how):
    ledger = LedgerFile(cache)
    ledger.plan(0, 5, todo=5)
    ledger.begin(1, "1.1")
    ledger.line("run_ended", 2, how=how)
    status = look(cache, 3)
    assert [(t.state, t.how) for t in status.tasks] == [("stopped", how)]
    assert status.in_hand == ()
    assert status.is_over
    assert not status.is_complete


def test_workers_of_a_cluster_are_no_tasks(cache):
    run, worker, idle = (
        LedgerFile(cache),
        LedgerFile(cache, "w1", role="worker"),
        LedgerFile(cache, "w2", role="worker"),
    )
    run.plan(0, 3, todo=3, bytes=30)
    for n in range(2):
        worker.end(n + 1, f"1.{n}", bytes_in=10)
    worker.begin(4, "1.9")
    idle.line("alive", 1)
    status = look(cache, 10)
    assert status.tasks_total == 1
    assert [(t.is_worker, t.host, t.state) for t in status.tasks] == [
        (False, "node1", "running"), (True, "w1", "running"), (True, "w2", "ended"),
    ]  # fmt: skip
    assert [s.host for s in status.in_hand] == ["w1"]
    assert status.left_s == pytest.approx(10 / (20 / 10), rel=0.01)


def test_hosts_that_fail_more_than_the_others():
    even = {f"n{i}": (2, 100) for i in range(50)}
    assert odd_hosts(even) == ()
    (odd,) = odd_hosts(even | {"bad": (12, 100)})
    assert (odd.host, odd.failed, odd.done) == ("bad", 12, 100)
    assert odd.chance == pytest.approx(51 * binom.sf(11, 100, 101 / 5002), rel=1e-6)
    assert odd_hosts({"only": (50, 100)}) == ()  # there is nothing to compare it with
    assert odd_hosts({"a": (2, 2), "b": (0, 1000)}) == ()  # two may be chance


@pytest.mark.parametrize("seed", range(20))
def test_hosts_that_are_alike_are_hardly_ever_called_odd(seed):
    draw = random.Random(seed)
    assert odd_hosts({f"n{i}": (sum(draw.random() < 0.03 for _ in range(200)), 200) for i in range(30)}) == ()


def test_only_what_was_appended_is_read_and_a_line_that_is_not_whole_waits(cache):
    ledger = LedgerFile(cache)
    ledger.plan(0, 3, todo=3)
    watch = RunWatch(cache)
    assert watch.look(T0 + 1).done == 0
    whole = json.dumps({"time": T0 + 2, "event": "cached", "series": "1.1"}).encode() + b"\n"
    ledger.raw(whole[:20])
    assert watch.look(T0 + 2).done == 0
    ledger.raw(whole[20:])
    assert watch.look(T0 + 3).done == 1
    assert watch.look(T0 + 3).damaged == 0
    more = LedgerFile(cache, "node2", role="worker")
    more.end(4, "1.2")
    assert watch.look(T0 + 5).done == 2


HOSTILE = [
    b"{", b"[]", b"null", b'"cached"', b"\xff\xfe", b"", b"x" * 100_000, b"[" * 4000,
    b'{"time": 1e400, "event": "cached", "series": "1.1"}', b'{"time": NaN, "event": "cached", "series": "1.1"}',
    b'{"time": -1, "event": "cached"}', b'{"time": "now", "event": "cached"}', b'{"time": true, "event": "cached"}',
    b'{"event": "cached"}', b'{"time": 5}', b'{"time": 5, "event": {}}', b'{"time": 5, "event": "\\u001b[2J"}',
    b'{"time": ' + b"9" * 4000 + b', "event": "cached"}',
]  # fmt: skip


def test_what_is_no_entry_is_counted_and_passed_over(cache):
    ledger = LedgerFile(cache)
    ledger.plan(0, 2, todo=2)
    for line in HOSTILE:
        ledger.raw(line + b"\n")
    ledger.end(5, "1.1", seconds=-4, bytes_in="many", reason="\x1b[31m", syntax=["x"])
    ledger.end(6, "\x1b[2J", "failed", reason="timed_out")
    ledger.end(7, "1.2", "failed", reason="../../etc")
    (cache / ".runs" / "r" / "loop.jsonl").symlink_to(ledger.path)
    status = look(cache, 10)
    assert status.damaged == len(HOSTILE)
    assert (status.cached, status.failed, status.series_s, status.bytes_in) == (1, 1, 0, 0)
    assert status.reasons == {"not known": 1}
    assert len(status.tasks) == 1
    assert "\x1b" not in json.dumps(status_facts(status)) + call_cli("status", "--cache", cache).text


@given(st.binary(max_size=300) | st.dictionaries(st.text(max_size=9), st.integers() | st.text()).map(json.dumps))
def test_any_line_is_an_entry_or_none(line):
    entry = parse_entry("w", line.encode() if isinstance(line, str) else line)
    if entry is not None:
        assert entry.time > 0
        assert entry.name("event") == entry.event
        assert entry.number("seconds") >= 0


def test_memory_is_bounded_also_of_one_endless_line(cache):
    ledger = LedgerFile(cache)
    ledger.plan(0, 2, todo=2)
    ledger.raw(b"x" * 30_000_000)
    tracemalloc.start()
    status = look(cache, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert status.damaged > 0
    assert peak < 12_000_000


def test_the_newest_run_unless_another_is_named(cache):
    LedgerFile(cache, run="old").plan(0, 5, todo=5)
    time.sleep(0.01)
    LedgerFile(cache, run="new").plan(0, 7, todo=7)
    assert look(cache, 1).total == 7
    assert look(cache, 1, "old").total == 5
    with pytest.raises(UsageError, match="no ledger of a run other; it has of new, old"):
        look(cache, 1, "other")
    with pytest.raises(UsageError, match="--run is"):
        look(cache, 1, "../r")
    with pytest.raises(CacheNotFoundError, match="no cache at"):
        RunWatch(cache / "volumes")
    with pytest.raises(UsageError, match="no run has left a ledger"):
        RunWatch(empty_cache(cache.parent / "other"))


def test_of_a_run_as_the_command_writes_it(built, tmp_path):
    cache = tmp_path / "cache"
    ran = call_in_process(
        "precache", "--data", built.data, "--cache", cache, "--workers", 1, env=environment(ANEURYSM_RUN="mine")
    )
    assert ran.code == 0, ran.text
    status = RunWatch(cache).look()
    assert status.run == "mine"
    assert (status.total, status.done, status.cached) == (4, 4, 4)
    assert status.is_complete
    assert status.is_over
    assert status.bytes_in > 0
    assert status.left_s == 0
    shown = call_cli("status", "--cache", cache)
    assert shown.code == 0, shown.text
    assert "run mine" in shown.out
    assert "4 of 4 series (100.0 %), complete after" in shown.out


@pytest.mark.usefixtures("s3_settings")
def test_of_a_cache_in_a_store(bucket, tmp_path):
    bucket.upload(empty_cache(tmp_path / "cache"), "cache")
    url = f"{bucket.url}/cache"
    with run_ledger(tmp_path, url, "r", "") as ledger:
        ledger.write("run_started", series=2, todo=2)
        ledger.write("series_started", series="1.1")
        ledger._sink.send()
        watch = RunWatch(url)
        assert [s.uid for s in watch.look().in_hand] == ["1.1"]
        ledger.write("cached", series="1.1", seconds=1.0)
        ledger.write("cached", series="1.2", seconds=1.0)
        ledger.write("run_ended", how="done")
    status = watch.look()
    assert (status.done, status.is_complete, status.damaged) == (2, True, 0)
