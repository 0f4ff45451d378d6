"""How much of a cache in a store is asked for: names are enough to know what is to do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from aneurysm.precaching.finish import merge
from aneurysm.precaching.partition import Shard
from aneurysm.precaching.run import precache
from aneurysm.precaching.verify import verify
from aneurysm.remote.client import ObjectStore
from tests.support.built import Built
from tests.support.cache_paths import volume_name
from tests.support.cache_state import manifest
from tests.support.s3 import Bucket

pytestmark = pytest.mark.usefixtures("s3_settings")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often objects of volumes were read, by the last parts of their names."""
    counts: Counter[str] = Counter()
    chunks = ObjectStore._chunks

    def counted(self: ObjectStore, key: str) -> object:
        if "volumes/" in key:
            counts[key.split(".zarr/")[1]] += 1
        return chunks(self, key)

    monkeypatch.setattr(ObjectStore, "_chunks", counted)
    return counts


def test_a_shard_reads_the_metadata_of_what_is_there_once(built: Built, bucket: Bucket, read: Counter[str]) -> None:
    url = bucket.upload(built.cache, "cache")
    bucket.delete(f"cache/{volume_name(built.uids[0])}/zarr.json")
    summary = precache(built.data, url, shard=Shard(0, 1, "test"), workers=0)
    assert (summary.cached, summary.skipped, summary.total_cached, summary.total_not_cached) == (1, 3, 4, 0)
    # Labels, localizers and masks are compared with what the three volumes hold; no shard is read for it.
    assert read == {"zarr.json": 3, "0/zarr.json": 3}


def test_a_run_reads_the_metadata_once_and_a_volume_that_goes_meanwhile_is_in_no_table(
    built: Built, bucket: Bucket, tmp_path: Path, read: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = bucket.upload(built.cache, "cache")
    summary = precache(built.data, url, workers=0)
    assert (summary.skipped, summary.total_cached) == (4, 4)
    assert read == {"zarr.json": 4, "0/zarr.json": 4}
    read.clear()
    assert merge(url).cached == 4
    assert read == {}, "rows of what did not change are in the parts of the tables"
    for key in bucket.keys("cache/.tables/"):
        bucket.delete(key)
    find, uid = ObjectStore.find, built.uids[0]

    def found(self: ObjectStore, prefix: str = "") -> object:
        objects = find(self, prefix)
        bucket.delete(f"cache/{volume_name(uid)}/zarr.json")
        return objects

    monkeypatch.setattr(ObjectStore, "find", found)
    assert merge(url).cached == 3
    assert set(manifest(bucket.download("cache", tmp_path / "copy"))) == set(built.uids[1:])


def test_verify_reads_every_object_once(built: Built, bucket: Bucket, read: Counter[str]) -> None:
    report = verify(bucket.upload(built.cache, "cache"), workers=0)
    assert (report.volumes, report.faults) == (4, [])
    assert read["zarr.json"] == read["0/zarr.json"] == read["0/c/0/0/0"] == 4
