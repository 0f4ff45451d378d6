"""DICOM data in an object store: few requests, names that no disk would take, and a scratch disk that is full."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from aneurysm.errors import NoSpaceError
from aneurysm.precaching.run import precache
from aneurysm.remote.client import ObjectStore
from tests.support.built import Built
from tests.support.s3 import Bucket

pytestmark = pytest.mark.usefixtures("s3_settings")


def upload_tree(built: Built, bucket: Bucket, n_series: int = 1) -> str:
    for uid in built.uids[:n_series]:
        bucket.upload(built.data / "series" / uid, f"tree/{uid}")
    return f"{bucket.url}/tree"


def test_a_tree_is_listed_once_however_many_series_it_has(
    built: Built, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, listed = upload_tree(built, bucket, 3), []
    find = ObjectStore.find

    def counted(self: ObjectStore, prefix: str = "") -> object:
        listed.append(prefix)
        return find(self, prefix)

    monkeypatch.setattr(ObjectStore, "find", counted)
    summary = precache(url, tmp_path / "cache", workers=0)
    assert summary.cached == 3
    assert summary.bytes_in == sum(p.stat().st_size for uid in built.uids[:3] for p in files(built, uid))
    assert listed.count("") == 1, listed
    assert set(listed) <= {"", "segmentations"}


def files(built: Built, uid: str) -> list[Path]:
    return sorted((built.data / "series" / uid).iterdir())


def test_names_that_a_disk_would_not_take(built: Built, bucket: Bucket, tmp_path: Path) -> None:
    """One that is also a folder's, and one of 300 bytes."""
    names = ["a", "a/b", "long" * 75, *(f"c/{n}" for n in range(100))]
    for name, path in zip(names, files(built, built.uids[0])):
        bucket.put(f"tree/{name}", path.read_bytes())
    summary = precache(f"{bucket.url}/tree", tmp_path / "cache", workers=0)
    assert (summary.cached, summary.rejected, summary.failed) == (1, 0, 0)


@pytest.mark.parametrize("during", ["the scan", "the build"])
def test_a_full_scratch_disk_is_told_as_such(
    built: Built, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    """And not as that of the cache, which is elsewhere."""
    url = upload_tree(built, bucket)

    def full(self: ObjectStore, key: str, *_: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ObjectStore, "read" if during == "the scan" else "download_all", full)
    with pytest.raises(NoSpaceError, match="TMPDIR") as caught:
        precache(url, tmp_path / "cache", workers=0)
    assert str(tmp_path / "tmp") in str(caught.value)
    assert str(tmp_path / "cache") not in str(caught.value)


def test_a_series_is_not_cached_without_an_object_that_went_during_the_scan(
    built: Built, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, read = upload_tree(built, bucket, 2), ObjectStore.read
    gone = f"{built.uids[0]}/{files(built, built.uids[0])[3].name}"

    def lose_one(self: ObjectStore, key: str, *first_bytes: int) -> bytes:
        if key == gone:
            raise FileNotFoundError(f"there is no {key}")
        return read(self, key, *first_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "read", lose_one)
        summary = precache(url, tmp_path / "cache", workers=0)
    assert (summary.cached, summary.failed, dict(summary.reasons)) == (1, 1, {"read_error": 1})
    assert precache(url, tmp_path / "cache", retry_failed=True, workers=0).cached == 1
