"""Tasks that are given a plan, or agree on one: the cache of a single run, and none of them looks through the data."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from aneurysm.errors import PlanError
from aneurysm.precaching import stealing
from aneurysm.precaching.agreed_plan import agreed_plan
from aneurysm.precaching.destination import Destination
from aneurysm.precaching.finish import merge as merge_of
from aneurysm.precaching.partition import Shard
from aneurysm.precaching.plan import Plan, read_plan, write_plan
from aneurysm.precaching.plan_folder import PlanFolder, plan_folder
from aneurysm.precaching.publish import claim
from aneurysm.precaching.run import precache
from aneurysm.precaching.stealing import portions
from aneurysm.precaching.tasks import make_plan
from aneurysm.precaching.verify import verify
from aneurysm.rawdata.bucket import DataBucket
from aneurysm.rawdata.folder import DataFolder
from tests.support.built import Built
from tests.support.cache_paths import volume_path
from tests.support.cache_state import leftovers, manifest, same_cache
from tests.support.command import Ran, call_in_process, environment, kill_group, run_cli, start_cli
from tests.support.corrections import edit_train
from tests.support.run_data import write_series
from tests.support.running import precache_here, published, wait_until
from tests.support.s3 import Bucket


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Built:
    """Data of one's own, and no cache yet."""
    shutil.copytree(built.data, tmp_path / "data")
    return Built(tmp_path / "data", tmp_path / "cache", built.uids)


def plan(built: Built, cache: Path, shards: int, *more: object) -> Ran:
    return call_in_process("plan", "--data", built.data, "--cache", cache, "--shards", shards, "--workers", 1, *more)


def task(cache: Path, index: int, *more: object, env: dict[str, str] | None = None) -> Ran:
    return call_in_process("precache", "--plan", cache / ".plan", "--shard", index, "--workers", 1, *more, env=env)


def merge(built: Built, cache: Path) -> Ran:
    return call_in_process("manifest", "--data", built.data, "--cache", cache)


@contextmanager
def blind() -> Iterator[None]:
    """Nobody may look through the data, or read a table."""
    seen = AssertionError("a task of a plan looks through the data")
    with (
        mock.patch.object(DataFolder, "find_series", side_effect=seen),
        mock.patch.object(DataFolder, "tables", side_effect=seen),
        mock.patch.object(DataFolder, "find_masks", side_effect=seen),
        mock.patch.object(DataFolder, "facts", side_effect=seen),
    ):
        yield


def uids_of(where: Path | str) -> list[set[str]]:
    made = read_plan(plan_folder(where))
    return [{planned.source.uid for planned in made.part(i)} for i in range(made.count)]


def test_the_tasks_of_a_plan_build_the_cache_of_a_single_run(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    made = plan(built, cache, 2)
    assert made.code == 0, made.text
    assert "4 in" in made.out
    assert "precache --plan" in made.out
    parts = uids_of(cache / ".plan")
    assert sorted(uid for part in parts for uid in part) == sorted(built.uids)
    with blind():
        for index in (1, 0):
            before = len(published(cache))
            ran = task(cache, index)
            assert ran.code == 0, ran.text
            assert f"shard {index}/2 (--shard)" in ran.err
            assert len(published(cache)) - before == len(parts[index]) == 2
    merged = merge(built, cache)
    assert merged.code == 0, merged.text
    assert same_cache(cache, built.cache) == []
    assert leftovers(cache) == []


def test_a_plan_of_a_tree_of_files_is_as_good(built: Built, tmp_path: Path) -> None:
    data, cache = tmp_path / "tree", tmp_path / "cache"
    shutil.copytree(built.data / "series", data / "some" / "where")
    here = Built(data, cache, built.uids)
    assert plan(here, cache, 3).code == 0
    with blind():
        ran = [task(cache, index) for index in range(3)]
    assert [r.code for r in ran] == [0, 0, 0], ran[0].text
    assert merge(here, cache).code == 0
    assert precache_here(here, tmp_path / "whole").code == 0
    assert same_cache(cache, tmp_path / "whole") == []


def test_two_plans_of_the_same_data_and_cache_have_the_same_bytes(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert plan(built, cache, 3).code == 0
    assert plan(built, cache, 3, "--out", tmp_path / "other").code == 0
    one, two = ({p.name: p.read_bytes() for p in f.iterdir()} for f in (cache / ".plan", tmp_path / "other"))
    assert len(one) == 4
    assert one == two


def test_a_plan_deals_only_what_is_missing(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(built.cache, cache)
    for uid in built.uids[1:3]:
        shutil.rmtree(volume_path(cache, uid))
    made = plan(built, cache, 2)
    assert made.code == 0, made.text
    assert sorted(map(len, uids_of(cache / ".plan"))) == [1, 1]
    assert "done        2" in made.out
    assert [task(cache, index).code for index in range(2)] == [0, 0]
    assert same_cache(cache, built.cache) == []
    assert plan(built, cache, 2).code == 0
    assert uids_of(cache / ".plan") == [set(), set()]
    assert task(cache, 1).code == 0


def test_the_number_of_the_array_s_task_is_the_part(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert plan(built, cache, 4).code == 0
    of_slurm = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "3"}
    for env in (of_slurm, {"JOB_COMPLETION_INDEX": "1"}):
        ran = call_in_process("precache", "--plan", cache / ".plan", "--workers", 1, env=environment(**env))
        assert ran.code == 0, ran.text
    parts = uids_of(cache / ".plan")
    assert {name.removesuffix(".zarr") for name in published(cache)} == parts[3] | parts[1]


@pytest.mark.parametrize(
    "more, env, told",
    [
        (["--shard", "2"], {}, "the last is 1"),
        (["--shard", "0/3"], {}, "the plan has 2 parts, and not 3"),
        ([], {}, "which part of the plan"),
        ([], {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_MAX": "2"}, "--array=0-1"),
        (["--shard", "0", "--series", "1.2"], {}, "--series: which series a plan is of"),
        (["--shard", "0", "--overwrite", "--retry-failed"], {}, "--overwrite, --retry-failed"),
        (["--shard", "0", "--spec", "rsna-1mm-u8"], {}, "is the plan of rsna-1mm with"),
        (["--shard", "0", "--cache", "elsewhere"], {}, "--cache is elsewhere"),
        (["--shard", "0", "--data", "elsewhere"], {}, "--data is elsewhere"),
    ],
)
def test_what_does_not_fit_a_plan_is_refused(
    built: Built, tmp_path: Path, more: list[str], env: dict[str, str], told: str
) -> None:
    cache = tmp_path / "cache"
    assert plan(built, cache, 2).code == 0
    ran = call_in_process("precache", "--plan", cache / ".plan", "--workers", 1, *more, env=environment(**env))
    assert ran.code == 2, ran.text
    assert told in ran.err
    assert "Traceback" not in ran.text
    assert published(cache) == []


def test_a_plan_of_another_cache_or_recipe_is_refused(built: Built, tmp_path: Path) -> None:
    made, _ = make_plan(built.data, tmp_path / "cache", 1)
    with pytest.raises(PlanError, match="is the plan of"):
        precache(built.data, tmp_path / "other", plan=made, shard=Shard(0, 1), workers=0)
    path = tmp_path / "cache" / ".plan" / "plan.json"
    document = json.loads(path.read_bytes())
    document["spec"] = document["spec"].replace("recipe = ", "recipe = 9")
    path.write_text(json.dumps(document))
    ran = task(tmp_path / "cache", 0)
    assert ran.code == 2, ran.text
    assert "recipe 9" in ran.err


def test_without_a_plan_there_it_says_so(tmp_path: Path) -> None:
    ran = task(tmp_path, 0)
    assert ran.code == 2
    assert "there is no plan at" in ran.err
    assert ran.err.count("\n") == 1


def test_changed_tables_make_a_plan_void_and_touched_ones_do_not(copied: Built) -> None:
    assert plan(copied, copied.cache, 2).code == 0
    (copied.data / "train.csv").touch()
    assert task(copied.cache, 0).code == 0
    edit_train(copied.data, copied.uids[1], **{"Basilar Tip": "1", "Aneurysm Present": "1"})
    ran = task(copied.cache, 1)
    assert ran.code == 2, ran.text
    assert "train.csv changed since" in ran.err
    assert len(published(copied.cache)) == 2
    (copied.data / "train.csv").unlink()
    assert task(copied.cache, 1).code == 2
    # The next plan brings the labels in, and deals out the rest.
    assert plan(copied, copied.cache, 2).code == 0
    assert sorted(map(len, uids_of(copied.cache / ".plan"))) == [1, 1]


def test_what_came_since_is_in_no_part_and_that_is_said(copied: Built, caplog: pytest.LogCaptureFixture) -> None:
    assert plan(copied, copied.cache, 1).code == 0
    (copied.data / "new-Smith").mkdir()
    assert task(copied.cache, 0).code == 0
    assert "series that came since are in no part" in caplog.text
    assert "Smith" not in caplog.text


@pytest.mark.parametrize("change", ["more", "less", "other", "gone"])
def test_a_series_that_changed_is_left_alone_and_told(copied: Built, change: str) -> None:
    assert plan(copied, copied.cache, 1).code == 0
    folder = copied.data / "series" / copied.uids[1]
    files = sorted(folder.iterdir())
    if change == "more":
        shutil.copy(files[0], folder / "more.dcm")
    elif change == "less":
        files[0].unlink()
    elif change == "other":
        files[len(files) // 2].write_bytes(b"x")
    else:
        shutil.rmtree(folder)
    ran = task(copied.cache, 0, "--exit-zero")
    assert ran.code == 9, ran.text
    assert "1 series have changed" in ran.out
    assert "aneurysm plan" in ran.out
    assert len(published(copied.cache)) == 3
    assert not list(copied.cache.glob("rejected/*/*.json"))


def test_a_plan_does_what_one_task_does_for_all(copied: Built, built: Built) -> None:
    shutil.copytree(built.cache, copied.cache)
    edit_train(copied.data, copied.uids[1], **{"Basilar Tip": "1", "Aneurysm Present": "1"})
    shutil.rmtree(copied.data / "series" / copied.uids[3])
    shutil.rmtree(volume_path(copied.cache, copied.uids[3]))
    made = plan(copied, copied.cache, 2)
    assert made.code == 0, made.text
    assert "labels of 1 volumes updated" in made.out
    assert uids_of(copied.cache / ".plan") == [set(), set()]
    merged = merge(copied, copied.cache)
    assert merged.code == 8, merged.text
    rows = manifest(copied.cache)
    assert rows[copied.uids[1]]["Basilar Tip"] == "1"
    assert rows[copied.uids[3]]["reason"] == "no_files"


def test_what_failed_is_dealt_again_if_asked_for(copied: Built) -> None:
    folder = copied.data / "series" / copied.uids[2]
    for path in folder.iterdir():
        path.write_bytes(b"no DICOM")
    assert precache_here(copied, copied.cache).code == 8
    assert plan(copied, copied.cache, 2).code == 0
    assert uids_of(copied.cache / ".plan") == [set(), set()]
    assert plan(copied, copied.cache, 2, "--retry-failed").code == 0
    assert [len(part) for part in uids_of(copied.cache / ".plan")] == [1, 0]
    shutil.rmtree(folder)
    write_series(folder, copied.uids[2])
    assert plan(copied, copied.cache, 1, "--retry-failed").code == 0
    assert task(copied.cache, 0).code == 0
    assert len(published(copied.cache)) == 4


def test_a_damaged_part_ends_its_task_before_anything_is_built(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert plan(built, cache, 2).code == 0
    (part,) = (cache / ".plan").glob("000001-*")
    part.write_bytes(part.read_bytes().replace(b'"bytes"', b'"bites"', 1))
    ran = task(cache, 1)
    assert ran.code == 2
    assert "part 1 of" in ran.err
    assert published(cache) == []
    assert task(cache, 0).code == 0


def array(cache: Path, built: Built, index: int, count: int, run: str, *more: object) -> Ran:
    return call_in_process(
        "precache", "--data", built.data, "--cache", cache, "--workers", 1, "--shard", f"{index}/{count}", *more,
        env=environment(ANEURYSM_RUN=run),
    )  # fmt: skip


def deals(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob(".runs/*/*deal-*"))


def test_the_tasks_of_an_array_agree_on_what_is_missing_and_leave_nothing(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(built.cache, cache)
    for uid in built.uids[:3]:
        shutil.rmtree(volume_path(cache, uid))
    counts = []
    for index in (2, 0, 1):
        before = len(published(cache))
        if index == 2:
            ran = array(cache, built, index, 3, "a")
        else:
            with blind():  # what the first has seen is the plan of all
                ran = array(cache, built, index, 3, "a")
        assert ran.code == 0, ran.text
        counts.append(len(published(cache)) - before)
        assert len(deals(cache)) == (index != 1)
    assert counts == [1, 1, 1]
    assert merge(built, cache).code == 0
    assert same_cache(cache, built.cache) == []
    assert leftovers(cache) == []


def test_a_requeued_task_takes_its_part_again_and_another_run_deals_anew(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert array(cache, built, 0, 2, "a").code == 0
    lost, _ = published(cache)
    shutil.rmtree(volume_path(cache, lost.removesuffix(".zarr")))
    with blind():
        again = array(cache, built, 0, 2, "a")
    assert "1 cached, 0 rejected, 0 failed, 1 done before" in again.out, again.text
    # Of another run the two that are left are dealt to its two tasks.
    assert [array(cache, built, index, 2, "b").code for index in (0, 1)] == [0, 0]
    assert len(published(cache)) == 4
    assert len(deals(cache)) == 1
    assert merge(built, cache).code == 0
    assert leftovers(cache) == []


def test_tasks_of_other_options_or_tables_have_another_plan(copied: Built) -> None:
    cache = copied.cache
    assert array(cache, copied, 0, 2, "a").code == 0
    assert array(cache, copied, 0, 3, "a").code == 0
    edit_train(copied.data, copied.uids[1], **{"Basilar Tip": "1", "Aneurysm Present": "1"})
    assert array(cache, copied, 1, 2, "a").code == 0
    assert len(deals(cache)) == 3
    assert precache_here(copied, cache).code == 0
    assert leftovers(cache) == []


def test_who_comes_while_a_plan_is_made_waits_for_it(built: Built, tmp_path: Path) -> None:
    place, in_work, go_on = Destination(tmp_path / "cache"), threading.Event(), threading.Event()
    made, _ = make_plan(built.data, tmp_path / "cache", 2)
    tries: list[str] = []

    def make(folder: PlanFolder) -> Plan:
        tries.append(folder.name)
        in_work.set()
        assert go_on.wait(30)
        return write_plan(folder, made.document, [made.part(0), made.part(1)], once=True)

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(agreed_plan, place, "r", {"x": 1}, make)
        assert in_work.wait(30)
        others = [pool.submit(agreed_plan, place, "r", {"x": 1}, make) for _ in range(2)]
        time.sleep(0.5)
        assert not any(other.done() for other in others)
        go_on.set()
        documents = [future.result(30).document for future in (first, *others)]
    assert documents == [made.document] * 3
    assert len(tries) == 1
    assert deals(tmp_path / "cache") == [Path(tries[0]).name], "the lock, or a second plan, is left"


def test_where_locks_do_not_reach_the_first_plan_counts(built: Built, tmp_path: Path) -> None:
    made, _ = make_plan(built.data, tmp_path / "cache", 1)
    parts = [made.part(0)[:2], made.part(0)[2:]]

    def slow(folder: PlanFolder) -> Plan:
        first = write_plan(folder, made.document, [made.part(0), []], once=True)  # by another node, meanwhile
        second = write_plan(folder, made.document, parts, once=True)
        assert second.document == first.document
        return second

    agreed = agreed_plan(Destination(tmp_path / "cache"), "r", {}, slow)
    assert [len(agreed.part(i)) for i in range(2)] == [4, 0]
    assert len(list(Path(agreed.folder.name).iterdir())) == 3


def test_a_task_that_is_done_steals_from_the_others_and_they_find_it_done(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert plan(built, cache, 2).code == 0
    taken = min(uids_of(cache / ".plan")[1])
    with claim(Destination(cache).layout, taken) as folder:
        assert folder is not None
        ran = task(cache, 0, "--steal")
        assert ran.code == 0, ran.text
        assert "3 cached, 0 rejected" in ran.out
        assert "1 of these were series of other parts" in ran.out
        assert f"{taken}.zarr" not in published(cache), "it is in the hands of another task"
    ran = task(cache, 1, "--steal")
    assert "1 cached, 0 rejected, 0 failed, 1 done before" in ran.out, ran.text
    assert merge(built, cache).code == 0
    assert same_cache(cache, built.cache) == []
    assert leftovers(cache) == []


def test_the_longest_are_stolen_first_and_what_is_done_is_read_once_for_many(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = make_plan(built.data, tmp_path / "cache", 1)
    place, listings = Destination(tmp_path / "cache"), []
    series = [replace(p, seconds=s) for p, s in zip(made.part(0), (3.0, 9.0, 5.0, 7.0), strict=True)]
    monkeypatch.setattr(stealing, "done_series", lambda layout: listings.append(layout) or {series[2].source.uid})
    found = [[p.seconds for p in portion] for portion in portions(place, lambda: series, retry=False, most=2)]
    assert found == [[9.0, 7.0], [3.0]]
    assert len(listings) == 3


def test_there_is_nothing_to_steal_without_parts(built: Built, tmp_path: Path) -> None:
    ran = precache_here(built, tmp_path / "cache", "--steal")
    assert ran.code == 2
    assert "there are no parts" in ran.err
    ran = precache_here(built, tmp_path / "cache", "--steal", "--shard", "0/2", "--overwrite")
    assert ran.code == 2


def test_parts_without_a_plan_are_stolen_from_too(built: Built, tmp_path: Path) -> None:
    ran = precache_here(built, tmp_path / "cache", "--shard", "1/3", "--steal")
    assert ran.code == 0, ran.text
    assert len(published(tmp_path / "cache")) == 4
    assert merge(built, tmp_path / "cache").code == 0
    assert same_cache(tmp_path / "cache", built.cache) == []


@pytest.mark.usefixtures("s3_settings")
def test_a_plan_in_a_store_of_data_and_a_cache_in_one(built: Built, bucket: Bucket, tmp_path: Path) -> None:
    data, cache = bucket.upload(built.data, "data"), f"{bucket.url}/cache"
    made, _ = make_plan(data, cache, 2, workers=0)
    assert made.document.data == data
    assert len(bucket.keys("cache/.plan/")) == 3
    with mock.patch.object(DataBucket, "find_series", side_effect=AssertionError("it lists the data")):
        for index in range(2):
            again = read_plan(plan_folder(f"{cache}/.plan"))
            summary = precache(data, cache, plan=again, shard=Shard(index, 2), steal=index == 0, workers=0)
            assert (summary.cached, summary.stolen) == ((4, 2), (0, 0))[index]
            assert summary.total_cached == 2
    assert merge_of(cache, data).missing == []
    assert bucket.keys("cache/.plan/") == []
    assert same_cache(bucket.download("cache", tmp_path / "copy"), built.cache) == []


@pytest.mark.usefixtures("s3_settings")
def test_the_tasks_of_an_array_agree_in_a_store(
    built: Built, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANEURYSM_RUN", "a")
    url = f"{bucket.url}/cache"
    assert precache(built.data, url, shard=Shard(1, 2), workers=0).cached == 2
    assert any("/deal-" in key for key in bucket.keys("cache/.runs/"))
    with blind():
        assert precache(built.data, url, shard=Shard(0, 2), workers=0).cached == 2
    assert not any("/deal-" in key for key in bucket.keys("cache/.runs/"))
    assert merge_of(url, built.data).missing == []
    assert same_cache(bucket.download("cache", tmp_path / "copy"), built.cache) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_tasks_of_a_plan_at_once_one_killed_and_the_other_stealing(long_run: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert run_cli("plan", "--data", long_run.data, "--cache", cache, "--shards", 2).code == 0
    arguments = ("precache", "--plan", cache / ".plan", "--workers", 1, "--steal")
    one, two = (start_cli(*arguments, "--shard", index) for index in range(2))
    assert wait_until(lambda: published(cache), one)
    kill_group(one)
    out, err = two.communicate(timeout=180)
    assert two.returncode == 0, out + err
    assert len(published(cache)) == 8, out
    assert "Traceback" not in err
    merged = run_cli("manifest", "--data", long_run.data, "--cache", cache)
    assert merged.code == 0, merged.text
    assert same_cache(cache, long_run.cache) == []
    assert leftovers(cache) == []
    assert verify(cache, workers=1).faults == []
