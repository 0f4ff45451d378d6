"""verify of a part of a cache: shards that together are the whole, samples that are the same every time."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aneurysm.cache.folder import cached_series
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.tables import write_tables
from aneurysm.errors import UsageError
from aneurysm.precaching import verify as verify_module
from aneurysm.precaching.partition import Shard
from aneurysm.precaching.verify import Sample, verify
from tests.support.built import Built
from tests.support.cache_paths import record_path, volume_path
from tests.support.command import call_in_process


@pytest.fixture
def cache(built: Built, tmp_path: Path) -> Path:
    shutil.copytree(built.cache, tmp_path / "cache")
    return tmp_path / "cache"


def edit_rows(path: Path, edit: Callable[[list[list[str]]], object]) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    edit(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def edit_text(path: Path, edit: Callable[[str], str]) -> None:
    path.write_text(edit(path.read_text()))


DAMAGE = {
    "nothing": lambda c, u: None,
    "a volume": lambda c, u: (volume_path(c, u[0]) / "0/zarr.json").unlink(),
    "two volumes and a lost one": lambda c, u: [
        (volume_path(c, u[0]) / "zarr.json").write_text("{}"),
        (volume_path(c, u[1]) / "zarr.json").write_text("{}"),
        shutil.rmtree(volume_path(c, u[2])),
    ],
    "a row is lost": lambda c, u: edit_rows(c / "manifest.csv", lambda rows: rows.pop(2)),
    "a row of no series": lambda c, u: edit_rows(c / "manifest.csv", lambda rows: rows.append(["9.9", *rows[1][1:]])),
    "a row twice": lambda c, u: edit_rows(c / "manifest.csv", lambda rows: rows.insert(2, rows[1])),
    "rows in another order": lambda c, u: edit_rows(c / "manifest.csv", lambda rows: rows.sort(reverse=True)),
    "a cell": lambda c, u: edit_rows(c / "manifest.csv", lambda rows: rows[3].__setitem__(5, "1x2x3")),
    "quotes": lambda c, u: edit_text(c / "manifest.csv", lambda text: text.replace("cached", '"cached"')),
    "no last end of line": lambda c, u: edit_text(c / "manifest.csv", lambda text: text[:-1]),
    "a lesion is lost": lambda c, u: edit_rows(c / "lesions.csv", lambda rows: rows.pop()),
    "lesions of no series": lambda c, u: edit_rows(c / "lesions.csv", lambda rows: rows.append(["9.9", *rows[1][1:]])),
    "names": lambda c, u: [(c / "volumes/x").touch(), (volume_path(c, u[0]).parent / "y.zarr").mkdir()],
    "a record": lambda c, u: [record_path(c, "1.2").parent.mkdir(parents=True), record_path(c, "1.2").write_text("[]")],
    "parts of the tables": lambda c, u: [path.write_text("x") for path in sorted(c.glob(".tables/*"))],
    "no manifest": lambda c, u: (c / "manifest.csv").unlink(),
    "no lesions": lambda c, u: (c / "lesions.csv").unlink(),
    "bytes that are no text": lambda c, u: (c / "lesions.csv").write_bytes(b"\xff\xfe\n"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_shards_and_groups_together_find_what_a_check_of_all_finds(
    cache: Path, built: Built, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    DAMAGE[what](cache, sorted(built.uids))
    whole = {(f.where, f.what) for f in verify(cache, workers=0).faults}
    assert bool(whole) == (what != "nothing"), whole
    shards = [verify(cache, workers=0, shard=Shard(i, 3)) for i in range(3)]
    assert {(f.where, f.what) for report in shards for f in report.faults} == whole
    assert sum(report.volumes for report in shards) == len(cached_series(CacheLayout(cache)))
    monkeypatch.setattr(verify_module, "_GROUP", 1)
    assert {(f.where, f.what) for f in verify(cache, workers=0).faults} == whole


def test_fix_mends_what_a_shard_finds_and_throws_the_parts_of_the_tables_away(cache: Path, built: Built) -> None:
    layout, before = CacheLayout(cache), (cache / "manifest.csv").read_bytes()
    part = layout.table_part(volume_path(cache, built.uids[0]).parent.name)
    content = part.read_bytes()
    part.write_bytes(content[:-5])
    edit_rows(cache / "manifest.csv", lambda rows: rows.pop(2))  # of another series
    assert verify(cache, workers=0, fix=True).fixed == ["manifest.csv", "lesions.csv"]
    assert (cache / "manifest.csv").read_bytes() == before
    assert verify(cache, workers=0).faults == []


def test_a_sample_is_the_same_every_time_and_another_one_by_another_seed(cache: Path, built: Built) -> None:
    chosen = Sample(2).of(built.uids)
    assert Sample(2).of(reversed(built.uids)) == chosen
    assert {tuple(Sample(2, seed).of(built.uids)) for seed in range(20)} > {tuple(chosen)}
    others = sorted(set(built.uids) - set(chosen))
    for uid in others:
        (volume_path(cache, uid) / "0/c/0/0/0").unlink()
    report = verify(cache, workers=0, sample=Sample(2))
    assert (report.volumes, report.faults) == (2, [])
    edit_rows(cache / "manifest.csv", lambda rows: rows.remove(next(row for row in rows if row[0] == chosen[0])))
    assert [fault.where for fault in verify(cache, workers=0, sample=Sample(2)).faults] == [chosen[0]]
    assert {fault.where for fault in verify(cache, workers=0, sample=Sample(100)).faults} == {*others, chosen[0]}


def test_the_command_says_that_the_rest_was_not_looked_at(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = call_in_process("verify", "--cache", cache, "--workers", 1, "--sample", 2, "--seed", 7)
    assert (ran.code, ran.out.count("\n")) == (0, 1), ran.text
    assert f"no fault in this part of {cache}; checked 2 volumes" in ran.out
    assert "(a sample of seed 7: the rest was not looked at)" in ran.out
    for name, value in {"TASK_ID": 3, "TASK_COUNT": 4, "TASK_MIN": 0, "TASK_MAX": 3}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_{name}", str(value))
    ran = call_in_process("verify", "--cache", cache, "--workers", 1)
    assert ran.code == 0, ran.text
    assert "shard 3/4 (SLURM_ARRAY_TASK_ID)" in ran.err
    assert "shard 3/4: the rest was not looked at" in ran.out


@pytest.mark.parametrize("options", [("--sample", 0), ("--shard", "3/3"), ("--shard", "0/257"), ("--seed", -1)])
def test_parts_that_there_are_not_are_refused(cache: Path, options: tuple[str, object]) -> None:
    ran = call_in_process("verify", "--cache", cache, *options)
    assert (ran.code, ran.out) == (2, ""), ran.text


def test_of_a_cache_of_256_parts_no_more_can_be_checked(cache: Path) -> None:
    with pytest.raises(UsageError, match="a cache has 256 parts at most"):
        verify(cache, shard=Shard(0, 300))


def test_who_built_a_volume_is_guarded_and_told(cache: Path, built: Built) -> None:
    def set_builder(uid: str, version: str) -> None:
        path = volume_path(cache, uid) / "zarr.json"
        content = json.loads(path.read_text())
        content["attributes"]["aneurysm"]["built_by"]["numpy"] = version
        path.write_text(json.dumps(content, indent=2) + "\n")

    set_builder(built.uids[0], "1.0")
    (damage,) = [f for f in verify(cache, workers=0).faults if not f.derived]
    assert (damage.where, damage.what[:20]) == (built.uids[0], "builder hash differs")
    write_tables(CacheLayout(cache))
    facts = json.loads(call_in_process("info", "--cache", cache, "--json").out)
    assert [builder["volumes"] for builder in facts["built_by"]] == [3, 1]
    assert facts["built_by"][1]["versions"]["numpy"] == "1.0"
    told = call_in_process("info", "--cache", cache).out
    assert "versions that differ" in told
    assert "numpy 1.0" in told
