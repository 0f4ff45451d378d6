"""Volumes of a cache in an object store, read from a bounded copy: the same voxels, whatever comes and goes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from aneurysm.cache import local_copy
from aneurysm.cache.cache import open_cache
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.local_copy import LocalCopy
from aneurysm.cache.tables import write_tables
from aneurysm.cache.volume import CachedVolume, close_volumes, open_volume
from aneurysm.errors import CacheNotFoundError, DamagedCacheError, StoreError, UsageError
from aneurysm.remote.client import ObjectStore
from tests.support.built import Built
from tests.support.cache_paths import volume_name
from tests.support.command import call_cli
from tests.support.noise_cache import add_volume
from tests.support.s3 import Bucket, copied_bytes

pytestmark = pytest.mark.usefixtures("s3_settings")


def whole(volume: CachedVolume) -> np.ndarray:
    return volume.read((0, 0, 0), volume.shape)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("volumes/*/*"))


def test_the_same_tables_and_voxels(stored: str, built: Built) -> None:
    local, cache = open_cache(built.cache), open_cache(stored)
    assert cache.root == stored
    assert cache.uids == local.uids
    np.testing.assert_array_equal(cache.labels, local.labels)
    for ours, theirs in zip(cache, local, strict=True):
        np.testing.assert_array_equal(whole(ours), whole(theirs))
        assert ours.metadata == theirs.metadata
        assert ours.has_vessels == theirs.has_vessels
    assert repr(cache[0]) == f"CachedVolume('{stored}/{volume_name(cache.uids[0])}')"


def test_tables_that_do_not_fit_together_are_fetched_again(
    built: Built, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As between a run's writing of lesions.csv and of manifest.csv, of which the reader found one of each."""
    url = bucket.upload(built.cache, "cache")
    sound = bucket.get("cache/lesions.csv")
    bucket.put("cache/lesions.csv", sound.splitlines(keepends=True)[0])
    monkeypatch.setattr(time, "sleep", lambda _: bucket.put("cache/lesions.csv", sound))
    cache, local = open_cache(url), open_cache(built.cache)
    assert len(local.lesion_zyx) > 0
    np.testing.assert_array_equal(cache.lesion_zyx, local.lesion_zyx)


def test_the_bound_holds_and_the_least_recently_used_goes(stored: str, built: Built, tmp_path: Path) -> None:
    local = open_cache(built.cache)
    sizes = [v.size for v in open_cache(stored).remote.values()]
    most = sum(sorted(sizes)[-2:]) + 1000  # any two, and never three
    cache = open_cache(stored, local_cache=tmp_path / "small", local_cache_gb=most / 1e9)
    for i in (0, 1, 0, 2, 3, 0, 1):
        np.testing.assert_array_equal(whole(cache[i]), whole(local[i]))
        assert copied_bytes(tmp_path / "small") <= most
    assert names(tmp_path / "small") == sorted(f"{cache.uids[i]}.zarr" for i in (0, 1))
    os.utime(cache.remote[cache.uids[0]].path.parent, (2e9, 2e9))
    _ = cache[2].shape
    assert names(tmp_path / "small") == sorted(f"{cache.uids[i]}.zarr" for i in (0, 2))


def test_a_bound_below_one_volume_is_refused(stored: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--local-cache-gb"):
        open_cache(stored, local_cache=tmp_path / "tiny", local_cache_gb=1e-4)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="above 0"):
            LocalCopy.of(tmp_path, wrong)


def test_where_the_copy_is_unless_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LocalCopy.of().folder == tmp_path / "local"
    monkeypatch.setenv("ANEURYSM_LOCAL_CACHE_GB", "0.25")
    assert LocalCopy.of().most_bytes == 250_000_000
    monkeypatch.delenv("ANEURYSM_LOCAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert LocalCopy.of().folder == tmp_path / "xdg" / "aneurysm"
    assert LocalCopy.of(tmp_path, 1e9).most_bytes <= shutil.disk_usage(tmp_path).free


def test_a_volume_removed_while_it_is_open_is_read_on(stored: str, built: Built) -> None:
    volume = open_cache(stored)[0]
    expected = whole(open_cache(built.cache)[0])
    _ = volume.shape
    shutil.rmtree(volume.path.parent)
    np.testing.assert_array_equal(whole(volume), expected)
    close_volumes()
    np.testing.assert_array_equal(whole(volume), expected)


def test_a_volume_removed_just_before_it_is_opened(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, opened = open_cache(stored)[0], []

    def removed_first(path, **options):
        if not opened:
            shutil.rmtree(path.parent)
        opened.append(path)
        return open_volume(path, **options)

    monkeypatch.setattr("aneurysm.cache.volume.open_volume", removed_first)
    assert volume.shape
    assert len(opened) == 2


def test_many_readers_fetch_a_volume_once(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, fetched = open_cache(stored), []
    real = local_copy.download_volume

    def counted(store, uid, folder):
        fetched.append(uid)
        real(store, uid, folder)

    monkeypatch.setattr(local_copy, "download_volume", counted)
    threads = [threading.Thread(target=cache.remote[cache.uids[0]].fetch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [cache.uids[0]]


def test_what_a_killed_process_was_fetching_is_swept(stored: str, tmp_path: Path) -> None:
    cache = open_cache(stored)
    for name in (cache.remote[cache.uids[0]]._entry, "f" * 32 + "-5000"):
        half = tmp_path / "local" / "fetching" / name / "x.zarr"
        half.mkdir(parents=True)
        (half / "zarr.json").write_text("{}")
    assert cache[0].shape
    assert list((tmp_path / "local" / "fetching").iterdir()) == []


def test_a_volume_built_again_is_not_served_from_the_old_copy(bucket: Bucket, tmp_path: Path) -> None:
    def upload(seed: int) -> str:
        folder = tmp_path / str(seed)
        add_volume(folder, "1.5", shape=(20 + seed, 20, 20))
        (folder / "spec.toml").write_text(open_cache(first).spec.to_toml() if seed else spec)
        write_tables(CacheLayout(folder))
        return bucket.upload(folder, "cache")

    from aneurysm.spec import load_spec

    spec = load_spec("rsna-1mm").to_toml()
    first = upload(0)
    old = open_cache(first)
    assert old[0].shape == (20, 20, 20)
    upload(1)
    new = open_cache(first)
    assert new[0].shape == (21, 20, 20)
    close_volumes()
    assert old[0].shape == (20, 20, 20), "the old copy is there still"
    shutil.rmtree(old[0].path.parent)
    close_volumes()
    with pytest.raises(DamagedCacheError, match="built again since the manifest was read"):
        _ = old[0].shape


def test_a_damaged_and_a_missing_volume(built: Built, bucket: Bucket) -> None:
    url = bucket.upload(built.cache, "cache")
    cache = open_cache(url)
    bucket.put(f"cache/{volume_name(cache.uids[0])}/0/c/0/0/0", b"something else")
    bucket.delete(f"cache/{volume_name(cache.uids[1])}/zarr.json")
    with pytest.raises(DamagedCacheError, match=cache.uids[0]):
        _ = cache[0].shape
    with pytest.raises(CacheNotFoundError, match=f"there is no volume .*{cache.uids[1]}"):
        _ = cache[1].shape
    with pytest.raises(CacheNotFoundError, match=r"no volume 9\.9"):
        cache.volume("9.9")


def test_a_manifest_can_not_name_a_path(bucket: Bucket, built: Built) -> None:
    url = bucket.upload(built.cache, "cache")
    for key in ("cache/manifest.csv", "cache/lesions.csv"):
        bucket.put(key, bucket.get(key).replace(built.uids[0].encode(), b"../../x"))
    with pytest.raises(DamagedCacheError, match="can't name a volume"):
        open_cache(url)


def _shape(volume: CachedVolume) -> tuple[int, ...]:
    return volume.shape


def test_volumes_travel_to_spawned_processes(stored: str) -> None:
    cache = open_cache(stored)
    assert len(pickle.dumps(cache[0])) < 2000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_shape, (cache[0],)) == tuple(cache.shapes[0])


def _asks(url: str, answers: object) -> None:
    try:
        answers.put(ObjectStore(url).read("spec.toml"))
    except StoreError as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_is_told_rather_than_left_hanging(stored: str) -> None:
    ObjectStore(stored).read("spec.toml")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_asks, args=(stored, answers))
    process.start()
    try:
        assert "spawn or forkserver" in answers.get(timeout=20)
    finally:
        process.kill()
        process.join()


def test_info_of_a_cache_and_of_a_volume(stored: str, built: Built, tmp_path: Path) -> None:
    ran = call_cli("info", "--cache", stored, "--json")
    assert ran.code == 0, ran.text
    assert ran.out.replace(stored, "CACHE") == call_cli("info", "--cache", built.cache, "--json").out.replace(
        str(built.cache), "CACHE"
    )
    ran = call_cli("info", built.uids[0], "--cache", stored, "--json", "--png", tmp_path / "a.png")
    assert ran.code == 0, ran.text
    assert f"{stored}/{volume_name(built.uids[0])}" in ran.out
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert call_cli("info", "9.9", "--cache", stored).code == 3
