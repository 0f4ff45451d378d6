"""A cache in an object store is the cache that a folder would hold, and half a volume is never to be seen."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from aneurysm.cache.cache import open_cache
from aneurysm.errors import (
    CacheError,
    CacheNotFoundError,
    DamagedCacheError,
    PatientKeyError,
    StoreError,
    StoreRefusedError,
    UsageError,
)
from aneurysm.precaching import remote_destination
from aneurysm.precaching.build_series import SeriesJob, build_series, patient_key
from aneurysm.precaching.finish import merge
from aneurysm.precaching.partition import Shard
from aneurysm.precaching.run import precache
from aneurysm.precaching.verify import verify
from aneurysm.rawdata.folder import safe_source
from aneurysm.rawdata.tables import read_tables
from aneurysm.remote.client import ObjectStore
from aneurysm.spec import load_spec
from tests.support.built import Built
from tests.support.cache_paths import record_name, volume_name
from tests.support.cache_state import leftovers, manifest, same_cache
from tests.support.command import Ran, call_cli, call_in_process, environment, start_cli
from tests.support.run_data import write_series
from tests.support.s3 import SECRET, Bucket


def precache_command(data: object, cache: object, *more: object, workers: int = 1, **options: object) -> Ran:
    ran = call_cli("precache", "--data", data, "--cache", cache, "--workers", workers, *more, **options)
    assert SECRET not in ran.text
    return ran


def scratch_left(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "tmp").glob("aneurysm-*/[!.]*"))


def assert_same(bucket: Bucket, prefix: str, folder: Path, reference: Path) -> None:
    copy = bucket.download(prefix, folder)
    assert same_cache(copy, reference) == []
    assert leftovers(copy) == []


def test_a_cache_in_a_store_is_that_of_a_folder_to_the_byte(built: Built, bucket: Bucket, tmp_path: Path) -> None:
    ran = precache_command(built.data, f"{bucket.url}/some/cache/", workers=2)
    assert ran.code == 0, ran.text
    assert "/some/cache/ holds 4 volumes" in ran.out
    assert_same(bucket, "some/cache", tmp_path / "copy", built.cache)
    assert scratch_left(tmp_path) == []
    again = precache_command(built.data, f"{bucket.url}/some/cache")
    assert again.code == 0, again.text
    assert "4 done before" in again.out
    assert "0 to build" in again.err


def test_a_cache_of_the_old_layout_is_refused(built: Built, bucket: Bucket) -> None:
    url = bucket.upload(built.cache, "cache")
    bucket.put("cache/volumes/1.2.zarr/zarr.json", b"{}")
    with pytest.raises(CacheError, match=f"{url} is of cache format 3 or older"):
        precache(built.data, url, workers=0)


def test_data_in_a_store_in_the_rsna_layout(built: Built, bucket: Bucket, tmp_path: Path) -> None:
    bucket.upload(built.data, "data")
    bucket.put("data/series/loose.txt", b"no series")
    assert precache(f"{bucket.url}/data", tmp_path / "cache", workers=0).cached == 4
    assert same_cache(tmp_path / "cache", built.cache) == []
    assert scratch_left(tmp_path) == []


def test_data_in_a_store_as_a_free_tree(built: Built, bucket: Bucket, tmp_path: Path) -> None:
    """Two series in one folder, one in several, headers beyond what is read first, and files that are none of DICOM."""
    tree = tmp_path / "tree"
    for number, uid in enumerate(built.uids[:2]):
        for path in (built.data / "series" / uid).iterdir():
            copy = tree / "both" / f"{number}-{path.name}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    for number, path in enumerate(sorted((built.data / "series" / built.uids[2]).iterdir())):
        copy = tree / f"part {number % 3}" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(_with_long_header(path) if number % 2 else path.read_bytes())
    (tree / "notes.txt").write_text("hello")
    (tree / "large.bin").write_bytes(b"\1" * 100_000)
    (tree / "empty").write_bytes(b"")
    (tree / ".hidden").mkdir()
    shutil.copyfile(next((tree / "both").iterdir()), tree / ".hidden" / "a.dcm")
    assert precache(tree, tmp_path / "local-cache", workers=0).cached == 3
    bucket.upload(tree, "tree")
    bucket.put("tree/both/", b"")  # as the console of S3 makes a folder
    ran = precache_command(f"{bucket.url}/tree", f"{bucket.url}/cache")
    assert ran.code == 0, ran.text
    assert "3 not DICOM" in ran.err
    assert_same(bucket, "cache", tmp_path / "copy", tmp_path / "local-cache")


def _with_long_header(path: Path) -> bytes:
    import pydicom

    dataset = pydicom.dcmread(path)
    dataset.add_new(0x00091001, "OB", b"\0" * 70_000)
    dataset.add_new(0x00090010, "LO", "private")
    dataset.save_as(path.parent.parent / "long.tmp", enforce_file_format=True)
    content = (path.parent.parent / "long.tmp").read_bytes()
    (path.parent.parent / "long.tmp").unlink()
    return content


pytestmark = pytest.mark.usefixtures("s3_settings")

DIES = """
import os, signal
from aneurysm.remote.client import ObjectStore

write = ObjectStore.write

def dying(self, key, content):
    if key.endswith("{uid}.zarr/zarr.json"):
        os.killpg(os.getpgrp(), signal.SIGKILL)
    return write(self, key, content)

ObjectStore.write = dying
"""


def test_a_writer_killed_midway_leaves_nothing_visible(built: Built, bucket: Bucket, tmp_path: Path) -> None:
    """SIGKILL to the whole group once all of a volume is sent but its root metadata."""
    url, uid = f"{bucket.url}/cache", built.uids[0]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DIES.replace("{uid}", uid))
    env = environment(first_path=tmp_path / "site")
    process = start_cli("precache", "--data", built.data, "--cache", url, "--workers", 1, env=env)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    sent = bucket.keys(f"cache/{volume_name(uid)}/")
    assert any(key.endswith("/c/0/0/0") for key in sent)
    assert f"cache/{volume_name(uid)}/zarr.json" not in sent
    assert scratch_left(tmp_path), "the run was not in the middle of its work"
    assert merge(url).missing == []
    assert uid not in manifest(bucket.download("cache", tmp_path / "half"))
    with pytest.raises(CacheNotFoundError):
        open_cache(url).volume(uid)
    precache(built.data, url, workers=0)
    assert_same(bucket, "cache", tmp_path / "copy", built.cache)
    assert scratch_left(tmp_path) == []


def test_a_worker_on_another_machine_needs_no_folder_of_the_run(built: Built, bucket: Bucket, tmp_path: Path) -> None:
    """As one of a Dask cluster: the run's scratch folder is not there, and must not come into being."""
    uid, url = built.uids[1], f"{bucket.url}/cache"
    source = safe_source(uid, built.data / "series" / uid)
    notes = read_tables(built.data).of(uid)
    job = SeriesJob(source, notes, None, tmp_path / "elsewhere" / "cache", load_spec("rsna-1mm"), b"key", False, url)
    assert pickle.loads(pickle.dumps(build_series(job))).status == "cached"
    assert build_series(job).status == "skipped", "it looks into the store"
    assert not (tmp_path / "elsewhere").exists()
    assert scratch_left(tmp_path) == []
    content = json.loads(bucket.get(f"cache/{volume_name(uid)}/zarr.json"))["attributes"]["aneurysm"]
    assert content["voxel_hash"] == manifest(built.cache)[uid]["voxel_hash"]


def test_what_dead_runs_left_is_removed_once_it_is_old(
    built: Built, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = bucket.upload(built.cache, "cache")
    bucket.put(f"cache/{volume_name('9.9')}/0/c/0/0/0", b"half a volume")
    bucket.put(f"cache/{volume_name('9.9')}/0/zarr.json", b"{}")
    precache(built.data, url, workers=0)
    assert len(bucket.keys(f"cache/{volume_name('9.9')}/")) == 2, "it may be somebody's work"
    assert call_in_process("verify", "--cache", url).code == 0
    monkeypatch.setattr(remote_destination, "ABANDONED_AFTER", timedelta(0))
    found = call_in_process("verify", "--cache", url)
    assert found.code == 3
    assert f"{volume_name('9.9')}: left behind by a run that died" in found.out
    before = bucket.keys(f"cache/{volume_name(built.uids[0])}")
    precache(built.data, url, workers=0)
    assert bucket.keys(f"cache/{volume_name('9.9')}/") == []
    assert bucket.keys(f"cache/{volume_name(built.uids[0])}") == before


def test_leftovers_of_another_shape_are_no_part_of_a_volume(built: Built, bucket: Bucket, tmp_path: Path) -> None:
    """The dead run had a mask for a series that has none now."""
    bucket.put(f"cache/{volume_name(built.uids[1])}/labels/vessels/0/c/0/0/0", b"of another run")
    precache(built.data, f"{bucket.url}/cache", workers=0)
    assert_same(bucket, "cache", tmp_path / "copy", built.cache)


def test_records_retries_and_overwriting(built: Built, bucket: Bucket, tmp_path: Path) -> None:
    data, url, uid = tmp_path / "data", f"{bucket.url}/cache", built.uids[1]
    shutil.copytree(built.data, data)
    folder = data / "series" / uid
    aside = shutil.move(folder, tmp_path / "aside")
    folder.mkdir()
    ran = precache_command(data, url)
    assert ran.code == 8, ran.text
    assert f"{url}/manifest.csv says why" in ran.out
    assert json.loads(bucket.get(f"cache/{record_name(uid)}"))["reason"] == "no_files"
    folder.rmdir()
    shutil.move(aside, folder)
    assert precache(data, url, workers=0).skipped == 4, "it was tried before"
    assert precache(data, url, retry_failed=True, workers=0).cached == 1
    assert_same(bucket, "cache", tmp_path / "copy", built.cache)
    _replace_files(folder)
    write_series(folder, uid, shape=(14, 64, 64), seed=77)
    assert precache(data, url, overwrite=True, series=[uid], workers=0).cached == 1
    assert verify(url, deep=True, workers=0).faults == []
    rows = manifest(bucket.download("cache", tmp_path / "copy2"))
    assert rows[uid]["voxel_hash"] != manifest(built.cache)[uid]["voxel_hash"]
    _replace_files(folder)
    assert precache(data, url, overwrite=True, series=[uid], workers=0).rejected == 1
    assert bucket.keys(f"cache/{volume_name(uid)}") == []


def _replace_files(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def test_a_failure_leaves_the_volume_that_is_there(
    built: Built, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid, url = built.uids[1], bucket.upload(built.cache, "cache")
    before = bucket.keys("cache/volumes/")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("aneurysm.rawdata.folder.read_series", fail)
    summary = precache(built.data, url, overwrite=True, series=[uid], workers=0)
    assert (summary.failed, summary.total_cached) == (1, 4)
    assert bucket.keys("cache/volumes/") == before
    assert bucket.keys("cache/rejected/") == []


def test_a_run_that_is_told_to_stop_asks_the_store_for_nothing_more(
    built: Built, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails is asked again for longer than a batch system waits."""

    class Stops:
        def started(self, *_: object) -> None: ...

        def finished(self, *_: object) -> None:
            monkeypatch.setattr(ObjectStore, "find", pytest.fail)
            monkeypatch.setattr(ObjectStore, "write", pytest.fail)
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        precache(built.data, f"{bucket.url}/cache", progress=Stops(), workers=0)
    assert "cache/manifest.csv" not in bucket.keys("cache/")


def test_credentials_that_run_out_on_the_way_are_no_wrong_option(built: Built, tmp_path: Path) -> None:
    class Refuses:
        def started(self, *_: object) -> None: ...

        def finished(self, *_: object) -> None:
            raise StoreRefusedError("sending an object was refused (ExpiredToken)")

    with pytest.raises(StoreError, match="ExpiredToken") as caught:
        precache(built.data, tmp_path / "cache", progress=Refuses(), workers=0)
    assert not isinstance(caught.value, UsageError)


def test_shards_and_their_tables(built: Built, bucket: Bucket, tmp_path: Path) -> None:
    url = f"{bucket.url}/cache"
    for index in range(2):
        precache(built.data, url, shard=Shard(index, 2, "test"), workers=0)
    assert not bucket.keys("cache/manifest.csv")
    merged = call_in_process("manifest", "--cache", url, "--data", built.data)
    assert merged.code == 0, merged.text
    assert_same(bucket, "cache", tmp_path / "copy", built.cache)
    assert all(row["seconds"] for row in manifest(tmp_path / "copy").values())


def test_a_cache_of_another_spec_is_refused_by_its_url(built: Built, bucket: Bucket) -> None:
    url = f"{bucket.url}/cache"
    bucket.put("cache/spec.toml", (built.cache / "spec.toml").read_bytes())
    ran = precache_command(built.data, url, "--spec", "rsna-1mm-u8")
    assert ran.code == 2
    assert f"{url} was made with spec 'rsna-1mm'" in ran.err
    assert f"go on with --spec {url}/spec.toml" in ran.err
    assert load_spec(f"{url}/spec.toml") == load_spec("rsna-1mm")
    assert "/tmp" not in ran.err.replace(str(built.data), "")


def test_the_key_of_patients_is_made_once(
    built: Built, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANEURYSM_PATIENT_KEY")
    url = f"{bucket.url}/cache"
    precache(built.data, url, series=built.uids[:1], workers=0)
    key = bucket.get("cache/.patient-key")
    assert len(key) == 65
    precache(built.data, url, series=built.uids[1:2], workers=0)
    assert bucket.get("cache/.patient-key") == key
    monkeypatch.setenv("ANEURYSM_PATIENT_KEY", "another")
    with pytest.raises(PatientKeyError, match=f"{url} was begun with another key"):
        precache(built.data, url, series=built.uids[2:3], workers=0)
    assert call_in_process("verify", "--cache", url, env=dict(os.environ)).code == 3
    monkeypatch.delenv("ANEURYSM_PATIENT_KEY")
    assert call_in_process("verify", "--cache", url, env=dict(os.environ)).code == 0
    bucket.put("cache/.patient-key", b"another\n")
    with pytest.raises(PatientKeyError, match="patient-key is not the key"):
        precache(built.data, url, series=built.uids[2:3], workers=0)
    rows = manifest(bucket.download("cache", tmp_path / "copy"))
    for number, uid in enumerate(built.uids[:2]):
        assert rows[uid]["patient_key"] == patient_key(key.strip(), f"patient-{number}")


def test_verify_finds_what_is_damaged_or_missing(built: Built, bucket: Bucket) -> None:
    url = bucket.upload(built.cache, "cache")
    assert call_in_process("verify", "--cache", url, "--deep").code == 0
    shard = f"cache/{volume_name(built.uids[0])}/0/c/0/0/0"
    content = bytearray(bucket.get(shard))
    content[1000] ^= 1
    bucket.put(shard, bytes(content))
    bucket.delete(f"cache/{volume_name(built.uids[1])}/0/c/0/0/0")
    bucket.delete(f"cache/{volume_name(built.uids[2])}/zarr.json")
    ran = call_in_process("verify", "--cache", url)
    assert ran.code == 3
    assert f"{built.uids[0]}: voxel hash differs" in ran.out
    assert f"{built.uids[1]}: array 0 has lost its shard" in ran.out
    assert f"{built.uids[2]}: the manifest says cached, but there is no volume" in ran.out
    cache = open_cache(url)
    for uid, error in zip(built.uids[:3], (DamagedCacheError, DamagedCacheError, CacheNotFoundError)):
        with pytest.raises(error, match=uid):
            _ = cache.volume(uid).shape
