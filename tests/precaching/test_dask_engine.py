"""Precaching on a Dask cluster: the same cache as on one machine, whatever dies on the way."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from aneurysm._version import __version__
from aneurysm.errors import UsageError
from aneurysm.precaching.build_series import SeriesJob
from aneurysm.precaching.dask_engine import build_on_worker, dask_engine
from aneurysm.precaching.status import RunWatch
from aneurysm.processes.children import Limits
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.rawdata.tables import SeriesNotes
from aneurysm.spec import RECIPE_VERSION, load_spec
from tests.support import hooks
from tests.support.built import Built
from tests.support.cache_paths import record_paths
from tests.support.cache_state import leftovers, manifest, same_cache
from tests.support.cluster import Cluster
from tests.support.command import kill_group, run_cli, start_cli
from tests.support.running import assert_completes, assert_group_ends, assert_published_are_whole, published, wait_until

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """A function that starts a scheduler; all its processes end with the test."""
    made: list[Cluster] = []

    def make(**settings: str) -> Cluster:
        (tmp_path / "cluster").mkdir()
        made.append(Cluster(tmp_path / "cluster", **settings))
        return made[-1]

    yield make
    for one in made:
        one.end()


def arguments(built: Built, cache: Path, cluster: Cluster) -> list[object]:
    return ["precache", "--data", built.data, "--cache", cache, "--dask", cluster.address]


def begin(built: Built, cache: Path, cluster: Cluster) -> subprocess.Popen[str]:
    """Start a run, and return when it is in the middle of its work."""
    process = start_cli(*arguments(built, cache, cluster))
    assert wait_until(lambda: published(cache), process), cluster.logs()
    assert len(published(cache)) < len(built.uids)
    return process


def told(process: subprocess.Popen[str], timeout_s: float = 120) -> str:
    """What a run said until its end."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_group(process)
        raise AssertionError(f"no end within {timeout_s} s") from None
    assert "Traceback" not in out + err, out + err
    return out + err


def children_of(process: subprocess.Popen[bytes], name: str) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children(recursive=True) if name in " ".join(p.cmdline())]


def assert_ends(*processes: psutil.Process) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


def test_the_same_cache_as_on_one_machine(built: Built, cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    here, cache = cluster(), tmp_path / "cache"
    worker = here.add_worker("--nthreads", 2)
    ran = run_cli("precache", "--data", built.data, "--cache", cache, "--scheduler-file", here.file)
    assert ran.code == 0, ran.text + here.logs()
    assert "4 to build" in ran.err
    assert ran.out.startswith("4 cached, 0 rejected, 0 failed, 0 done before")
    assert same_cache(cache, built.cache) == []
    assert leftovers(cache) == []
    status = RunWatch(cache).look()
    assert (status.total, status.cached, status.is_complete) == (4, 4, True)
    assert sum(t.done for t in status.tasks if t.is_worker) == 4
    assert [(t.state, t.done) for t in status.tasks if not t.is_worker] == [("ended", 0)]
    builders = children_of(worker, "aneurysm.processes.child_main")
    assert 1 <= len(builders) <= 2
    assert all(p.parent().name() != "" and p.environ()["OMP_NUM_THREADS"] == "1" for p in builders)
    again = run_cli(*arguments(built, cache, here))
    assert again.code == 0, again.text
    assert again.out.startswith("0 cached, 0 rejected, 0 failed, 4 done before")
    worker.terminate()
    assert_ends(psutil.Process(worker.pid), *builders)


def test_a_killed_worker_costs_nothing(long_run: Built, cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    here, cache = cluster(), tmp_path / "cache"
    workers = [here.add_worker() for _ in range(2)]
    process = begin(long_run, cache, here)
    (victim,) = children_of(workers[0], "multiprocessing.spawn")
    victim.kill()
    text = told(process)
    assert process.returncode == 0, text + here.logs()
    assert same_cache(cache, long_run.cache) == []
    assert leftovers(cache) == []


def test_the_scheduler_has_its_dashboard(tmp_path: Path) -> None:
    """It needs bokeh, which Dask itself does without; the extra `cluster` brings it."""
    here = Cluster(tmp_path, "--dashboard-address", "127.0.0.1:0")
    try:
        page = re.search(r"dashboard at: *(http://\S+)", here.logs())
        assert page, here.logs()
        with urlopen(page[1]) as answer:
            text = answer.read().decode()
    finally:
        here.end()
    assert "needs bokeh" not in text
    assert "Task Stream" in text


@pytest.mark.parametrize(
    "fault, words",
    [
        pytest.param(hooks.KILLED, "SIGKILL", id="the process that builds it"),
        pytest.param(hooks.SEGMENTATION_FAULT, "SIGSEGV", id="a decoder that crashes", marks=pytest.mark.slow),
        pytest.param(hooks.KILLS_ITS_PARENT, "Dask workers", id="the whole Dask worker", marks=pytest.mark.slow),
    ],
)
def test_a_series_that_kills_is_one_row(
    built: Built, cluster: Callable[..., Cluster], tmp_path: Path, fault: str, words: str
) -> None:
    here, cache, uid = cluster(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1"), tmp_path / "cache", built.uids[1]
    here.add_worker("--nworkers", 2, first_path=hooks.write_hook(tmp_path / "site", uid, fault))
    ran = run_cli(*arguments(built, cache, here), timeout_s=300)
    assert ran.code == 8, ran.text + here.logs()
    assert "Traceback" not in ran.text
    rows = manifest(cache)
    assert set(rows) == set(built.uids)
    assert (rows[uid]["status"], rows[uid]["reason"]) == ("failed", "worker_killed")
    assert words in rows[uid]["detail"]
    assert "alone" in rows[uid]["detail"]
    assert all(row["status"] == "cached" for other, row in rows.items() if other != uid), ran.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, limit, reason",
    [
        pytest.param(hooks.HANGS, ("--timeout-s", 4), "timed_out", id="time"),
        pytest.param(hooks.GROWS, ("--memory-mb", 800), "out_of_memory", id="memory"),
    ],
)
def test_a_series_beyond_a_limit_is_one_row(
    built: Built, cluster: Callable[..., Cluster], tmp_path: Path, fault: str, limit: tuple[object, ...], reason: str
) -> None:
    here, cache, uid = cluster(), tmp_path / "cache", built.uids[1]
    here.add_worker(first_path=hooks.write_hook(tmp_path / "site", uid, fault))
    ran = run_cli(*arguments(built, cache, here), *limit)
    assert ran.code == 8, ran.text + here.logs()
    assert manifest(cache)[uid]["reason"] == reason
    assert "alone" in manifest(cache)[uid]["detail"]
    assert [row["status"] for row in manifest(cache).values()].count("cached") == 3


@pytest.mark.slow
@pytest.mark.parametrize("error, code", [("ENOSPC", 5), ("EROFS", 3)])
def test_a_cache_that_workers_can_not_write_ends_the_run(
    built: Built, cluster: Callable[..., Cluster], tmp_path: Path, error: str, code: int
) -> None:
    here, cache = cluster(), tmp_path / "cache"
    here.add_worker(first_path=hooks.write_unwritable(tmp_path / "site", cache, error))
    ran = run_cli(*arguments(built, cache, here))
    assert ran.code == code, ran.text
    assert "Traceback" not in ran.text
    assert str(cache) in ran.err
    assert not record_paths(cache)
    here.end()
    assert_completes(built, cache)


@pytest.mark.slow
def test_a_killed_scheduler_ends_the_run(long_run: Built, cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    here, cache = cluster(), tmp_path / "cache"
    here.add_worker()
    process = begin(long_run, cache, here)
    here.scheduler.kill()
    text = told(process, timeout_s=60)
    assert process.returncode == 9, text
    assert "scheduler" in text
    assert "run the same command again" in text
    here.end()
    assert_published_are_whole(cache, long_run.cache)
    assert_completes(long_run, cache)


@pytest.mark.slow
def test_a_killed_run_is_completed_by_the_next_one(
    long_run: Built, cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    here, cache = cluster(), tmp_path / "cache"
    worker = here.add_worker()
    process = begin(long_run, cache, here)
    kill_group(process)
    process.communicate()
    assert_published_are_whole(cache, long_run.cache)
    again = run_cli(*arguments(long_run, cache, here))
    assert again.code == 0, again.text + here.logs()
    assert same_cache(cache, long_run.cache) == []
    assert leftovers(cache) == []
    assert worker.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("sent, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_stops_when_it_is_told(
    long_run: Built, cluster: Callable[..., Cluster], tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    here, cache = cluster(), tmp_path / "cache"
    here.add_worker()
    process = begin(long_run, cache, here)
    process.send_signal(sent)
    text = told(process, timeout_s=20)
    assert process.returncode == code, text
    assert_group_ends(process)
    done = published(cache)
    assert len(done) < len(long_run.uids), "the run had ended before the signal came"
    time.sleep(3)  # what was in hand is finished, and nothing begun
    assert len(published(cache)) <= len(done) + 1
    assert_published_are_whole(cache, long_run.cache)
    assert_completes(long_run, cache)


@pytest.mark.slow
@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_a_worker_stops_when_it_is_told(
    long_run: Built, cluster: Callable[..., Cluster], tmp_path: Path, nanny: str
) -> None:
    """A preempted node: its worker is gone within 20 s, with what it started; the rest is done by others."""
    here, cache = cluster(), tmp_path / "cache"
    first = here.add_worker(nanny)
    process = begin(long_run, cache, here)
    family = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    assert any("aneurysm.processes.child_main" in str(p.cmdline()) for p in family)
    first.terminate()
    first.wait(20)
    assert_ends(*family[1:])
    here.add_worker()
    text = told(process)
    assert process.returncode == 0, text + here.logs()
    assert same_cache(cache, long_run.cache) == []
    assert leftovers(cache) == []


@pytest.mark.slow
def test_no_scheduler(built: Built, tmp_path: Path) -> None:
    given = ["precache", "--data", built.data, "--cache", tmp_path / "cache"]
    for more, words in [
        (("--dask", "tcp://127.0.0.1:9"), "no Dask scheduler answers at tcp://127.0.0.1:9"),
        (("--scheduler-file", tmp_path / "none.json"), "none.json"),
        (("--scheduler-file", built.data / "train.csv"), "train.csv"),
        (("--dask", "tcp://127.0.0.1:9", "--scheduler-file", tmp_path / "none.json"), "not both"),
    ]:
        ran = run_cli(*given, *more, timeout_s=60)
        assert ran.code == 2, ran.text
        assert words in ran.err
        assert "Traceback" not in ran.text
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_no_workers(built: Built, cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    ran = run_cli(*arguments(built, tmp_path / "cache", cluster()), timeout_s=60)
    assert ran.code == 2, ran.text
    assert "no workers" in ran.err
    assert "Traceback" not in ran.text


@pytest.fixture
def job(built: Built, tmp_path: Path) -> SeriesJob:
    source = SeriesSource(built.uids[0], folder=built.data / "series" / built.uids[0])
    return SeriesJob(source, SeriesNotes(), None, built.cache, load_spec("rsna-1mm"), b"")


def test_workers_that_see_other_files_end_the_run(
    built: Built, cluster: Callable[..., Cluster], tmp_path: Path, job: SeriesJob
) -> None:
    here = cluster()
    here.add_worker()
    with (
        dask_engine(here.address, None, tmp_path / "elsewhere", Limits()) as engine,
        pytest.raises(UsageError, match=r"elsewhere: --data must be"),
    ):
        list(engine.build([job]))
    version = (__version__, RECIPE_VERSION)
    with pytest.raises(UsageError, match=r"spec\.toml: --cache must be"):
        build_on_worker(replace(job, cache=tmp_path / "nowhere"), built.data, version, Limits(), visible_s=0.0)
    with pytest.raises(UsageError, match=r"this is 0\.0\.0"):
        build_on_worker(job, built.data, ("0.0.0", RECIPE_VERSION), Limits())
