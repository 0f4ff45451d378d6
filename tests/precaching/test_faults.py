"""What one series may do to the process that builds it, and files may do to the run: it costs that series, or nothing.

SIGKILL stands in test_killed.py, a full disk in test_no_room.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from aneurysm.errors import UsageError
from aneurysm.precaching.disk_space import check_space
from aneurysm.precaching.run import precache as precache_in_python
from aneurysm.processes.children import NO_LIMITS, Children, Limits
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.spec import load_spec
from tests.support import hooks
from tests.support.built import Built
from tests.support.cache_paths import record_paths
from tests.support.cache_state import leftovers, manifest, same_cache
from tests.support.command import environment, run_cli
from tests.support.running import precache, precache_here, published


def assert_one_row(built: Built, cache: Path, uid: str, reason: str) -> str:
    """All series are cached but ``uid``, which failed for ``reason``; return the detail."""
    rows = manifest(cache)
    assert set(rows) == set(built.uids)
    assert (rows[uid]["status"], rows[uid]["reason"]) == ("failed", reason), rows[uid]
    assert all(row["status"] == "cached" for other, row in rows.items() if other != uid), rows
    return rows[uid]["detail"]


def assert_retry_completes(built: Built, cache: Path) -> None:
    assert leftovers(cache) == []
    again = precache_here(built, cache, "--retry-failed")
    assert again.code == 0, again.text
    assert same_cache(cache, built.cache) == []


@pytest.mark.parametrize(
    "fault, options, reason, words",
    [
        pytest.param(hooks.SEGMENTATION_FAULT, (), "worker_killed", "SIGSEGV", id="segmentation fault"),
        pytest.param(hooks.HANGS, ("--timeout-s", 4), "timed_out", "4 s", id="a file that hangs on reading"),
        pytest.param(hooks.HUGE, (), "out_of_memory", "memory", id="more memory than there is"),
        pytest.param(
            hooks.HUGE,
            ("--memory-mb", 800),
            "out_of_memory",
            "memory",
            id="one piece beyond the limit",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            hooks.GROWS,
            ("--memory-mb", 800),
            "out_of_memory",
            "800 MB",
            id="growing beyond the limit",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_fault_of_one_series_is_one_row(
    built: Built, tmp_path: Path, fault: str, options: tuple[object, ...], reason: str, words: str
) -> None:
    uid, cache = built.uids[1], tmp_path / "cache"
    env = environment(first_path=hooks.write_hook(tmp_path / "site", uid, fault))
    ran = precache(built, cache, *options, workers=2, env=env)
    assert ran.code == 8, ran.text
    assert "Traceback" not in ran.text
    detail = assert_one_row(built, cache, uid, reason)
    assert words in detail
    assert "alone" in detail
    assert_retry_completes(built, cache)


@pytest.mark.slow
def test_a_file_that_hangs_while_a_tree_is_scanned_is_a_row(built: Built, tmp_path: Path) -> None:
    """Which series it is of can't be known: it gets a row of its own, and the others are built."""
    data, cache, uid = tmp_path / "tree", tmp_path / "cache", built.uids[1]
    shutil.copytree(built.data / "series", data)
    stuck = min((data / uid).iterdir()).name
    fault = f"time.sleep(3600 * name.endswith({stuck!r}))"
    env = environment(first_path=hooks.write_hook(tmp_path / "site", uid, fault))
    ran = run_cli("precache", "--data", data, "--cache", cache, "--workers", 2, "--timeout-s", 3, env=env)
    assert ran.code == 8, ran.text
    assert "Traceback" not in ran.text
    rows = manifest(cache)
    assert [row["reason"] for row in rows.values()].count("timed_out") == 1
    assert all(rows[other]["status"] == "cached" for other in built.uids if other != uid)


def test_limits_that_are_kept_change_nothing(built: Built, tmp_path: Path) -> None:
    ran = precache(built, tmp_path / "cache", "--timeout-s", 60, "--memory-mb", 800, workers=2)
    assert ran.code == 0, ran.text
    assert same_cache(tmp_path / "cache", built.cache) == []


def test_a_decoder_that_crashes_costs_a_library_call_one_series(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one worker, too, and with nothing said of isolation: this process is the one that asks."""
    uid, cache = built.uids[1], tmp_path / "cache"
    monkeypatch.setenv("PYTHONPATH", str(hooks.write_hook(tmp_path / "site", uid, "os.abort()")))
    summary = precache_in_python(built.data, cache)
    assert (summary.cached, summary.failed) == (len(built.uids) - 1, 1)
    assert_one_row(built, cache, uid, "worker_killed")


def test_what_is_to_be_debugged_runs_in_this_process(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert precache_in_python(built.data, tmp_path / "cache", workers=0).cached == len(built.uids)
    with pytest.raises(UsageError, match="workers is 0"):
        precache_in_python(built.data, tmp_path / "cache", workers=0, memory_mb=1000)


def test_files_that_vanish_are_one_row(built: Built, tmp_path: Path) -> None:
    """While one is opened, the others are removed."""
    uid, cache = built.uids[1], tmp_path / "cache"
    data = shutil.copytree(built.data, tmp_path / "data")
    env = environment(first_path=hooks.write_hook(tmp_path / "site", uid, hooks.OTHER_FILES_VANISH))
    ran = precache(Built(data, built.cache, built.uids), cache, workers=2, env=env)
    assert ran.code == 8, ran.text
    assert "Traceback" not in ran.text
    assert_one_row(built, cache, uid, "read_error")
    assert_retry_completes(built, cache)


def test_what_is_no_file_is_not_opened(built: Built, tmp_path: Path) -> None:
    """To open a FIFO that nobody writes to takes for ever."""
    data = shutil.copytree(built.data, tmp_path / "data")
    os.mkfifo(data / "series" / built.uids[1] / "0000a.dcm")
    os.mkfifo(data / "segmentations" / f"{built.uids[1]}_cowseg.nii")
    ran = precache_here(Built(data, built.cache, built.uids), tmp_path / "cache")
    assert ran.code == 0, ran.text
    assert same_cache(tmp_path / "cache", built.cache) == []


def test_the_estimate_of_space_does_not_wait_for_a_file_that_hangs(tmp_path: Path) -> None:
    """Each process has what is left of the time; the one that hangs takes the rest of it."""
    asked: list[float] = []

    class HangsAtTheSecond(Children):
        def run(self, function: object, source: object, *_: object, limits: Limits = NO_LIMITS) -> int:
            assert limits.timeout_s is not None
            asked.append(limits.timeout_s)
            super().run(time.sleep, 600.0 if len(asked) == 2 else 0.0, limits=limits)
            return 1_000_000

    sources = [SeriesSource(f"1.{i}") for i in range(5)]
    with HangsAtTheSecond() as children:
        needed = check_space(sources, load_spec("rsna-1mm"), tmp_path, children, patience_s=3.0)
    assert len(asked) == 2
    assert asked[0] <= 3.0
    assert needed > 5 * 100_000, "the one that was looked at stands for all"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_system_that_turns_read_only_ends_the_run(built: Built, tmp_path: Path, workers: int) -> None:
    cache = tmp_path / "cache"
    site = hooks.write_unwritable(tmp_path / "site", cache, "EROFS")
    ran = precache(built, cache, workers=workers, env=environment(first_path=site))
    assert ran.code == 3, ran.text
    assert "Traceback" not in ran.text
    assert "read-only" in ran.text
    assert str(cache) in ran.text
    assert 2 <= len(published(cache)) < len(built.uids)
    assert not record_paths(cache)
    again = precache_here(built, cache)
    assert again.code == 0, again.text
    assert same_cache(cache, built.cache) == []
    assert leftovers(cache) == []


@pytest.mark.parametrize("wrong", [{"timeout_s": 0}, {"timeout_s": float("nan")}, {"memory_mb": -1}, {"memory_mb": 16}])
def test_limits_that_make_no_sense(built: Built, tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        precache_in_python(built.data, tmp_path / "cache", **wrong)  # type: ignore[arg-type]
