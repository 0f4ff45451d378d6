"""A second run does what is missing and no more; two runs at once do no harm."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.support.built import Built
from tests.support.cache_paths import volume_path
from tests.support.cache_state import leftovers, same_cache
from tests.support.command import call_cli
from tests.support.running import (
    assert_completes,
    precache_here,
    published,
    start,
)


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
    shutil.rmtree(volume_path(copied.cache, built.uids[2]))
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
