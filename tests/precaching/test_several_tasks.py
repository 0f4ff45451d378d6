"""A cache built by several tasks that know nothing of each other, and `aneurysm manifest`, which puts it together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.built import Built
from tests.support.cache_paths import volume_path
from tests.support.cache_state import leftovers, manifest, same_cache
from tests.support.command import call_in_process, environment
from tests.support.running import precache_here, published


def _array(task: int, count: int) -> dict[str, str]:
    return environment(
        SLURM_ARRAY_TASK_ID=str(task),
        SLURM_ARRAY_TASK_COUNT=str(count),
        SLURM_ARRAY_TASK_MIN="0",
        SLURM_ARRAY_TASK_MAX=str(count - 1),
    )


def _task(built: Built, cache: Path, task: int, count: int, *more: object):
    return call_in_process(
        "precache", "--data", built.data, "--cache", cache, "--workers", 1, *more, env=_array(task, count)
    )


def _merge(built: Built, cache: Path, *more: object):
    return call_in_process("manifest", "--data", built.data, "--cache", cache, *more)


def test_the_tasks_of_an_array_build_the_cache_of_a_single_run(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    parts = []
    for task in (2, 0, 1):
        before = set(published(cache))
        ran = _task(built, cache, task, 3)
        assert ran.code == 0, ran.text
        assert f"shard {task}/3 (SLURM_ARRAY_TASK_ID)" in ran.text
        assert "aneurysm manifest" in ran.out
        parts.append(set(published(cache)) - before)
        if task == 0:
            assert not (cache / "manifest.csv").exists()
            early = _merge(built, cache, "--exit-zero")  # which is not for what is missing
            assert early.code == 9, early.text
            missing = {
                line.removeprefix("missing: ") for line in early.out.splitlines() if line.startswith("missing: ")
            }
            assert missing == set(built.uids) - {name.removesuffix(".zarr") for name in published(cache)}
    assert all(parts), "a task without a share"
    assert sum(map(len, parts)) == len(built.uids)
    merged = _merge(built, cache)
    assert merged.code == 0, merged.text
    assert "--data" not in merged.out
    assert same_cache(cache, built.cache) == []
    assert leftovers(cache) == []
    assert all(float(row["seconds"]) > 0 for row in manifest(cache).values()), "the tasks' times were lost"


def test_a_task_that_is_run_again_does_what_is_missing(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert _task(built, cache, 0, 2).code == 0
    lost, *kept = published(cache)
    shutil.rmtree(volume_path(cache, lost.removesuffix(".zarr")))
    again = _task(built, cache, 0, 2)
    assert again.code == 0, again.text
    assert f"1 cached, 0 rejected, 0 failed, {len(kept)} done before" in again.out
    # Of another number of tasks, too: what is there counts, whoever built it.
    assert _task(built, cache, 0, 1).code == 0
    assert _merge(built, cache).code == 0
    assert same_cache(cache, built.cache) == []


def test_series_that_the_tables_alone_name_get_one_row(built: Built, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(built.data, data)
    shutil.rmtree(data / "series" / built.uids[0])
    here = Built(data, built.cache, built.uids)
    cache = tmp_path / "cache"
    assert [_task(here, cache, task, 2).code for task in (0, 1)] == [0, 0]
    merged = _merge(here, cache)
    assert merged.code == 8, merged.text
    assert _merge(here, cache, "--exit-zero").code == 0
    rows = manifest(cache)
    assert rows[built.uids[0]]["reason"] == "no_files"
    assert set(rows) == set(built.uids)
    assert precache_here(here, cache).code == 8
    assert precache_here(here, cache, "--exit-zero").code == 0


@pytest.mark.parametrize(
    "arguments, told",
    [(["--shard", "3/3"], "the last is 2"), (["--shard", "one"], "expected I/N"), (["--shard", "/4"], "which one")],
)
def test_a_shard_that_is_none(built: Built, tmp_path: Path, arguments: list[str], told: str) -> None:
    ran = precache_here(built, tmp_path / "cache", *arguments)
    assert ran.code == 2
    assert told in ran.err
    assert not (tmp_path / "cache").exists()


def test_no_more_workers_than_slurm_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    from aneurysm.processes.threads import usable_cpus

    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert usable_cpus() == 1


def test_a_manifest_of_no_cache(tmp_path: Path) -> None:
    ran = call_in_process("manifest", "--cache", tmp_path / "none")
    assert ran.code == 3
    assert "there is no cache" in ran.err


def test_times_that_were_left_damaged_are_passed_over(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert _task(built, cache, 0, 1).code == 0
    (cache / ".seconds" / "half.json").write_text('{"1.2": ')
    (cache / ".seconds" / "other.json").write_text(json.dumps([1, 2]))
    ran = call_in_process("manifest", "--cache", cache)
    assert ran.code == 0
    assert "can't be said without --data" in ran.out
    assert same_cache(cache, built.cache) == []
    assert leftovers(cache) == []
