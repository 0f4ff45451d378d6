"""The reader gives exactly what zarr-python gives, and is safe in the ways people use it."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from aneurysm import CacheWriter
from aneurysm.cache import volume as volume_module
from aneurysm.cache.cache import open_cache
from aneurysm.cache.shard import shard_layout
from aneurysm.cache.volume import CachedVolume, ZarrArray, close_volumes, open_volume
from aneurysm.cache.writer import write_volume
from aneurysm.errors import CacheNotFoundError, DamagedCacheError
from aneurysm.spec import load_spec, shipped_specs
from aneurysm.volume.intensity import Intensity
from tests.support.cache_paths import volume_path
from tests.support.metadata import metadata


def make_volume(root: Path, uid: str, shape, spec="rsna-1mm", seed=0, vessels=False) -> np.ndarray:
    storage = load_spec(spec).storage
    rng = np.random.default_rng(seed)
    low, high = (0, 255) if storage.dtype == "uint8" else (-1000, 2000)
    voxels = rng.integers(low, high, shape).astype(storage.dtype)
    fill = low
    voxels[: shape[0] // 2, : shape[1] // 2] = fill  # so that some chunks are absent
    intensity = Intensity("HU", 2.0, -10.0, (-2010.0, 3990.0), (0.0, 100.0), {})
    own = metadata(uid, shape, affine=np.eye(4), intensity=intensity)
    mask = (voxels > 100).astype(np.uint8) if vessels else None
    write_volume(volume_path(root, uid), voxels, own, storage=storage, fill=fill, vessels=mask)
    return voxels


@pytest.fixture(scope="module", params=shipped_specs())
def cache_of_each_spec(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    make_volume(root, "1.1", (70, 65, 97), request.param, vessels=True)
    return root


boxes = st.tuples(
    st.tuples(*[st.integers(-40, 110)] * 3), st.tuples(st.integers(0, 90), st.integers(0, 90), st.integers(0, 130))
)


@given(box=boxes)
@settings(max_examples=120, deadline=None)
def test_any_box_is_what_zarr_gives_padded_with_air(cache_of_each_spec, box):
    start, shape = box
    array = zarr.open_array(volume_path(cache_of_each_spec, "1.1") / "0", mode="r")
    expected = np.full(shape, array.fill_value, array.dtype)
    inside = [slice(max(s, 0), max(min(s + n, m), 0)) for s, n, m in zip(start, shape, array.shape)]
    if all(i.start < i.stop for i in inside):
        where = tuple(slice(i.start - s, i.stop - s) for i, s in zip(inside, start))
        expected[where] = array[tuple(inside)]
    found = CachedVolume(cache_of_each_spec, "1.1").read(start, shape)
    assert found.dtype == array.dtype
    assert np.array_equal(found, expected)


def test_into_an_array_of_any_strides(cache_of_each_spec):
    volume = CachedVolume(cache_of_each_spec, "1.1")
    expected = volume.read((10, 11, 12), (40, 50, 60))
    out = np.empty((60, 50, 40), expected.dtype).transpose(2, 1, 0)
    assert volume.read((10, 11, 12), (40, 50, 60), out) is out
    assert np.array_equal(out, expected)


def test_the_vessel_mask_has_the_same_grid(cache_of_each_spec):
    volume = CachedVolume(cache_of_each_spec, "1.1")
    assert volume.has_vessels
    mask, voxels = volume.read_vessels((0, 0, 0), volume.shape), volume.read((0, 0, 0), volume.shape)
    assert np.array_equal(mask, voxels > 100)


def test_physical_and_model_units(tmp_path):
    voxels = make_volume(tmp_path, "1", (40, 40, 40))
    volume = CachedVolume(tmp_path, "1")
    box = voxels[20:30, 20:30, 20:30]
    assert np.array_equal(volume.read_physical((20, 20, 20), (10, 10, 10)), box * 2.0 - 10.0)
    expected = np.clip((box * 2.0 - 10.0) / 100.0, 0, 1)
    assert np.allclose(volume.read_normalised((20, 20, 20), (10, 10, 10)), expected, atol=1e-6)


@pytest.mark.parametrize("bad", [np.empty((2, 2, 3), np.int16), np.empty((2, 2, 2), np.float32)])
def test_an_out_that_does_not_fit_is_refused(tmp_path, bad):
    make_volume(tmp_path, "1", (40, 40, 40))
    with pytest.raises(ValueError, match="out is"):
        CachedVolume(tmp_path, "1").read((0, 0, 0), (2, 2, 2), bad)


def test_other_layouts_are_read_by_zarr(tmp_path):
    voxels = make_volume(tmp_path, "1", (40, 40, 40))
    folder = volume_path(tmp_path, "1") / "0"
    shutil.rmtree(folder)
    zarr.create_array(folder, data=voxels, chunks=(16, 16, 16), compressors="auto", zarr_format=3)
    volume = CachedVolume(tmp_path, "1")
    assert isinstance(volume_module._handles.get(volume).image, ZarrArray)
    assert np.array_equal(volume.read((3, 4, 5), (30, 30, 30)), voxels[3:33, 4:34, 5:35])


class TestDamage:
    @pytest.fixture
    def volume(self, tmp_path):
        make_volume(tmp_path, "1.5", (70, 70, 70))
        close_volumes()
        return CachedVolume(tmp_path, "1.5")

    def damage(self, volume, at, value=b"\xff"):
        with (volume.path / "0/c/0/0/0").open("r+b") as file:
            file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
            file.write(value)

    def test_a_flipped_bit_in_the_index(self, volume):
        self.damage(volume, -40)
        with pytest.raises(DamagedCacheError, match=r"1\.5.*array 0.*checksum"):
            volume.read((0, 0, 0), (5, 5, 5))

    def test_a_chunk_that_is_no_chunk(self, volume):
        with (volume.path / "0/c/0/0/0").open("rb") as file:
            size = len(file.read())
        self.damage(volume, 0, b"\0" * (size // 2))
        with pytest.raises(DamagedCacheError, match=r"1\.5.*array 0.*chunk \(\d+, \d+, \d+\)"):
            volume.read((0, 0, 0), volume.shape)

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.7, 0.9])
    @pytest.mark.parametrize("bit", [0, 7])
    def test_any_flipped_bit_of_a_chunk(self, volume, share, bit):
        path = volume.path / "0/c/0/0/0"
        raw = bytearray(path.read_bytes())
        at = int(share * (len(raw) - 27 * 16 - 4))
        raw[at] ^= 1 << bit
        path.write_bytes(raw)
        with pytest.raises(DamagedCacheError, match=r"1\.5.*array 0.*chunk \(\d, \d, \d\) is damaged: its checksum"):
            volume.read((0, 0, 0), volume.shape)

    def test_a_truncated_shard(self, volume):
        os.truncate(volume.path / "0/c/0/0/0", 100)
        with pytest.raises(DamagedCacheError, match="too short"):
            volume.read((0, 0, 0), (5, 5, 5))

    def test_a_lost_shard(self, volume):
        (volume.path / "0/c/0/0/0").unlink()
        with pytest.raises(DamagedCacheError, match="lost its shard"):
            volume.read((0, 0, 0), (5, 5, 5))

    @pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json"])
    def test_metadata_that_is_no_json(self, volume, name):
        (volume.path / name).write_text("{")
        with pytest.raises(DamagedCacheError, match=r"zarr\.json"):
            volume.read((0, 0, 0), (5, 5, 5))

    def test_no_volume(self, tmp_path):
        with pytest.raises(CacheNotFoundError, match=r"9\.9"):
            CachedVolume(tmp_path, "9.9").read((0, 0, 0), (1, 1, 1))


@pytest.fixture
def volumes(tmp_path):
    arrays = {f"1.{i}": make_volume(tmp_path, f"1.{i}", (40, 48, 50), seed=i) for i in range(6)}
    close_volumes()
    return tmp_path, arrays


def _check(root, uids, expected, queue=None):
    ok = all(np.array_equal(CachedVolume(root, u).read((1, 2, 3), (30, 31, 32)), e) for u, e in zip(uids, expected))
    if queue is not None:
        queue.put(ok)
    return ok


def _part(array):
    return array[1:31, 2:33, 3:35]


def test_many_threads_read_right(volumes):
    root, arrays = volumes
    uids = list(arrays)
    expected = [_part(a) for a in arrays.values()]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: _check(root, uids, expected), range(64)))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_of_every_kind_read_after_the_parent_did(volumes, method):
    root, arrays = volumes
    uids, expected = list(arrays), [_part(a) for a in arrays.values()]
    assert _check(root, uids, expected)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    processes = [context.Process(target=_check, args=(root, uids, expected, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    assert all(queue.get(timeout=50) for _ in processes)
    for process in processes:
        process.join()


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_holds_the_lock(volumes):
    root, arrays = volumes
    uids, expected = list(arrays), [_part(a) for a in arrays.values()]
    release = threading.Event()

    def hold():
        with volume_module._handles._lock:
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=_check, args=(root, uids, expected, queue))
        process.start()
        assert queue.get(timeout=30)
        process.join()
    finally:
        release.set()
        holder.join()


def test_a_pickled_handle_reads_the_same(volumes):
    root, arrays = volumes
    volume = CachedVolume(root, "1.3")
    volume.read((0, 0, 0), (5, 5, 5))
    data = pickle.dumps(volume)
    assert len(data) < 1000
    assert np.array_equal(pickle.loads(data).read((1, 2, 3), (30, 31, 32)), _part(arrays["1.3"]))


def test_more_volumes_than_descriptors(volumes, monkeypatch):
    root, arrays = volumes
    monkeypatch.setattr(volume_module._handles, "most", 2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert _check(root, list(arrays), [_part(a) for a in arrays.values()])
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert volume_module._Handles().most * 2 < resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_a_relative_path_after_a_change_of_folder(volumes, monkeypatch):
    root, arrays = volumes
    monkeypatch.chdir(root.parent)
    volume = CachedVolume(root.name, "1.0")
    monkeypatch.chdir("/")
    assert np.array_equal(volume.read((1, 2, 3), (30, 31, 32)), _part(arrays["1.0"]))


def test_a_volume_replaced_while_open_is_read_whole(volumes):
    root, arrays = volumes
    volume = CachedVolume(root, "1.0")
    volume.read((0, 0, 0), (1, 1, 1))
    (volume_path(root, "1.0")).rename(root / "old")
    shutil.rmtree(root / "old")
    new = make_volume(root, "1.0", (40, 48, 50), seed=99)
    assert np.array_equal(volume.read((1, 2, 3), (30, 31, 32)), _part(arrays["1.0"]))  # the open one
    close_volumes()
    assert np.array_equal(volume.read((1, 2, 3), (30, 31, 32)), _part(new))


def test_of_a_cache_that_is_replaced_nothing_is_mixed_with_the_one_that_was_opened(tmp_path):
    """By another one of the same spec, series and shapes, as of arrays of one's own."""
    box = (0, 0, 0), (8, 8, 8)
    cache = {}
    for value in (1, 2):
        with CacheWriter(tmp_path, overwrite=True) as writer:
            for uid in "ab":
                writer.add(uid, np.full((8, 8, 8), value, np.uint8))
        cache[value] = open_cache(tmp_path)
        assert cache[value].volume("a").read(*box).max() == value
        if value == 1:
            continue
        for uid in "ab":  # of which the first was open
            with pytest.raises(DamagedCacheError, match="built again, or the cache replaced by another one"):
                cache[1].volume(uid).read(*box)
            assert cache[2].volume(uid).read(*box).min() == 2


def test_a_volume_replaced_while_it_is_opened_is_opened_again(volumes, monkeypatch):
    """Its folder is open, and gone with all files by the time they are wanted; so a second time, later."""
    root, _ = volumes
    path, version, opened = volume_path(root, "1.0"), volume_module._version, volume_module._open_local
    moments = iter(["_version", "_open_local"])

    def replaced_first(name, real):
        def replace_and_call(*args):
            if name == following[0]:
                following[0] = next(moments, "")
                shutil.rmtree(path)
                make_volume(root, "1.0", (40, 48, 50), seed=99)
            return real(*args)

        return replace_and_call

    following = [next(moments)]
    monkeypatch.setattr(volume_module, "_version", replaced_first("_version", version))
    monkeypatch.setattr(volume_module, "_open_local", replaced_first("_open_local", opened))
    assert open_volume(path).image.shape == (40, 48, 50)
    assert following == [""]


def test_read_only_media(volumes):
    root, arrays = volumes
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        before = sorted(root.rglob("*"))
        assert _check(root, list(arrays), [_part(a) for a in arrays.values()])
        assert sorted(root.rglob("*")) == before
    finally:
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755)


def test_metadata_beyond_the_fast_path_is_told_from_it(volumes):
    root, _ = volumes
    metadata = json.loads((volume_path(root, "1.0") / "0/zarr.json").read_text())
    assert shard_layout(metadata) is not None
    for change in (
        {"data_type": "float32"},
        {"shape": [10, 10]},
        {"codecs": []},
        {"chunk_key_encoding": {"name": "v2"}},
    ):
        assert shard_layout({**metadata, **change}) is None
