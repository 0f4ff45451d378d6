"""A cached volume opens, as it is, in the tools that other people use.

Compares zarr-python with tensorstore voxel for voxel, and the metadata with ome-zarr-models' reading of
OME-NGFF 0.5. It says nothing about whether the voxels are the right ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tensorstore
import zarr

from tests.support.built import Built
from tests.support.cache_paths import volume_path
from tests.support.cache_state import attributes, manifest


@pytest.fixture
def ngff() -> ModuleType:
    """The models of OME-NGFF 0.5; they need a newer zarr than the program does."""
    return pytest.importorskip("ome_zarr_models.v05")


@pytest.fixture(params=[0, 1, 2, 3], ids=lambda i: f"series {i}")
def volume(request: pytest.FixtureRequest, built: Built) -> Path:
    return volume_path(built.cache, built.uids[request.param])


def test_metadata_are_ome_ngff(volume: Path, ngff: ModuleType) -> None:
    image = ngff.Image.from_zarr(zarr.open_group(volume, mode="r"))
    assert image.ome_zarr_version == "0.5"
    (multiscale,) = image.ome_attributes.multiscales
    assert [axis.name for axis in multiscale.axes] == ["z", "y", "x"]
    assert {axis.unit for axis in multiscale.axes} == {"millimeter"}
    assert {axis.type for axis in multiscale.axes} == {"space"}
    assert [dataset.path for dataset in multiscale.datasets] == ["0"]
    scale = multiscale.datasets[0].coordinateTransformations[0].scale
    assert np.allclose(scale, [1.0, 1.0, 1.0])


def test_vessel_labels_are_an_ome_ngff_label_image(built: Built, ngff: ModuleType) -> None:
    volume = volume_path(built.cache, built.uids[0])
    labels = ngff.Labels.from_zarr(zarr.open_group(volume / "labels", mode="r"))
    assert labels.label_paths == ["bone", "vessels"]
    group = zarr.open_group(volume / "labels" / "vessels", mode="r")
    ngff.ImageLabel.from_zarr(group)
    assert ngff.Image.from_zarr(zarr.open_group(volume, mode="r")).labels is not None
    assert group["0"].shape == zarr.open_group(volume, mode="r")["0"].shape
    assert group["0"].dtype == np.uint8


def test_vessel_mask_keeps_its_sides(built: Built) -> None:
    """Value 5 (right) lies at smaller x than 6 (left), for x runs to the patient's left."""
    volume = volume_path(built.cache, built.uids[0])
    mask = np.asarray(zarr.open_group(volume, mode="r")["labels/vessels/0"])
    assert sorted(np.unique(mask)) == [0, 2, 5, 6]
    middle = {value: np.argwhere(mask == value)[:, 2].mean() for value in (2, 5, 6)}
    assert middle[5] < middle[2] < middle[6]


def test_series_without_a_mask_has_no_label_of_vessels(built: Built) -> None:
    assert [path.name for path in (volume_path(built.cache, built.uids[1]) / "labels").glob("*/")] == ["bone"]


def test_bone_is_an_ome_ngff_label_image_that_lies_on_the_volume(built: Built, ngff: ModuleType) -> None:
    """Cells of 2 mm begin where the voxels do, so their first centre lies half a millimetre further along each axis."""
    volume = volume_path(built.cache, built.uids[1])
    own = ngff.Image.from_zarr(zarr.open_group(volume, mode="r"))
    group = zarr.open_group(volume / "labels" / "bone", mode="r")
    label = ngff.ImageLabel.from_zarr(group)
    scale, translation = label.ome_attributes.multiscales[0].datasets[0].coordinateTransformations
    _, first_voxel = own.ome_attributes.multiscales[0].datasets[0].coordinateTransformations
    assert np.allclose(scale.scale, [2.0, 2.0, 2.0])
    affine = np.array(attributes(built.cache, built.uids[1])["affine_lps"])
    assert np.allclose((affine @ [0.5, 0.5, 0.5, 1])[2::-1], translation.translation)
    assert not np.allclose(translation.translation, first_voxel.translation)
    shape = np.array(zarr.open_group(volume, mode="r")["0"].shape)
    assert group["0"].shape == tuple(-(-shape // 2))


@pytest.mark.parametrize("array", ["0", "labels/vessels/0", "labels/bone/0"])
def test_tensorstore_reads_the_same_voxels_as_zarr(built: Built, array: str) -> None:
    uids = [uid for uid in built.uids if (volume_path(built.cache, uid) / array).is_dir()]
    assert built.uids[0] in uids
    for uid in uids:
        folder = volume_path(built.cache, uid)
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / array)}}
        store = tensorstore.open(spec, open=True, read=True).result()
        theirs = store.read().result()
        ours = zarr.open_array(folder / array, mode="r")[...]
        assert theirs.dtype == ours.dtype
        assert np.array_equal(theirs, ours)
        assert tuple(store.domain.labels) == ("z", "y", "x")


def test_one_shard_of_small_chunks(volume: Path) -> None:
    array = zarr.open_array(volume / "0", mode="r")
    assert array.shards is not None
    assert all(shard >= size for shard, size in zip(array.shards, array.shape, strict=True))
    assert all(chunk <= 64 for chunk in array.chunks)
    shards = [p for p in (volume / "0").rglob("*") if p.is_file() and p.name != "zarr.json"]
    assert len(shards) == 1


def test_array_shape_is_what_the_manifest_says(built: Built) -> None:
    rows = manifest(built.cache)
    assert set(rows) == set(built.uids)
    for uid, row in rows.items():
        array = zarr.open_array(volume_path(built.cache, uid) / "0", mode="r")
        assert row["shape"].replace(",", "x").replace(" ", "") == "x".join(map(str, array.shape)), row["shape"]
        assert array.dtype == np.int16


def test_a_handful_of_files_per_series(built: Built) -> None:
    assert built.uids
    for uid in built.uids:
        files = [p for p in (volume_path(built.cache, uid)).rglob("*") if p.is_file()]
        assert len(files) <= (10 if uid == built.uids[0] else 7), files


def test_metadata_are_plain_json_without_patient_data(built: Built) -> None:
    texts = {p: p.read_text("utf-8") for p in built.cache.rglob("*") if p.suffix in (".json", ".csv", ".toml")}
    assert {path.suffix for path in texts} == {".json", ".csv", ".toml"}
    for path, text in texts.items():
        assert "Secret" not in text, path
        assert "patient-" not in text, path
        if path.suffix == ".json":
            constants: list[str] = []
            json.loads(text, parse_constant=constants.append)
            assert constants == [], f"not JSON: {path}"


def test_the_lesion_lies_where_the_localizer_says(built: Built) -> None:
    """The writer puts voxel (slice, row, column) at -20 + 5 slice, -90 + 3 row, -100 + 3 column mm."""
    facts = attributes(built.cache, built.uids[0])
    (lesion,) = facts["lesions"]
    expected = [-100 + 3 * (32 + 0.25), -90 + 3 * (32 - 0.5), -20 + 5 * 6]
    assert lesion["location"] == "Basilar Tip"
    assert np.allclose(lesion["lps_mm"], expected, atol=0.01)
    placed = np.asarray(facts["affine_lps"]) @ [*lesion["zyx"], 1]
    assert np.allclose(placed[:3], expected, atol=0.01)
