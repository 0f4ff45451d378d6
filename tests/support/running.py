"""What the tests of interrupted runs share: starting, waiting for a moment, and what must hold afterwards."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.support.built import Built
from tests.support.cache_paths import volume_path, volume_paths
from tests.support.cache_state import leftovers, same_cache, tree_digest
from tests.support.command import Ran, call_in_process, group_members, kill_group, run_cli, start_cli


def precache(built: Built, cache: Path, *more: object, workers: int = 1, **options: object) -> Ran:
    return run_cli("precache", "--data", built.data, "--cache", cache, "--workers", workers, *more, **options)


def precache_here(built: Built, cache: Path, *more: object) -> Ran:
    """One worker, in this process: where nothing is killed that is as good, and faster."""
    return call_in_process("precache", "--data", built.data, "--cache", cache, "--workers", 1, *more)


def start(built: Built, cache: Path, *more: object, workers: int = 1, **options: object) -> subprocess.Popen[str]:
    return start_cli("precache", "--data", built.data, "--cache", cache, "--workers", workers, *more, **options)


def published(cache: Path) -> list[str]:
    return [path.name for path in volume_paths(cache)]


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
    assert not names, f"still there after {timeout_s} s: {names}"


def assert_published_are_whole(cache: Path, reference: Path) -> None:
    for path in volume_paths(cache):
        assert tree_digest(path) == tree_digest(volume_path(reference, path.stem)), path.name


def assert_completes(built: Built, cache: Path, workers: int = 1) -> None:
    ran = precache_here(built, cache) if workers == 1 else precache(built, cache, workers=workers)
    assert ran.code == 0, ran.text
    assert same_cache(cache, built.cache) == []
    assert leftovers(cache) == []
