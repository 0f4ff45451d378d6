"""Training and prediction from a cache in an object store give what a local cache gives."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from aneurysm.cache.cache import Cache, open_cache
from aneurysm.cache.fetch_ahead import FetchAhead
from aneurysm.cache.local_copy import LocalCopy
from aneurysm.cache.volume import close_volumes
from aneurysm.errors import LoaderError
from aneurysm.patches.loader import PatchLoader
from aneurysm.report.repredict import FreshOptions, predict_fresh
from tests.support.built import Built
from tests.support.cache_paths import volume_name
from tests.support.command import call_cli
from tests.support.s3 import SECRET, Bucket, copied_bytes

pytestmark = pytest.mark.usefixtures("s3_settings")

MODEL = ("--model", "tests.support.tiny:classifier")


def bound_of_two(cache: Cache) -> float:
    """GB that hold any two volumes and never three."""
    return (sum(sorted(v.size for v in cache.remote.values())[-2:]) + 1000) / 1e9


@pytest.mark.parametrize("workers", [0, 1])
def test_the_same_batches_from_a_copy_smaller_than_the_cache(
    stored: str, built: Built, tmp_path: Path, workers: int
) -> None:
    gigabytes = bound_of_two(open_cache(stored))
    caches = [open_cache(built.cache), open_cache(stored, local_cache=tmp_path / "small", local_cache_gb=gigabytes)]
    batches = []
    for cache in caches:
        loader = PatchLoader(
            cache, volumes=range(4), patch=(16, 16, 16), batch_size=2, steps=6, seed=3, workers=workers
        )
        try:
            batches.append([*loader, *loader])
        finally:
            loader.close()
        assert copied_bytes(tmp_path / "small") <= gigabytes * 1e9
    assert len({int(v) for batch in batches[0] for v in batch.volume}) == 4
    for ours, theirs in zip(*batches, strict=True):
        assert ours.damaged == theirs.damaged == ()
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.targets, theirs.targets)


def test_volumes_are_there_before_they_are_drawn(stored: str, tmp_path: Path) -> None:
    cache = open_cache(stored)
    loader = PatchLoader(cache, volumes=range(4), patch=(16, 16, 16), batch_size=2, steps=8, seed=1)
    try:
        batches = iter(loader)
        next(batches)
        end = time.monotonic() + 30
        while len(list((tmp_path / "local" / "volumes").iterdir())) < 4 and time.monotonic() < end:
            time.sleep(0.02)
        assert len(list((tmp_path / "local" / "volumes").iterdir())) == 4
    finally:
        loader.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("fetch-ahead")]


class Slow:
    """Stands for a volume; notes when it is fetched."""

    def __init__(self, number: int, size: int, fetched: list[int], copy: LocalCopy) -> None:
        self.number, self.size, self.copy, self._fetched = number, size, copy, fetched

    def fetch(self) -> None:
        self._fetched.append(self.number)


def test_nothing_is_fetched_that_would_drive_out_what_comes_before_it(tmp_path: Path) -> None:
    """Each of 20 volumes takes a tenth of what may be used; a step needs one."""
    fetched: list[int] = []
    copy = LocalCopy(tmp_path, 1250)  # 80 % of it are 1000
    volumes = {i: Slow(i, 100, fetched, copy) for i in range(20)}

    def walk() -> Iterator[tuple[int, list[int]]]:
        yield from ((step, [step]) for step in range(20))

    ahead = FetchAhead(volumes, walk(), 1, start=0)
    try:
        for at in (0, 1, 5):
            ahead.reached(at)
            settle(fetched, at + 10)
            assert sorted(fetched) == list(range(at + 10))
        ahead.reached(19)
        settle(fetched, 16)
        assert fetched[-1] == 19
        assert not set(range(15, 19)) & set(fetched), "they were passed already"
    finally:
        ahead.close()


def test_the_copy_is_shared_among_ranks(tmp_path: Path) -> None:
    fetched: list[int] = []
    volumes = {i: Slow(i, 100, fetched, LocalCopy(tmp_path, 1250)) for i in range(20)}
    ahead = FetchAhead(volumes, ((step, [step]) for step in range(20)), 2, start=0)
    try:
        settle(fetched, 5)
        assert sorted(fetched) == list(range(5))
    finally:
        ahead.close()


def settle(fetched: list[int], wanted: int) -> None:
    """Wait until so many are fetched, and then whether there come more."""
    end = time.monotonic() + 10
    while len(fetched) < wanted and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)


def test_a_store_that_fails_ends_the_loader_with_its_name(
    stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(stored)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    from aneurysm.remote import client

    client._opened.cache_clear()
    loader = PatchLoader(cache, volumes=range(4), patch=(16, 16, 16), batch_size=2, steps=4)
    try:
        with pytest.raises(LoaderError, match=f"{stored}: there are no credentials"):
            next(iter(loader))
    finally:
        loader.close()


def test_a_missing_volume_is_a_damaged_one(built: Built, bucket: Bucket) -> None:
    url = bucket.upload(built.cache, "cache")
    bucket.delete(f"cache/{volume_name(built.uids[1])}/zarr.json")
    loader = PatchLoader(open_cache(url), volumes=range(4), patch=(16, 16, 16), batch_size=2, steps=8)
    try:
        assert len(list(loader)) == 8
        assert loader.damaged == {built.uids[1]}
    finally:
        loader.close()


def test_train_two_steps_and_predict(stored: str, built: Built, tmp_path: Path) -> None:
    gigabytes = bound_of_two(open_cache(stored))
    local = ("--local-cache", tmp_path / "small", "--local-cache-gb", gigabytes)
    usual = (*MODEL, "--patch", "16", "--batch-size", "2", "--epochs", "1", "--steps-per-epoch", "2", "--folds", "2")
    for name, place in (("ours", (stored, *local)), ("theirs", (built.cache,))):
        ran = call_cli("train", "--out", tmp_path / name, "--workers", 0, "--devices", 1, *usual, "--cache", *place)
        assert ran.code == 0, ran.text
        assert SECRET not in ran.text
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert (ours / "predictions_val.csv").read_bytes() == (theirs / "predictions_val.csv").read_bytes()
    assert not [p for p in ours.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    answers = []
    for name, place in (("ours", (stored, *local)), ("theirs", (built.cache,))):
        ran = call_cli("predict", ours, *place, *MODEL, "--device", "cpu", "--out", tmp_path / f"{name}.csv")
        assert ran.code == 0, ran.text
        answers.append((tmp_path / f"{name}.csv").read_bytes())
    assert answers[0] == answers[1]
    assert copied_bytes(tmp_path / "small") <= gigabytes * 1e9
    one = f"{stored}/{volume_name(built.uids[0])}"
    ran = call_cli("predict", ours, one, *local, *MODEL, "--device", "cpu")
    assert ran.code == 0, ran.text
    assert built.uids[0] in ran.out
    again = predict_fresh([ours], tmp_path / "again", FreshOptions(None, None, "cpu", MODEL[1], *map(str, local[1:2])))
    assert again[0].cache == stored


def test_predict_dicom_in_a_store(stored: str, built: Built, bucket: Bucket, tmp_path: Path) -> None:
    from aneurysm.inference.read_series import read_path
    from aneurysm.inference.series_paths import find_paths
    from aneurysm.spec import load_spec

    url = bucket.upload(built.data / "series" / built.uids[0], "series-folder")
    (path,) = find_paths(url)
    read = read_path(path, load_spec("rsna-1mm"))
    close_volumes()
    expected = open_cache(stored)[0]
    np.testing.assert_array_equal(read.volume.voxels, expected.read((0, 0, 0), expected.shape))
