"""The ledger of a run: what every process did, as lines that outlive it, in a cache of several users or in a store."""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aneurysm.cache.layout import CacheLayout
from aneurysm.precaching.build_series import Outcome, SeriesJob
from aneurysm.precaching.ledger import Ledger, ledger_of, prune_runs, run_ledger
from aneurysm.processes.locks import is_locked
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.rawdata.tables import SeriesNotes
from aneurysm.remote.client import ObjectStore
from aneurysm.spec import load_spec
from tests.support.command import call_in_process, environment, kill_group
from tests.support.running import start, wait_until


def lines(cache: Path, run: str = "*") -> list[dict[str, Any]]:
    """All lines of the ledgers of a run, in the order of their files."""
    paths = sorted((cache / ".runs").glob(f"{run}/*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def job(cache: Path, uid: str = "1.2", run: str = "r", url: str = "") -> SeriesJob:
    return SeriesJob(
        SeriesSource(uid),
        SeriesNotes(),
        None,
        cache,
        load_spec("rsna-1mm"),
        b"",
        url=url,
        run=run,
        size=9,
        expected_s=2.5,
    )


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def test_of_a_whole_run(built, tmp_path):
    cache = tmp_path / "cache"
    env = environment(ANEURYSM_RUN="first", SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="3")
    command = ("precache", "--data", built.data, "--cache", cache, "--workers", 1)
    ran = call_in_process(*command, "--shard", "0/2", env=env)
    assert ran.code == 0, ran.text
    first, planned, *events, last = lines(cache, "first")
    assert (first["event"], first["job"], first["task"], first["ledger"]) == ("opened", "70_3", "0/2", 1)
    assert first["pid"] == os.getpid()
    assert planned["event"] == "run_started"
    mine = {e["series"] for e in events}
    assert (planned["series"], planned["todo"]) == (4, len(mine))
    assert planned["bytes"] > 0
    assert [e["event"] for e in events] == ["series_started", "cached"] * len(mine)
    for event in events[1::2]:
        assert event["seconds"] > 0
        assert event["bytes_in"] > 0
        assert event["bytes_out"] > 0
        assert event["voxels"] == event["frames"] * 64 * 64
        assert event["syntax"] == "1.2.840.10008.1.2.1"
    assert (last["event"], last["how"]) == ("run_ended", "done")

    # The second counts what was done before.
    ran = call_in_process(*command, env=environment(ANEURYSM_RUN="second"))
    assert ran.code == 0, ran.text
    (planned,) = [e for e in lines(cache, "second") if e["event"] == "run_started"]
    assert (planned["series"], planned["done"], planned["todo"]) == (4, len(mine), 4 - len(mine))


def test_a_run_that_is_killed_leaves_whole_lines_and_no_lock(long_run, tmp_path):
    cache = tmp_path / "cache"
    process = start(long_run, cache, env=environment(ANEURYSM_RUN="killed"))

    def cached() -> int:
        return sum(b'"cached"' in path.read_bytes() for path in (cache / ".runs").glob("*/*.jsonl"))

    assert wait_until(cached, process)
    (path,) = (cache / ".runs" / "killed").iterdir()
    assert is_locked(path)
    kill_group(process)
    process.wait()
    assert not is_locked(path)
    events = [e["event"] for e in lines(cache)]
    assert events[:3] == ["opened", "run_started", "series_started"]
    assert "cached" in events
    assert "run_ended" not in events


@pytest.mark.parametrize(
    ("error", "how"), [(SystemExit(143), "terminated"), (KeyboardInterrupt(), "interrupted"), (OSError("x"), "error")]
)
def test_how_a_run_ended_is_its_last_line(cache, error, how):
    with pytest.raises(type(error)), run_ledger(cache, "", "r", ""):
        raise error
    assert (lines(cache)[-1]["event"], lines(cache)[-1]["how"]) == ("run_ended", how)


def test_what_a_run_and_its_jobs_write_is_one_file_and_another_process_has_its_own(cache):
    with run_ledger(cache, "", "r", "") as ledger:
        assert ledger_of(job(cache)) is ledger
    worker = ledger_of(job(cache))
    assert worker is not None
    assert worker is not ledger
    assert ledger_of(job(cache)) is worker
    worker.series_started(job(cache))
    worker.series_ended(job(cache), Outcome("1.2", "rejected", "too_few_slices", "Name^Secret", 1.5, 9))
    worker.close()
    assert len(list((cache / ".runs" / "r").iterdir())) == 2
    (ended,) = [e for e in lines(cache) if e["event"] == "rejected"]
    assert ended["time"] == pytest.approx(time.time(), abs=60)
    del ended["time"]
    # No detail: it is in the record of the series.
    assert ended == {
        "event": "rejected", "series": "1.2", "reason": "too_few_slices", "seconds": 1.5, "bytes_in": 9,
        "expected_s": 2.5,
    }  # fmt: skip
    assert ledger_of(job(cache, run="")) is None


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_a_process_that_lives_says_so_however_long_a_series_takes(cache, monkeypatch):
    monkeypatch.setattr("aneurysm.precaching.ledger.HEARTBEAT_S", 0.1)
    with run_ledger(cache, "", "r", "") as ledger:
        ledger.series_started(job(cache))
        assert within(30, lambda: [e["event"] for e in lines(cache)].count("alive") >= 2)


def test_a_worker_that_has_had_nothing_to_do_for_long_lets_go_of_its_ledger(cache, monkeypatch):
    monkeypatch.setattr("aneurysm.precaching.ledger.HEARTBEAT_S", 0.1)
    monkeypatch.setattr("aneurysm.precaching.ledger._IDLE_S", 0.3)
    first = ledger_of(job(cache))
    assert first is not None
    first.series_started(job(cache))
    (path,) = (cache / ".runs" / "r").iterdir()
    time.sleep(0.6)
    assert is_locked(path)  # it has a series in hand
    first.series_ended(job(cache), Outcome("1.2", "cached"))
    assert within(30, lambda: not first.is_open and not is_locked(path))
    second = ledger_of(job(cache))
    assert second is not None
    assert second is not first
    second.close()


def test_a_group_may_read_and_prune_it(cache):
    cache.chmod(0o2770)
    umask = os.umask(0o077)
    try:
        Ledger(cache, "", "r").close()
    finally:
        os.umask(umask)
    folder = cache / ".runs" / "r"
    (path,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o2770
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_a_ledger_that_cant_be_written_is_told_once_and_ends_nothing(cache, caplog):
    (cache / ".runs").touch()
    with caplog.at_level(logging.WARNING), run_ledger(cache, "", "r", "") as ledger:
        ledger.series_started(job(cache))
        ledger.series_ended(job(cache), Outcome("1.2", "cached"))
    (record,) = caplog.records
    assert "can't be written, so `aneurysm status` lacks it" in record.getMessage()
    assert str(cache) not in record.getMessage()


def test_the_newest_runs_stay_and_those_that_somebody_is_at(cache):
    runs = CacheLayout(cache).runs
    alive = Ledger(cache, "", "run-0")
    for number in range(1, 6):
        Ledger(cache, "", f"run-{number}").close()
    for number in range(5):
        then = time.time() - (10 - number) * 24 * 3600
        os.utime(runs / f"run-{number}", (then, then))
    prune_runs(CacheLayout(cache), "", kept=2)
    assert sorted(p.name for p in runs.iterdir()) == ["run-0", "run-4", "run-5"]
    alive.close()
    os.utime(runs / "run-4")  # of the last day
    prune_runs(CacheLayout(cache), "", kept=1)
    assert sorted(p.name for p in runs.iterdir()) == ["run-4", "run-5"]


@pytest.mark.usefixtures("s3_settings")
def test_in_a_store_it_comes_in_parts_of_which_each_says_whose_it_is(bucket, monkeypatch):
    monkeypatch.setattr("aneurysm.precaching.ledger._PART_BYTES", 1000)
    store = ObjectStore(f"{bucket.url}/cache")
    with run_ledger(Path("/nowhere"), store.url, "r", "0/2") as ledger:
        for number in range(40):
            ledger.write("alive", series=f"1.{number}")
            if number % 10 == 0:
                ledger._sink.send()
        ledger.write("run_ended", how="done")
    keys = [o.key for o in store.find(".runs")]
    parts = [[json.loads(line) for line in store.read(key).splitlines()] for key in keys]
    assert len(parts) > 1
    assert {part[0]["event"] for part in parts} == {"opened"}
    assert [e["series"] for part in parts for e in part if e["event"] == "alive"] == [f"1.{n}" for n in range(40)]
    assert parts[-1][-1]["how"] == "done"
    assert all(key.endswith(f".{n:04}.jsonl") for n, key in enumerate(keys))
