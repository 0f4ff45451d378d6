"""Volume -> OME-NGFF 0.5 image in a folder: arrays as single shards, metadata by zarr-python, a hash of all of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from aneurysm.cache.layout import IMAGE, VESSELS, tree_files
from aneurysm.cache.shard import write_shard
from aneurysm.cache.spec import Storage
from aneurysm.labels import SITES, UNKNOWN_VESSEL, VESSEL_VALUES

FORMAT_VERSION: Final = 2
# Left and right of a vessel share a hue: dark on the left, light on the right.
_COLOURS: Final = (
    (128, 128, 128), (255, 200, 0), (80, 220, 220), (0, 130, 130), (255, 140, 140), (180, 0, 0), (150, 230, 150),
    (0, 130, 0), (150, 170, 255), (0, 40, 200), (230, 150, 255), (130, 0, 180), (255, 255, 255),
    (255, 90, 90),
)  # fmt: skip
_NOT_HASHED: Final = ("content_hash", "patient_key")


def write_volume(
    folder: Path,
    voxels: NDArray[Any],
    affine_lps: NDArray[np.float64],
    storage: Storage,
    fill: int,
    attributes: dict[str, Any],
    vessels: NDArray[np.uint8] | None = None,
) -> str:
    """
    Write one image to ``folder``, which must not exist; return its content hash.

    ``attributes`` become the group attribute ``aneurysm``, to which ``format_version``, ``affine_lps`` and
    ``content_hash`` are added. Nothing is flushed to the disk here: publishing does that.
    """
    folder.mkdir(parents=True)
    multiscales = _multiscales(affine_lps)
    _write_array(folder / IMAGE, voxels, storage, fill)
    if vessels is not None:
        # Few values in large areas: whatever the image's codec, these bytes shrink to almost nothing.
        labels = storage.model_copy(update={"dtype": "uint8", "shuffle": "noshuffle"})
        _write_array(folder / VESSELS, vessels, labels, 0)
        zarr.create_group(
            folder / "labels", attributes={"ome": {"version": "0.5", "labels": ["vessels"]}}, zarr_format=3
        )
        label = {"version": "0.5", "multiscales": multiscales, "image-label": _image_label()}
        zarr.create_group((folder / VESSELS).parent, attributes={"ome": label}, zarr_format=3)
    own = {"format_version": FORMAT_VERSION, "affine_lps": affine_lps.tolist(), **attributes}
    # As JSON gives it back: the hash must not depend on whether a number was numpy's.
    own = json.loads(json.dumps(own))
    own["content_hash"] = content_hash(folder, own)
    ome = {"version": "0.5", "multiscales": multiscales}
    zarr.create_group(folder, attributes={"ome": ome, "aneurysm": own}, zarr_format=3)
    return str(own["content_hash"])


def content_hash(folder: Path, attributes: dict[str, Any]) -> str:
    """
    Return the hash of the volume in ``folder``: all files of its arrays, and its attributes.

    ``patient_key`` is left out, since its key differs from cache to cache by intention.
    """
    digest = hashlib.sha256()
    kept = {k: v for k, v in attributes.items() if k not in _NOT_HASHED}
    digest.update(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode())
    for name, size in tree_files(folder):
        if name == "zarr.json":
            continue
        digest.update(f"\0{name}\0{size}\0".encode())
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _write_array(folder: Path, voxels: NDArray[Any], storage: Storage, fill: int) -> None:
    shard = [-(-n // e) * e for n, e in zip(voxels.shape, storage.chunk, strict=True)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    zarr.create_array(
        folder,
        shape=voxels.shape,
        dtype=storage.dtype,
        chunks=storage.chunk,
        shards=tuple(shard),
        compressors=(
            BloscCodec(
                typesize=voxels.dtype.itemsize,
                cname=storage.codec,
                clevel=storage.level,
                shuffle=storage.shuffle,
                blocksize=0,
            ),
            Crc32cCodec(),
        ),
        fill_value=fill,
        dimension_names=("z", "y", "x"),
        zarr_format=3,
    )
    path = folder / "c" / "0" / "0" / "0"
    path.parent.mkdir(parents=True)
    write_shard(path, voxels, storage, fill)


def _multiscales(affine_lps: NDArray[np.float64]) -> list[dict[str, Any]]:
    # NGFF 0.5 knows no rotation: scale and the place of the first voxel are given, the full affine stands in
    # "aneurysm".
    scale = [round(float(np.linalg.norm(affine_lps[:3, k])), 9) for k in range(3)]
    translation = [float(v) for v in affine_lps[2::-1, 3]]
    return [
        {
            "name": "volume",
            "axes": [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"],
            "datasets": [
                {
                    "path": IMAGE,
                    "coordinateTransformations": [
                        {"type": "scale", "scale": scale},
                        {"type": "translation", "translation": translation},
                    ],
                }
            ],
        }
    ]


def _image_label() -> dict[str, Any]:
    names = dict(zip(VESSEL_VALUES, SITES, strict=True)) | {UNKNOWN_VESSEL: "Vessel of unknown site"}
    return {
        "source": {"image": "../../"},
        "colors": [{"label-value": v, "rgba": [*_COLOURS[v - 1], 255]} for v in sorted(names)],
        "properties": [{"label-value": v, "name": names[v]} for v in sorted(names)],
    }
