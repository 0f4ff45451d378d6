"""Volume -> OME-NGFF 0.5 image in a folder: arrays as single shards, metadata by zarr-python, a hash of all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from aneurysm.cache.builder import builder_versions
from aneurysm.cache.layout import BONE, IMAGE, LABELS_TREE, VESSELS
from aneurysm.cache.metadata import BoneEntry, MaskEntry, VolumeDocument, VolumeMetadata, document_bytes, files_hash
from aneurysm.cache.shard import write_shard
from aneurysm.labels import SITES, UNKNOWN_VESSEL, VESSEL_VALUES
from aneurysm.spec import StorageSpec
from aneurysm.volume.blocks import mask_blocks, pack_bits
from aneurysm.volume.bone import BONE_VERSION, BoneCells, find_bone
from aneurysm.volume.cells import cells_affine

# Left and right of a vessel share a hue: dark on the left, light on the right.
_COLOURS: Final = (
    (128, 128, 128), (255, 200, 0), (80, 220, 220), (0, 130, 130), (255, 140, 140), (180, 0, 0), (150, 230, 150),
    (0, 130, 0), (150, 170, 255), (0, 40, 200), (230, 150, 255), (130, 0, 180), (255, 255, 255),
    (255, 90, 90),
)  # fmt: skip
_BONE_COLOUR: Final = (230, 225, 200)


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

    These are ``own``, with the entries of the vessel mask and of bone, the versions of the builder, and all hashes.
    Bone is found here, for it follows from what is stored. Nothing is flushed to the disk here: publishing does that.

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
        write_vessels(folder, vessels, own.affine, storage)
    bone = find_bone(voxels, own.intensity, own.spacing_mm)
    if bone is not None:
        write_bone(folder, bone, own.affine, storage)
    entries = {"vessel_mask": describe_vessels(vessels, vessels_from, own), "bone": describe_bone(bone)}
    own = own.model_copy(update=entries | {"built_by": dict(builder_versions())})
    own = own.model_copy(update=own.labels_in(LABELS_TREE, seal_labels(folder)))
    ome = {"version": "0.5", "multiscales": _multiscales(own.affine)}
    document = VolumeDocument.of(ome, own).sealed(folder)
    (folder / "zarr.json").write_bytes(document.to_bytes())
    return document.own


def write_vessels(
    folder: Path, vessels: NDArray[np.uint8], affine_lps: NDArray[np.float64], storage: StorageSpec
) -> None:
    """Write the vessel mask (z, y, x) of the volume in ``folder``."""
    names = dict(zip(VESSEL_VALUES, SITES, strict=True)) | {UNKNOWN_VESSEL: "Vessel of unknown site"}
    coloured = {value: (names[value], _COLOURS[value - 1]) for value in sorted(names)}
    _write_label(folder / VESSELS, vessels, affine_lps, storage, coloured)


def write_bone(folder: Path, bone: BoneCells, affine_lps: NDArray[np.float64], storage: StorageSpec) -> None:
    """Write where bone is in the volume in ``folder``, whose affine is given: 0 and 1 on the coarser grid of cells."""
    affine = cells_affine(affine_lps, bone.edge)
    _write_label(folder / BONE, bone.cells.view(np.uint8), affine, storage, {1: ("Bone", _BONE_COLOUR)})


def _write_label(
    array: Path,
    values: NDArray[np.uint8],
    affine_lps: NDArray[np.float64],
    storage: StorageSpec,
    names: dict[int, tuple[str, tuple[int, int, int]]],
) -> None:
    """Write an array of labels, and the OME metadata of the folder above it: names and colours by value."""
    # Few values in large areas: whatever the image's codec, these bytes shrink to almost nothing.
    _write_array(array, values, storage.model_copy(update={"dtype": "uint8", "shuffle": "noshuffle"}), 0)
    label = {
        "source": {"image": "../../"},
        "colors": [{"label-value": value, "rgba": [*colour, 255]} for value, (_, colour) in names.items()],
        "properties": [{"label-value": value, "name": name} for value, (name, _) in names.items()],
    }
    _write_group(array.parent, {"version": "0.5", "multiscales": _multiscales(affine_lps), "image-label": label})


def seal_labels(folder: Path) -> str:
    """Name the labels of the volume in ``folder`` in the group of all; return the hash of their files, or ""."""
    tree = folder / LABELS_TREE
    if not tree.is_dir():
        return ""
    _write_group(tree, {"version": "0.5", "labels": sorted(path.name for path in tree.iterdir() if path.is_dir())})
    return files_hash(tree)


def _write_group(folder: Path, ome: dict[str, Any]) -> None:
    document = {"attributes": {"ome": ome}, "zarr_format": 3, "node_type": "group"}
    (folder / "zarr.json").write_bytes(document_bytes(document))


def describe_vessels(vessels: NDArray[np.uint8] | None, vessels_from: str, own: VolumeMetadata) -> MaskEntry | None:
    """
    Return the entry of a vessel mask, without the hash that `seal_labels` returns; None if there is no mask.

    ``own`` are the other entries: the mask's blocks are as large as theirs.
    """
    if vessels is None:
        return MaskEntry(path=None, file_hash=vessels_from, content_hash="", blocks="") if vessels_from else None
    blocks = pack_bits(mask_blocks(vessels, own.blocks.edge))
    return MaskEntry(path=VESSELS, file_hash=vessels_from, content_hash="", blocks=blocks)


def describe_bone(bone: BoneCells | None) -> BoneEntry | None:
    """Return the entry of bone, without the hash that `seal_labels` returns; None if it was not looked for."""
    return None if bone is None else BoneEntry(path=BONE, version=BONE_VERSION, edge=bone.edge, content_hash="")


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
