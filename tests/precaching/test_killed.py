"""Killed and interrupted runs leave a cache that the next run completes, to the byte.

The reference is always the cache of one uninterrupted run with one worker.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.support import hooks
from tests.support.built import Built
from tests.support.cache_state import leftovers, manifest, same_cache
from tests.support.command import environment, kill_group, start_cli
from tests.support.running import (
    assert_completes,
    assert_group_ends,
    assert_published_are_whole,
    busy,
    precache,
    precache_here,
    published,
    start,
    wait_until,
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "workers, kills",
    [
        pytest.param(2, 2, id="two kills, two workers"),
        pytest.param(1, 10, id="ten kills, one worker", marks=pytest.mark.slow),
        pytest.param(2, 10, id="ten kills, two workers", marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments_then_run_again(long_run: Built, tmp_path: Path, workers: int, kills: int) -> None:
    """SIGKILL to the whole process group; half of them at any time, half while volumes are being built."""
    rng = random.Random(1000 * workers + kills)
    cache, landed, amid = tmp_path / "cache", 0, 0
    for attempt in range(10 * kills):
        process = start(long_run, cache, workers=workers)
        if attempt % 2:
            time.sleep(rng.uniform(0.0, 5.0))
        else:
            before = published(cache)
            wait_until(lambda: busy(cache) and published(cache) != before, process)  # noqa: B023
            time.sleep(rng.uniform(0.0, 0.4))
        alive = process.poll() is None
        kill_group(process)
        process.communicate()
        assert_group_ends(process)
        assert_published_are_whole(cache, long_run.cache)
        landed += alive
        amid += alive and 0 < len(published(cache)) < len(long_run.uids)
        if landed == kills:
            break
        if len(published(cache)) == len(long_run.uids):
            assert_completes(long_run, cache, workers)
            shutil.rmtree(cache)
    assert landed == kills
    assert amid >= 1, "no kill fell into the middle of the work"
    assert_completes(long_run, cache, workers)


def test_workers_do_not_outlive_a_killed_parent(long_run: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = start(long_run, cache, workers=2)
    assert wait_until(lambda: published(cache), process)
    process.kill()
    process.wait()
    assert_group_ends(process)
    process.communicate()
    assert_published_are_whole(cache, long_run.cache)
    assert_completes(long_run, cache)


def test_a_killed_worker_costs_no_other_series(long_run: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = start(long_run, cache, workers=2)
    assert wait_until(lambda: published(cache), process)
    workers = [
        p for p in psutil.Process(process.pid).children(recursive=True) if "resource_tracker" not in str(p.cmdline())
    ]
    assert workers, "no worker processes with --workers 2"
    max(workers, key=lambda p: p.cpu_times().user).kill()
    out, err = process.communicate(timeout=120)
    rows = manifest(cache)
    assert set(rows) == set(long_run.uids), (process.returncode, out, err)
    lost = [row for row in rows.values() if row["status"] != "cached"]
    assert len(lost) <= 1, lost
    assert all((row["status"], row["reason"]) == ("failed", "worker_killed") for row in lost)
    assert process.returncode == (8 if lost else 0), out + err
    assert "Traceback" not in out + err
    assert_published_are_whole(cache, long_run.cache)
    ran = precache_here(long_run, cache, "--retry-failed")
    assert ran.code == 0, ran.text
    assert same_cache(cache, long_run.cache) == []


POISON = """
import os, signal, sys

main = os.environ.setdefault("TEST_MAIN_PROCESS", str(os.getpid()))

def die_at_the_poisoned_series(event, args):
    if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)) and os.getpid() != int(main):
        name = os.fsdecode(args[0])
        if "/{uid}/" in name and name.endswith(".dcm"):
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die_at_the_poisoned_series)
"""


def test_a_series_that_always_kills_its_worker_is_one_failed_row(built: Built, tmp_path: Path) -> None:
    """Every worker that opens a file of one series dies, as when it needs more memory than there is."""
    uid, cache = built.uids[1], tmp_path / "cache"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(POISON.replace("{uid}", uid))
    ran = precache(built, cache, workers=2, env=environment(first_path=tmp_path / "site"), timeout_s=240)
    rows = manifest(cache)
    assert set(rows) == set(built.uids)
    assert (rows[uid]["status"], rows[uid]["reason"]) == ("failed", "worker_killed")
    assert rows[uid]["detail"]
    assert all(row["status"] == "cached" for other, row in rows.items() if other != uid), ran.text
    assert ran.code == 8, ran.text
    assert "Traceback" not in ran.text
    assert leftovers(cache) == []
    again = precache_here(built, cache, "--retry-failed")
    assert again.code == 0, again.text
    assert same_cache(cache, built.cache) == []


@pytest.mark.parametrize(
    "workers, whole_group, sent",
    [
        pytest.param(2, True, signal.SIGINT, id="Ctrl-C in a terminal, two workers"),
        pytest.param(1, True, signal.SIGINT, id="Ctrl-C in a terminal, one worker", marks=pytest.mark.slow),
        pytest.param(2, False, signal.SIGINT, id="SIGINT to the parent, two workers", marks=pytest.mark.slow),
        pytest.param(1, False, signal.SIGTERM, id="SIGTERM, one worker"),
        pytest.param(2, False, signal.SIGTERM, id="SIGTERM, two workers", marks=pytest.mark.slow),
    ],
)
def test_a_run_stops_when_it_is_told(
    long_run: Built, tmp_path: Path, workers: int, whole_group: bool, sent: signal.Signals
) -> None:
    cache = tmp_path / "cache"
    process = start(long_run, cache, workers=workers)
    assert wait_until(lambda: published(cache), process)
    os.killpg(process.pid, sent) if whole_group else process.send_signal(sent)
    try:
        out, err = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        kill_group(process)
        raise AssertionError(f"still running 30 s after {sent.name}") from None
    assert_group_ends(process)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[sent], out + err
    assert "Traceback" not in out + err
    assert len(published(cache)) < len(long_run.uids), "the run had ended before the signal came"
    assert_published_are_whole(cache, long_run.cache)
    assert_completes(long_run, cache, workers)


@pytest.mark.parametrize("during", ["a series that hangs", "the scan of a tree"])
def test_a_run_stops_in_time_whatever_it_is_at(built: Built, tmp_path: Path, during: str) -> None:
    """A batch system sends SIGKILL some 30 s after SIGTERM."""
    data, cache, uid = built.data, tmp_path / "cache", built.uids[1]
    started = tmp_path / "started"
    if during == "the scan of a tree":
        data = shutil.copytree(built.data / "series", tmp_path / "tree")
        for i in range(300):  # more than one batch, so that there are processes
            (data / f"{i}.txt").touch()
    fault = f"open({str(started)!r}, 'w').close() or time.sleep(3600)"
    env = environment(first_path=hooks.write_hook(tmp_path / "site", uid, fault))
    process = start_cli("precache", "--data", data, "--cache", cache, "--workers", 2, env=env)
    assert wait_until(started.exists, process)
    began = time.monotonic()
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == 143, out + err
    assert "Traceback" not in out + err
    assert_group_ends(process)


IMPORTS_SLOWLY = """
import importlib.abc, sys, time

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "{module}":
            open("{started}", "w").close()
            time.sleep(60)

sys.meta_path.insert(0, Slow())
"""


@pytest.mark.parametrize("module", ["typer", "aneurysm.precaching.run"])
def test_sigterm_while_modules_are_imported_ends_the_program_at_once(built: Built, tmp_path: Path, module: str) -> None:
    """As the first process of a container, too, which ignores SIGTERM unless it handles it."""
    started = tmp_path / "started"
    (tmp_path / "site").mkdir()
    text = IMPORTS_SLOWLY.replace("{module}", module).replace("{started}", str(started))
    (tmp_path / "site" / "sitecustomize.py").write_text(text)
    env = environment(first_path=tmp_path / "site")
    process = start_cli("precache", "--data", built.data, "--cache", tmp_path / "cache", env=env)
    assert wait_until(started.exists, process)
    began = time.monotonic()
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (143, "", "aneurysm: terminated\n")
    assert time.monotonic() - began < 5
    assert not (tmp_path / "cache").exists()


SWEEPS_SLOWLY = """
import sys, time

def slowly(layout):
    if any((layout.root / "volumes").iterdir()):
        open("{started}", "w").close()
        time.sleep(3)
        sweep(layout)
        open("{ended}", "w").close()

if not any("aneurysm.processes.child_main" in given for given in sys.orig_argv):
    from aneurysm.precaching import run
    sweep, run.sweep = run.sweep, slowly
"""


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_interrupt_the_tidying(long_run: Built, tmp_path: Path, again: signal.Signals) -> None:
    cache, started = tmp_path / "cache", tmp_path / "started"
    (tmp_path / "site").mkdir()
    ended = tmp_path / "ended"
    text = SWEEPS_SLOWLY.replace("{started}", str(started)).replace("{ended}", str(ended))
    (tmp_path / "site" / "sitecustomize.py").write_text(text)
    env = environment(first_path=tmp_path / "site")
    process = start(long_run, cache, workers=1, env=env)
    assert wait_until(lambda: published(cache), process)
    process.terminate()
    assert wait_until(started.exists, process)
    os.killpg(process.pid, again)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, out + err
    assert "Traceback" not in out + err
    assert ended.exists(), "the sweep was cut short"
    last = err.splitlines()[-1]
    n, total = len(published(cache)), len(long_run.uids)
    # One that was published a moment before may not be known yet.
    expected = tuple(f"aneurysm: terminated: {i} of {total} series were cached, " for i in (n - 1, n))
    assert any(text in last for text in expected), last
    assert last.endswith("What is cached is complete. The same command resumes.")
