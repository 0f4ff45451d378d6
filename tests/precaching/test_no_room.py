"""A disk that is full, fills up or can't be written: one clear message, and a cache that a later run completes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import hooks
from tests.support.built import Built
from tests.support.cache_state import leftovers, manifest, same_cache
from tests.support.command import environment, run_cli
from tests.support.running import (
    assert_published_are_whole,
    precache,
    precache_here,
    published,
    start,
    wait_until,
)


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


def test_a_disk_that_fills_up_where_nothing_may_be_mounted(built: Built, tmp_path: Path) -> None:
    """The same, with the operating system's answer faked: no file can be written after two volumes."""
    cache = tmp_path / "cache"
    site = hooks.write_unwritable(tmp_path / "site", cache, "ENOSPC")
    ran = precache(built, cache, env=environment(first_path=site))
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


@pytest.mark.parametrize(
    "error, code, word", [("ENOSPC", 5, "full"), ("EROFS", 3, "read-only")], ids=["full", "read-only"]
)
def test_tables_that_can_not_be_written_are_told(
    built: Built, tmp_path: Path, error: str, code: int, word: str
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(built.cache, cache)
    before = manifest(cache)
    env = environment(first_path=hooks.write_unwritable(tmp_path / "site", cache, error))
    ran = run_cli("manifest", "--cache", cache, env=env)
    assert ran.code == code, ran.text
    assert "Traceback" not in ran.text
    assert word in ran.text
    assert manifest(cache) == before
