"""Corrected tables and masks reach a cache in an object store, and its shards stay where they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from aneurysm.cache.cache import open_cache
from aneurysm.cache.volume import close_volumes
from aneurysm.precaching import verify
from aneurysm.precaching.partition import Shard
from aneurysm.precaching.remote_slot import RemoteFiles
from aneurysm.precaching.run import precache
from aneurysm.remote.client import ObjectStore
from tests.support.built import Built
from tests.support.cache_paths import volume_name, volume_path
from tests.support.cache_state import leftovers, same_cache, tree_digest
from tests.support.corrections import CORRECTIONS, edit_train, to_no_image, turn_mask, two_labels
from tests.support.s3 import Bucket

pytestmark = pytest.mark.usefixtures("s3_settings")


@pytest.fixture
def data(built: Built, tmp_path: Path) -> Path:
    shutil.copytree(built.data, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Keys of all objects that are read or written."""
    keys: set[str] = set()
    for name in ("read", "write", "download", "create"):

        def noting(method):
            def note(self, key, *args, **options):
                keys.add(key)
                return method(self, key, *args, **options)

            return note

        monkeypatch.setattr(ObjectStore, name, noting(getattr(ObjectStore, name)))
    return keys


def assert_as_built_anew(bucket: Bucket, data: Path, tmp_path: Path) -> None:
    copy, fresh = (tmp_path / name for name in ("copy", "fresh"))
    for folder in (copy, fresh):
        shutil.rmtree(folder, ignore_errors=True)
    precache(data, fresh, workers=0)
    bucket.download("cache", copy)
    assert same_cache(copy, fresh) == []
    assert tree_digest(copy / "volumes") == tree_digest(fresh / "volumes")
    assert leftovers(copy) == []


@pytest.mark.parametrize("what", ["all at once", "one mask more", "no mask any more"])
def test_a_correction_gives_the_cache_that_would_be_built_anew(
    built: Built, bucket: Bucket, data: Path, tmp_path: Path, touched: set[str], what: str
) -> None:
    url = bucket.upload(built.cache, "cache")
    correct, kinds, n = CORRECTIONS[what]
    correct(data, built.uids)
    touched.clear()
    summary = precache(data, url, workers=0)
    assert (summary.updated, dict(summary.updates)) == (n, kinds)
    assert any(key.endswith("zarr.json") for key in touched)
    assert not [key for key in touched if key.endswith(".zarr/0/c/0/0/0")]
    assert_as_built_anew(bucket, data, tmp_path)
    assert precache(data, url, workers=0).updated == 0
    assert verify.verify(url, data=data, deep=True, workers=0).faults == []


def test_of_a_part_of_the_series_only_their_metadata_are_fetched(
    built: Built, bucket: Bucket, data: Path, touched: set[str]
) -> None:
    url, uids = bucket.upload(built.cache, "cache"), built.uids
    two_labels(data, uids)
    touched.clear()
    summary = precache(data, url, series=[uids[1]], shard=Shard(0, 1, "here"), workers=0)
    assert summary.updated == 1
    volumes = {key.split("/")[2] for key in touched if key.startswith("volumes/")}
    assert volumes == {f"{uids[1]}.zarr"}


def test_verify_tells_differences_without_changing_any(built: Built, bucket: Bucket, data: Path) -> None:
    url = bucket.upload(built.cache, "cache")
    two_labels(data, built.uids)
    before = {key: bucket.get(key) for key in bucket.keys("cache/")}
    faults = verify.verify(url, data=data, workers=0).faults
    assert [fault.where for fault in faults] == built.uids[:2]
    assert {key: bucket.get(key) for key in bucket.keys("cache/")} == before


def test_a_volume_that_is_replaced_while_verify_fetches_it_is_no_fault(
    built: Built, bucket: Bucket, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its zarr.json is fetched before, and the mask after it is taken away."""
    url, uid, fetch = bucket.upload(built.cache, "cache"), built.uids[0], verify.download_volume
    shutil.copytree(built.cache, tmp_path / "after")
    CORRECTIONS["no mask any more"][0](data, built.uids)
    assert precache(data, tmp_path / "after", workers=0).updates["vessels"] == 1
    replaced = []

    def replacing(store: ObjectStore, name: str, folder: Path) -> None:
        fetch(store, name, folder)
        if name == uid and not replaced:
            replaced.append(name)
            shutil.rmtree(folder / "labels")
            for key in bucket.keys(f"cache/{volume_name(uid)}/labels/"):
                bucket.delete(key)
            bucket.upload(volume_path(tmp_path / "after", uid), f"cache/{volume_name(uid)}")

    monkeypatch.setattr(verify, "download_volume", replacing)
    assert [f for f in verify.verify(url, workers=0).faults if not f.derived] == []
    assert replaced


def test_data_in_a_store_too(built: Built, bucket: Bucket, data: Path, tmp_path: Path) -> None:
    cache = bucket.upload(built.cache, "cache")
    CORRECTIONS["all at once"][0](data, built.uids)
    assert precache(bucket.upload(data, "data"), cache, workers=0).updated == 2
    assert_as_built_anew(bucket, data, tmp_path)


def test_records_follow_the_tables(built: Built, bucket: Bucket, data: Path, tmp_path: Path) -> None:
    url, uid = f"{bucket.url}/cache", built.uids[0]
    shutil.rmtree(data / "series" / uid)
    precache(data, url, workers=0)
    edit_train(data, uid, Modality="MRA")
    to_no_image(data, built.uids)
    assert dict(precache(data, url, workers=0).updates) == {"modality": 1}
    assert_as_built_anew(bucket, data, tmp_path)
    for name in ("train.csv", "train_localizers.csv"):
        lines = (data / name).read_text().splitlines()
        (data / name).write_text("\n".join(line for line in lines if not line.startswith(f"{uid},")) + "\n")
    precache(data, url, workers=0)
    assert bucket.keys("cache/rejected/") == []
    assert_as_built_anew(bucket, data, tmp_path)


class _KilledError(BaseException):
    pass


def test_a_run_that_dies_at_any_write_leaves_the_old_or_the_new(
    built: Built, bucket: Bucket, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = built.uids[0]
    turn_mask(data, uid)
    precache(data, tmp_path / "new", series=[uid], workers=0)
    masks = []
    for cache in (built.cache, tmp_path / "new"):
        volume = open_cache(cache).volume(uid)
        masks.append(volume.read_vessels((0, 0, 0), volume.shape))
    assert not np.array_equal(*masks)
    seen = []
    for steps in range(20):
        url, done = bucket.upload(built.cache, f"cache{steps}"), [0]
        with monkeypatch.context() as patched:
            for name in ("write_metadata", "write_tree", "remove_tree"):
                patched.setattr(RemoteFiles, name, _dying(getattr(RemoteFiles, name), done, steps))
            try:
                precache(data, url, workers=0)
                break
            except _KilledError:
                pass
        close_volumes()
        monkeypatch.setenv("ANEURYSM_LOCAL_CACHE", str(tmp_path / f"local{steps}"))
        volume = open_cache(url).volume(uid)
        mask = volume.read_vessels((0, 0, 0), volume.shape)
        seen.append([np.array_equal(mask, known) for known in masks].index(True))
        assert precache(data, url, workers=0).updated == (1 - seen[-1])
        assert not bucket.keys(f"cache{steps}/{volume_name(uid)}/labels.next")
        assert verify.verify(url, data=data, deep=True, workers=0).faults == []
    assert seen == [0, 0, 1, 1, 1], "staged, named, replaced, named again, removed"


def _dying(method, done, steps):
    def write(self, *args):
        if done[0] == steps:
            raise _KilledError
        done[0] += 1
        return method(self, *args)

    return write


def test_a_volume_whose_labels_were_corrected_meanwhile_is_fetched_all_the_same(
    built: Built, bucket: Bucket, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a training that began before: its labels are those of the manifest that it read."""
    monkeypatch.setenv("ANEURYSM_LOCAL_CACHE", str(tmp_path / "local"))
    url, uid = bucket.upload(built.cache, "cache"), built.uids[0]
    before = open_cache(url)
    turn_mask(data, uid)
    precache(data, url, workers=0)
    close_volumes()
    old, new = before.volume(uid), open_cache(url).volume(uid)
    assert old.path != new.path, "a copy of before the correction is not taken for the new one"
    assert np.array_equal(old.read((0, 0, 0), old.shape), new.read((0, 0, 0), new.shape))
    fresh = open_cache(built.cache).volume(uid)
    assert not np.array_equal(new.read_vessels((0, 0, 0), new.shape), fresh.read_vessels((0, 0, 0), new.shape))


def test_a_series_that_another_run_has_marked_is_left_to_it(built: Built, bucket: Bucket, data: Path) -> None:
    url = bucket.upload(built.cache, "cache")
    two_labels(data, built.uids)
    bucket.put(f"cache/.building/{built.uids[0]}", b"")
    summary = precache(data, url, workers=0)
    assert (summary.updated, summary.busy) == (1, 1)
    bucket.delete(f"cache/.building/{built.uids[0]}")
    assert precache(data, url, workers=0).updated == 1
