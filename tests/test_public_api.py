"""The public names: what they are, that pages use them alone, and that caches and volumes behave as containers do."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aneurysm as an
from tests.support.noise_cache import add_volume, finish_cache
from tests.support.run_data import ROOT

SHAPE = (70, 80, 90)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    add_volume(root, "1.1", sites=(3,), places=[(40, 50, 60)], mask=True)
    add_volume(root, "1.2", modality="MRA")
    add_volume(root, "1.3")
    finish_cache(root)
    return an.open_cache(root)


def test_every_public_name_is_there_and_says_what_it_is():
    pytest.importorskip("torch")
    assert dir(an) == sorted(an.__all__)
    assert 25 <= len(an.__all__) <= 35
    silent = [name for name in an.__all__ if not getattr(an, name).__doc__]
    assert silent == []
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = an.nonsense


def test_a_function_is_not_hidden_by_a_package_of_its_name():
    code = "import aneurysm.precaching.run, aneurysm as an; assert callable(an.precache) and callable(an.precache)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_pages_teach_public_names_alone(page):
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    deep = [line for block in blocks for line in block.splitlines() if re.search(r"(from|import) aneurysm\.", line)]
    assert deep == []
    used = {name for block in blocks for name in re.findall(r"\ban\.(\w+)", block)}
    assert used <= set(an.__all__)


def test_a_cache_is_a_container_of_volumes(cache):
    assert len(cache) == 3
    assert cache[0] == cache["1.1"] == next(iter(cache))
    assert [volume.uid for volume in cache[1:]] == ["1.2", "1.3"]
    assert cache[-1].uid == "1.3"
    assert "1.2" in cache
    assert "9.9" not in cache
    with pytest.raises(KeyError, match=r"9\.9"):
        _ = cache["9.9"]
    with pytest.raises(IndexError):
        _ = cache[3]
    assert repr(cache) == f"Cache({str(cache.root)!r}, 3 volumes, spec 'rsna-1mm')"


def test_caches_and_volumes_are_equal_if_they_are_the_same(cache, tmp_path):
    again = an.open_cache(cache.root)
    assert (again, hash(again)) == (cache, hash(cache))
    assert pickle.loads(pickle.dumps(cache)) == cache
    assert (again[0], hash(again[0])) == (cache[0], hash(cache[0]))
    assert cache[0] != cache[1]
    add_volume(tmp_path, "1.1")
    finish_cache(tmp_path)
    assert an.open_cache(tmp_path) != cache


def keys(length):
    index = st.integers(-length, length - 1)
    ends = st.none() | st.integers(-length - 3, length + 3)
    return index | st.builds(slice, ends, ends, st.none() | st.sampled_from([-3, -1, 1, 2, 7]))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_volume_is_indexed_as_numpy_does(cache, data):
    volume = cache["1.1"]
    whole = np.asarray(volume)
    n = data.draw(st.integers(0, 3))
    key = [data.draw(keys(length)) for length in SHAPE[:n]]
    if n < 3 and data.draw(st.booleans()):
        key.append(...)
    found = volume[tuple(key)]
    assert found.dtype == whole.dtype
    assert np.array_equal(found, whole[tuple(key)])
    assert found.shape == whole[tuple(key)].shape


def test_a_volume_looks_like_an_array(cache):
    volume = cache["1.1"]
    whole = volume.read((0, 0, 0), volume.shape)
    assert (volume.shape, volume.ndim, volume.chunks) == (SHAPE, 3, (32, 32, 32))
    assert np.array_equal(np.asarray(volume), whole)
    assert np.asarray(volume, np.float32).dtype == np.float32
    assert np.array_equal(volume[..., 5], whole[..., 5])
    for wrong in ((0, 0, 0, 0), 1.5, [1, 2], (70,), None):
        with pytest.raises(IndexError):
            _ = volume[wrong]
    with pytest.raises(ValueError, match="copy"):
        np.asarray(volume, copy=False)


def test_dask_takes_a_volume(cache):
    array = pytest.importorskip("dask.array")
    volume = cache["1.1"]
    lazy = array.from_array(volume, chunks=volume.chunks)
    assert lazy.shape == SHAPE
    assert int(lazy.max().compute(scheduler="synchronous")) == int(np.asarray(volume).max())


def test_affine_ras_is_that_of_the_transposed_array(tmp_path):
    """One voxel of 1 x 2 x 3 mm further left, anterior or superior, as DICOM's LPS and NIfTI's RAS have it."""
    affine = [[0, 0, 3.0, -90], [0, 2.0, 0, -60], [1.0, 0, 0, 20], [0, 0, 0, 1]]
    add_volume(tmp_path, "1.1", affine=affine)
    volume = finish_cache(tmp_path)["1.1"]
    first, second = volume.affine_ras @ [0, 0, 0, 1], volume.affine_ras @ [1, 1, 1, 1]
    assert first.tolist() == [90, 60, 20, 1]
    assert second.tolist() == [87, 58, 21, 1]


def test_lesions_of_a_volume(cache):
    (lesion,) = cache["1.1"].lesions
    assert (lesion.location, lesion.zyx) == (an.SITES[3], (40.0, 50.0, 60.0))


def test_a_loader_draws_from_all_volumes_if_none_are_named(cache):
    torch = pytest.importorskip("torch")
    options = {"patch": (16, 16, 16), "batch_size": 3, "steps": 4, "seed": 5}
    batches = list(an.PatchLoader(cache, **options))
    named = list(an.PatchLoader(cache, volumes=range(3), **options))
    assert len(batches) == 4
    assert all(torch.equal(a.image, b.image) for a, b in zip(batches, named, strict=True))
    assert {volume for batch in batches for volume in batch.volume.tolist()} == {0, 1, 2}
