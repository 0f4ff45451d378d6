"""Killed, interrupted, doubled and starved runs leave a cache that the next run completes, to the byte.

The reference is always the cache of one uninterrupted run with one worker.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.cache.conftest import Built
from tests.support_run import (
    Ran,
    call_cli,
    environment,
    group_members,
    kill_group,
    leftovers,
    manifest,
    run_cli,
    same_cache,
    start_cli,
    tree_digest,
)


def precache(built: Built, cache: Path, *more: object, workers: int = 1, **options: object) -> Ran:
    return run_cli("precache", "--data", built.data, "--cache", cache, "--workers", workers, *more, **options)


def precache_here(built: Built, cache: Path, *more: object) -> Ran:
    """One worker, in this process: where nothing is killed that is as good, and faster."""
    return call_cli("precache", "--data", built.data, "--cache", cache, "--workers", 1, *more)


def start(built: Built, cache: Path, *more: object, workers: int = 1, **options: object) -> subprocess.Popen[str]:
    return start_cli("precache", "--data", built.data, "--cache", cache, "--workers", workers, *more, **options)


def published(cache: Path) -> list[str]:
    volumes = cache / "volumes"
    return sorted(p.name for p in volumes.iterdir()) if volumes.exists() else []


def busy(cache: Path) -> bool:
    building = cache / ".building"
    return bool(published(cache)) or (building.exists() and any(building.iterdir()))


def wait_until(condition: object, process: subprocess.Popen[str], timeout_s: float = 60) -> bool:
    """Wait for `condition()`; False when the process ended first."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    kill_group(process)
    raise AssertionError("the run never came so far")


def assert_group_ends(process: subprocess.Popen[str], timeout_s: float = 20) -> None:
    """No process of the run may outlive it for long."""
    end = time.monotonic() + timeout_s
    while (alive := group_members(process)) and time.monotonic() < end:
        time.sleep(0.1)
    names = [str(p) for p in alive]
    kill_group(process)
    assert not names


def assert_published_are_whole(cache: Path, reference: Path) -> None:
    for name in published(cache):
        ours, theirs = tree_digest(cache / "volumes" / name), tree_digest(reference / "volumes" / name)
        assert ours == theirs, name


def assert_completes(built: Built, cache: Path, workers: int = 1) -> None:
    ran = precache_here(built, cache) if workers == 1 else precache(built, cache, workers=workers)
    assert ran.code == 0, ran.text
    assert same_cache(cache, built.cache) == []
    assert leftovers(cache) == []


# Killed ---------------------------------------------------------------------------------------------------


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
    assert set(rows) == set(long_run.uids)
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


# Twice ----------------------------------------------------------------------------------------------------


def test_two_runs_at_once_do_no_harm(long_run: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    both = [start(long_run, cache, workers=1) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, out + err
        assert "Traceback" not in out + err
    assert same_cache(cache, long_run.cache) == []
    assert leftovers(cache) == []
    verified = call_cli("verify", "--cache", cache, "--deep", "--workers", 1)
    assert verified.code == 0, verified.text


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Built:
    """A data set and finished cache of one's own."""
    shutil.copytree(built.data, tmp_path / "data")
    shutil.copytree(built.cache, tmp_path / "cache")
    return Built(tmp_path / "data", tmp_path / "cache", built.uids)


def written_at(cache: Path) -> dict[str, int]:
    """When each file of each volume was last changed (ctime: also a rename, or the same bytes anew)."""
    files = [p for p in (cache / "volumes").rglob("*") if p.is_file()]
    return {p.relative_to(cache / "volumes").as_posix(): p.stat().st_ctime_ns for p in files}


def test_a_second_run_does_nothing_and_takes_seconds(built: Built, copied: Built) -> None:
    before = written_at(copied.cache)
    began = time.monotonic()
    ran = precache_here(copied, copied.cache)
    assert ran.code == 0, ran.text
    assert time.monotonic() - began < 10
    assert written_at(copied.cache) == before
    assert same_cache(copied.cache, built.cache) == []


def test_only_what_is_missing_is_done(built: Built, copied: Built) -> None:
    shutil.rmtree(copied.cache / "volumes" / f"{built.uids[2]}.zarr")
    before = written_at(copied.cache)
    ran = precache_here(copied, copied.cache)
    assert ran.code == 0, ran.text
    assert {name: at for name, at in written_at(copied.cache).items() if name in before} == before
    assert same_cache(copied.cache, built.cache) == []


def test_a_lost_manifest_comes_back(built: Built, copied: Built) -> None:
    (copied.cache / "manifest.csv").unlink()
    before = written_at(copied.cache)
    ran = precache_here(copied, copied.cache)
    assert ran.code == 0, ran.text
    assert written_at(copied.cache) == before
    assert same_cache(copied.cache, built.cache) == []


def test_overwrite_builds_the_same_again(built: Built, copied: Built) -> None:
    before = written_at(copied.cache)
    ran = precache_here(copied, copied.cache, "--overwrite")
    assert ran.code == 0, ran.text
    assert all(at != before[name] for name, at in written_at(copied.cache).items())
    assert same_cache(copied.cache, built.cache) == []
    assert leftovers(copied.cache) == []


def test_limit_then_the_rest(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    ran = precache_here(built, cache, "--limit", 2)
    assert ran.code == 0, ran.text
    assert len(published(cache)) == 2
    assert_completes(built, cache)


def test_series_are_chosen_by_uid(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    ran = precache_here(built, cache, "--series", built.uids[3], "--series", built.uids[1])
    assert ran.code == 0, ran.text
    assert published(cache) == sorted(f"{built.uids[i]}.zarr" for i in (1, 3))


# No room --------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[object]:
    """A function that mounts a file system of so many bytes; gone after the test."""
    mounted = []

    def mount(size: int, *options: str) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        option = ",".join([f"size={size}", *options])
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", option, "tmpfs", folder],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"mounting a file system is not permitted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    try:
        yield mount
    finally:
        for folder in mounted:
            subprocess.run(["umount", "-l", folder], check=True)


SPACE_WORDS = ("space", "disk", "room")


def test_too_small_a_disk_is_refused_before_the_work(long_run: Built, small_disk: object) -> None:
    disk = small_disk(1 << 20)  # type: ignore[operator]
    ran = precache_here(long_run, disk / "cache")
    assert ran.code not in (0, 8), ran.text
    assert "Traceback" not in ran.text
    assert any(word in ran.text.lower() for word in SPACE_WORDS), ran.text
    assert published(disk / "cache") == []


@pytest.mark.parametrize(
    "workers",
    [pytest.param(1, id="one worker"), pytest.param(2, id="two workers", marks=pytest.mark.slow)],
)
def test_a_disk_that_fills_up_on_the_way(long_run: Built, small_disk: object, workers: int) -> None:
    disk = small_disk(512 << 20)  # type: ignore[operator]
    cache = disk / "cache"
    process = start(long_run, cache, workers=workers)
    assert wait_until(lambda: published(cache), process)
    with (disk / "ballast").open("wb") as ballast:
        size = 0
        for _ in range(20):  # the run frees and takes space meanwhile
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            with suppress(OSError):
                if free:
                    os.posix_fallocate(ballast.fileno(), size, free)
                    size += free
    out, err = process.communicate(timeout=120)
    text = out + err
    assert process.returncode not in (0, 130), text
    assert "Traceback" not in text
    assert any(word in text.lower() for word in SPACE_WORDS), text
    assert 0 < len(published(cache)) < len(long_run.uids)
    assert_published_are_whole(cache, long_run.cache)
    (disk / "ballast").unlink()
    again = precache_here(long_run, cache, "--retry-failed")
    assert again.code == 0, again.text
    assert same_cache(cache, long_run.cache) == []
    assert leftovers(cache) == []


FULL = """
import errno, os, sys

def full(event, args):
    if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
        name, flags = os.fsdecode(args[0]), args[2]
        if name.startswith("{cache}/") and flags & (os.O_WRONLY | os.O_RDWR):
            if len(os.listdir("{cache}/volumes") if os.path.isdir("{cache}/volumes") else []) >= 2:
                raise OSError(errno.ENOSPC, "No space left on device", name)

sys.addaudithook(full)
"""


def test_a_disk_that_fills_up_where_nothing_may_be_mounted(built: Built, tmp_path: Path) -> None:
    """The same, with the operating system's answer faked: no file can be written after two volumes."""
    cache = tmp_path / "cache"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FULL.replace("{cache}", str(cache)))
    ran = precache(built, cache, env=environment(first_path=tmp_path / "site"))
    assert ran.code not in (0, 130), ran.text
    assert "Traceback" not in ran.text
    assert any(word in ran.text.lower() for word in SPACE_WORDS), ran.text
    assert len(published(cache)) == 2
    again = precache_here(built, cache, "--retry-failed")
    assert again.code == 0, again.text
    assert same_cache(cache, built.cache) == []
    assert leftovers(cache) == []


def test_a_read_only_disk_is_refused(built: Built, small_disk: object) -> None:
    disk = small_disk(1 << 20, "ro")  # type: ignore[operator]
    ran = precache_here(built, disk / "cache")
    assert ran.code == 2, ran.text
    assert "Traceback" not in ran.text
    assert str(disk) in ran.text
