"""A cache opened from its tables alone: what stands in them, and what is said when they are damaged."""

from __future__ import annotations

import csv
import time

import numpy as np
import pandas as pd
import pytest

from aneurysm.cache.cache import open_cache
from aneurysm.cache.manifest import LESION_COLUMNS, MANIFEST_COLUMNS
from aneurysm.errors import CacheNotFoundError, DamagedCacheError
from aneurysm.labels import LABELS, SITES, UNKNOWN
from aneurysm.spec import load_spec

TABLES = ("manifest", "lesions")


def write_tables(root, n, *, digest=None, every_lesion=2):
    spec = load_spec("rsna-1mm")
    (root / "spec.toml").write_text(spec.to_toml())
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, MANIFEST_COLUMNS)
        writer.writeheader()
        for i in range(n):
            row = dict.fromkeys(MANIFEST_COLUMNS, "")
            row |= {"series_uid": f"1.{i}", "status": "rejected" if i % 10 == 9 else "cached", "modality": "CTA"}
            row |= {"shape": f"{100 + i % 7}x200x201", "digest": digest or spec.digest, "n_lesions": "0"}
            if i % 3:
                row |= {label: str(int(k == i % 14)) for k, label in enumerate(LABELS)}
            writer.writerow(row)
    with (root / "lesions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, LESION_COLUMNS)
        writer.writeheader()
        for i in reversed(range(0, n, every_lesion)):
            row = dict.fromkeys(LESION_COLUMNS, "")
            row |= {"series_uid": f"1.{i}", "row": str(i), "location": SITES[i % 13], "status": "placed"}
            writer.writerow(row | {"z": str(i), "y": "2.5", "x": "3"})
            writer.writerow(row | {"status": "unplaced"})


def test_cached_series_only_in_the_order_of_the_manifest(tmp_path):
    write_tables(tmp_path, 30)
    cache = open_cache(tmp_path)
    assert len(cache) == 27
    assert cache.uids[:10] == [f"1.{i}" for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 10)]
    assert cache.shapes[1].tolist() == [101, 200, 201]
    assert cache.labels[0].tolist() == [UNKNOWN] * 14
    assert cache.labels[1].tolist() == [int(k == 1) for k in range(14)]
    assert cache[3].uid == "1.3"


def test_lesions_belong_to_their_volumes(tmp_path):
    write_tables(tmp_path, 30)
    cache = open_cache(tmp_path)
    assert np.all(np.diff(cache.lesion_volume) >= 0)
    for i, uid in enumerate(cache.uids):
        found = cache.lesion_zyx[cache.lesions_of(i)]
        number = int(uid.split(".")[1])
        assert found.tolist() == ([[number, 2.5, 3.0]] if number % 2 == 0 else [])
        assert cache.lesion_site[cache.lesions_of(i)].tolist() == ([number % 13] if number % 2 == 0 else [])


def test_nothing_below_volumes_is_touched(tmp_path):
    write_tables(tmp_path, 5)
    assert not (tmp_path / "volumes").exists()
    assert len(open_cache(tmp_path)) == 5


def test_what_was_opened_by_a_link_stays_with_that_cache_when_the_link_is_switched(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        write_tables(tmp_path / name, 3)
    (tmp_path / "current").symlink_to("old")
    cache = open_cache(tmp_path / "current")
    (tmp_path / "next").symlink_to("new")
    (tmp_path / "next").replace(tmp_path / "current")
    assert cache[0].path.is_relative_to(tmp_path / "old")
    assert open_cache(tmp_path / "current")[0].path.is_relative_to(tmp_path / "new")


def test_a_cache_of_mixed_digests_is_refused(tmp_path):
    write_tables(tmp_path, 5, digest="0" * 16)
    with pytest.raises(DamagedCacheError, match="digest 0000"):
        open_cache(tmp_path)


@pytest.mark.parametrize("name", ["manifest.csv", "lesions.csv"])
@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n"])
def test_a_missing_or_damaged_table_is_named(tmp_path, name, content):
    write_tables(tmp_path, 5)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(DamagedCacheError, match=name):
        open_cache(tmp_path)


@pytest.mark.parametrize(("column", "status"), [("n_lesions", "placed"), ("n_unplaced", "unplaced")])
def test_a_table_that_lost_lesions_is_refused(tmp_path, column, status):
    """Else patches of a lesion would be taken for ones without."""
    write_tables(tmp_path, 20)
    manifest, lesions = (pd.read_csv(tmp_path / f"{n}.csv", dtype=str, keep_default_na=False) for n in TABLES)
    manifest.loc[manifest["series_uid"] == "1.4", column] = "1"
    manifest.to_csv(tmp_path / "manifest.csv", index=False)
    assert len(open_cache(tmp_path)) == 18
    lesions[(lesions["series_uid"] != "1.4") | (lesions["status"] != status)].to_csv(tmp_path / "lesions.csv")
    with pytest.raises(DamagedCacheError, match=r"fewer lesions of series 1\.4 than manifest.csv counts"):
        open_cache(tmp_path)


def test_no_cache(tmp_path):
    with pytest.raises(CacheNotFoundError, match=r"no spec\.toml"):
        open_cache(tmp_path)


def test_planning_memory_and_time_grow_with_the_tables_only(tmp_path):
    # Not a benchmark: a guard against opening volumes or building an object for each. Generous on a busy machine.
    write_tables(tmp_path, 20_000)
    started = time.process_time()
    cache = open_cache(tmp_path)
    assert time.process_time() - started < 20
    arrays = (cache.shapes, cache.labels, cache.lesion_volume, cache.lesion_site, cache.lesion_zyx)
    assert sum(a.nbytes for a in arrays) < 60 * len(cache)
