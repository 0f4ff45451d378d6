"""Volume -> OME-NGFF 0.5 image in a folder: arrays as single shards, metadata by zarr-python, a hash of all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from aneurysm.cache.builder import builder_versions
from aneurysm.cache.layout import IMAGE, VESSELS
from aneurysm.cache.metadata import MaskEntry, VolumeDocument, VolumeMetadata, document_bytes, files_hash
from aneurysm.cache.shard import write_shard
from aneurysm.labels import SITES, UNKNOWN_VESSEL, VESSEL_VALUES
from aneurysm.spec import StorageSpec
from aneurysm.volume.blocks import mask_blocks, pack_bits

# Left and right of a vessel share a hue: dark on the left, light on the right.
_COLOURS: Final = (
    (128, 128, 128), (255, 200, 0), (80, 220, 220), (0, 130, 130), (255, 140, 140), (180, 0, 0), (150, 230, 150),
    (0, 130, 0), (150, 170, 255), (0, 40, 200), (230, 150, 255), (130, 0, 180), (255, 255, 255),
    (255, 90, 90),
)  # fmt: skip


def write_volume(
    folder: Path,
    voxels: NDArray[Any],
    own: VolumeMetadata,
    *,
    storage: StorageSpec,
    fill: int,
    vessels: NDArray[np.uint8] | None = None,
    vessels_from: str = "",
) -> VolumeMetadata:
    """
    Write one image to ``folder``, which must not exist; return its metadata.

    These are ``own``, with the entry of the vessel mask, the versions of the builder, and all hashes. Nothing is
    flushed to the disk here: publishing does that.

    Parameters
    ----------
    voxels
        Stored integers (z, y, x); ``fill`` is that of air.
    vessels, vessels_from
        The vessel mask on the same grid, or None; and the hash of what it was made of, or of a mask that could not be
        used; empty if there was none.
    """
    folder.mkdir(parents=True)
    _write_array(folder / IMAGE, voxels, storage, fill)
    if vessels is not None:
        write_vessels(folder / VESSELS, vessels, own.affine, storage)
    mask = describe_vessels(folder, vessels, vessels_from, own)
    own = own.model_copy(update={"vessel_mask": mask, "built_by": dict(builder_versions())})
    ome = {"version": "0.5", "multiscales": _multiscales(own.affine)}
    document = VolumeDocument.of(ome, own).sealed(folder)
    (folder / "zarr.json").write_bytes(document.to_bytes())
    return document.own


def write_vessels(
    array: Path, vessels: NDArray[np.uint8], affine_lps: NDArray[np.float64], storage: StorageSpec
) -> None:
    """Write a vessel mask (z, y, x) as ``array``, and the OME metadata of the two folders above it."""
    # Few values in large areas: whatever the image's codec, these bytes shrink to almost nothing.
    _write_array(array, vessels, storage.model_copy(update={"dtype": "uint8", "shuffle": "noshuffle"}), 0)
    labels = {"version": "0.5", "labels": ["vessels"]}
    one = {"version": "0.5", "multiscales": _multiscales(affine_lps), "image-label": _image_label()}
    for folder, ome in ((array.parents[1], labels), (array.parent, one)):
        document = {"attributes": {"ome": ome}, "zarr_format": 3, "node_type": "group"}
        (folder / "zarr.json").write_bytes(document_bytes(document))


def describe_vessels(
    folder: Path, vessels: NDArray[np.uint8] | None, vessels_from: str, own: VolumeMetadata
) -> MaskEntry | None:
    """
    Return the entry of a vessel mask that is in ``folder`` / `VESSELS`; None if there is none.

    ``own`` are the other entries: the mask's blocks are as large as theirs.
    """
    if vessels is None:
        return MaskEntry(path=None, file_hash=vessels_from, content_hash="", blocks="") if vessels_from else None
    return MaskEntry(
        path=VESSELS,
        file_hash=vessels_from,
        content_hash=files_hash((folder / VESSELS).parents[1]),
        blocks=pack_bits(mask_blocks(vessels, own.blocks.edge)),
    )


def _write_array(folder: Path, voxels: NDArray[Any], storage: StorageSpec, fill: int) -> None:
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
