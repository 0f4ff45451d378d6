"""Labels of bone: written with every CT that has HU enough, and derived again, by `verify --fix`, from voxels alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aneurysm.cache.cache import open_cache
from aneurysm.cache.metadata import parse_document, read_document_bytes
from aneurysm.cache.volume import close_volumes
from aneurysm.errors import CacheNotFoundError
from aneurysm.precaching import label_bone
from aneurysm.precaching.array_writer import CacheWriter
from aneurysm.precaching.verify import verify
from aneurysm.volume import bone
from tests.support.cache_paths import volume_path

UID = "head"
SHAPE = (51, 56, 59)  # no whole number of cells
Z, Y, X = np.ogrid[tuple(slice(n) for n in SHAPE)]
RADIUS = np.sqrt((Z - 25) ** 2 + (Y - 28) ** 2 + (X - 29) ** 2)
SHELL = (RADIUS > 19) & (RADIUS < 24)
VESSELS = np.broadcast_to((np.abs(Y - 28) < 2) & (np.abs(X - 29) < 2) & (np.abs(Z - 25) < 9), SHAPE)


def head() -> np.ndarray:
    voxels = np.where(RADIUS < 25, 40, -1000).astype(np.int16)
    voxels[SHELL], voxels[VESSELS] = 1100, 350
    return voxels


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    with CacheWriter(tmp_path / "cache") as writer:
        writer.add(UID, head(), modality="CTA", vessels=VESSELS)
        writer.add("mr", head() + 1000, modality="MRA")
    return tmp_path / "cache"


def without_label(cache: Path) -> None:
    """Bring a volume to what it was before there were labels of bone: no entry, and no folder."""
    with CacheWriter(cache) as writer:
        writer.add(UID, head(), modality="CTA")  # no mask, so that bone is the only label
    volume = volume_path(cache, UID)
    document = parse_document(read_document_bytes(volume), UID)
    (volume / "zarr.json").write_bytes(document.with_changes(bone=None).to_bytes())
    for path in sorted((volume / "labels").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (volume / "labels").rmdir()
    close_volumes()


def test_bone_is_read_on_the_grid_of_the_voxels(cache: Path) -> None:
    volume = open_cache(cache)[UID]
    assert volume.has_bone
    label = volume.read_bone((0, 0, 0), volume.shape)
    assert label.shape == volume.shape == SHAPE
    assert label[SHELL].all()
    assert not label[RADIUS < 15].any()
    start, shape = (-3, 11, 40), (20, 17, 40)
    padded = np.pad(label, 40)[tuple(slice(s + 40, s + 40 + n) for s, n in zip(start, shape, strict=True))]
    assert padded.any()
    assert np.array_equal(volume.read_bone(start, shape), padded)


def test_mr_has_none(cache: Path) -> None:
    volume = open_cache(cache)["mr"]
    assert not volume.has_bone
    with pytest.raises(CacheNotFoundError, match="no label of bone"):
        volume.read_bone((0, 0, 0), (1, 1, 1))
    assert not (volume.path / "labels").exists()


def test_a_new_cache_is_sound_and_its_label_follows_from_its_voxels(cache: Path) -> None:
    assert verify(cache, deep=True, workers=0).faults == []


def test_a_cache_without_labels_gets_them_and_keeps_its_voxels(cache: Path, tmp_path: Path) -> None:
    before = open_cache(cache)[UID].metadata.voxel_hash
    without_label(cache)
    (fault,) = [fault for fault in verify(cache, workers=0).faults if fault.where == UID and "labelled" in fault.what]
    assert "verify --fix" in fault.advice
    report = verify(cache, workers=0, fix=True)
    assert report.relabelled == 1
    assert [fault for fault in report.faults if fault.where == UID] == []
    assert verify(cache, deep=True, workers=0).faults == []
    close_volumes()
    volume = open_cache(cache)[UID]
    assert volume.metadata.voxel_hash == before
    assert volume.read_bone((0, 0, 0), SHAPE)[SHELL].all()
    with CacheWriter(tmp_path / "other") as writer:
        writer.add(UID, head(), modality="CTA")
    built = open_cache(tmp_path / "other")[UID]
    names = sorted(path.relative_to(built.path) for path in built.path.rglob("*") if path.is_file())
    assert len(names) == 7
    for name in names:
        if name.name != "zarr.json" or len(name.parts) > 1:  # patient keys differ from cache to cache
            assert (built.path / name).read_bytes() == (volume.path / name).read_bytes(), name


def test_a_label_of_another_version_is_found_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_bone, "BONE_VERSION", bone.BONE_VERSION + 1)
    (fault,) = verify(cache, workers=0).faults
    assert fault.where == UID
    assert f"version {bone.BONE_VERSION}" in fault.what


def test_a_mask_that_comes_or_goes_leaves_the_label_of_bone(cache: Path) -> None:
    label = open_cache(cache)[UID].read_bone((0, 0, 0), SHAPE)
    for vessels, names in ((None, ["bone"]), (VESSELS, ["bone", "vessels"]), (VESSELS & (Z > 25), ["bone", "vessels"])):
        with CacheWriter(cache) as writer:
            assert writer.add(UID, head(), modality="CTA", vessels=vessels) == "updated"
            writer.add("mr", head() + 1000, modality="MRA")
        assert verify(cache, workers=0).faults == []
        close_volumes()
        volume = open_cache(cache)[UID]
        assert volume.has_vessels == (vessels is not None)
        assert np.array_equal(volume.read_bone((0, 0, 0), SHAPE), label)
        group = json.loads((volume.path / "labels" / "zarr.json").read_text())
        assert group["attributes"]["ome"]["labels"] == names


def test_a_changed_cell_is_found(cache: Path) -> None:
    shard = volume_path(cache, UID) / "labels/bone/0/c/0/0/0"
    content = bytearray(shard.read_bytes())
    content[20] ^= 1
    shard.write_bytes(content)
    report = verify(cache, deep=True, workers=0, fix=True)
    assert report.relabelled == 0, "what is damaged must not be sealed"
    assert any("content hash of the labels" in fault.what for fault in report.faults)
    assert any("labels/bone/0 can't be decoded" in fault.what for fault in report.faults)


def test_a_label_that_does_not_follow_from_the_voxels_is_found(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aneurysm.volume.bone._LEAST_MM3", 1e6)
    faults = [fault.what for fault in verify(cache, deep=True, workers=0).faults]
    assert faults == ["the label of bone is not what the voxels give"]
