"""Cache -> faults: manifest against disk, metadata, digests and hashes; with ``deep`` every chunk as well."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr

from aneurysm.cache.batches import in_batches
from aneurysm.cache.blocks import SURVEY_VERSION, Blocks
from aneurysm.cache.layout import IMAGE, VESSELS, CacheLayout, tree_bytes
from aneurysm.cache.manifest import ODD, manifest_row, read_attributes, read_manifest
from aneurysm.cache.opening import read_spec
from aneurysm.cache.place import cache_place
from aneurysm.cache.spec import CacheSpec
from aneurysm.cache.supervisor import LostError
from aneurysm.cache.writer import FORMAT_VERSION, content_hash
from aneurysm.errors import CacheError, CacheNotFoundError
from aneurysm.labels import UNKNOWN_VESSEL
from aneurysm.objects.local_copy import download_volume
from aneurysm.objects.scratch import scratch_folder
from aneurysm.objects.store import ObjectStore
from aneurysm.threads import limit_threads

_BATCH: Final = 64
_REBUILD = "Build it again: aneurysm precache --overwrite --series {uid}"
_RERUN = "Run aneurysm precache: it writes the manifest anew"
_RETRY = "Run aneurysm precache; if that writes no row, the record is damaged: --retry-failed"
_NEEDED = frozenset(
    {"series_uid", "modality", "affine_lps", "spec", "digest", "intensity", "source", "blocks", "content_hash"}
)


@dataclass(frozen=True)
class Fault:
    """Something that is not as it should be: where, what, and what to do."""

    where: str
    what: str
    advice: str


_Checked = tuple[list[Fault], dict[str, str] | None, int]


@dataclass
class Report:
    """What `verify_cache` found."""

    faults: list[Fault] = field(default_factory=list)
    volumes: int = 0
    bytes_read: int = 0


def verify_cache(cache: str | Path, *, deep: bool = False, workers: int = 1) -> Report:
    """
    Check a whole cache, a folder or a URL, each of whose volumes is brought here for it; see `Report`.

    Raises
    ------
    CacheNotFoundError
        There is no cache at ``cache``.
    CacheError
        Its spec can't be read, so nothing can be checked against it.
    """
    with cache_place(cache) as place:
        place.refresh()
        layout = place.layout
        spec = read_spec(layout)
        report = Report()
        folders = sorted(layout.volumes.iterdir()) if layout.volumes.is_dir() else []
        # Checking a small volume takes less time than handing it over.
        size = max(1, min(_BATCH, len(folders) // (8 * workers)))
        check = partial(_check_volumes, url=place.url, spec=spec, deep=deep)
        checks = in_batches(check, folders, size, workers, _lost)
        rows: dict[str, dict[str, str]] = {}
        for folder, (faults, row, bytes_read) in zip(folders, checks, strict=True):
            report.faults.extend(faults)
            report.volumes += 1
            report.bytes_read += bytes_read
            if row is not None:
                rows[folder.name.removesuffix(".zarr")] = row
        report.faults.extend(_check_manifest(layout, rows, {f.name.removesuffix(".zarr") for f in folders}))
        for where in place.abandoned():
            report.faults.append(Fault(where, "left behind by a run that died", "The next run removes it"))
    return report


def _lost(folder: Path, error: LostError) -> _Checked:
    uid = folder.name.removesuffix(".zarr")
    return [Fault(uid, f"can't be checked: {error.detail}", _REBUILD.format(uid=uid))], None, 0


def _check_volumes(folders: Sequence[Path], url: str, spec: CacheSpec, deep: bool) -> list[_Checked]:
    """Check volumes, or, of a cache at a URL, those of which ``folders`` are the shadows."""
    limit_threads(1)
    if url:
        return [_check_stored(folder.name, url, spec, deep) for folder in folders]
    return [_check_volume(folder, spec, deep) for folder in folders]


def _check_stored(name: str, url: str, spec: CacheSpec, deep: bool) -> _Checked:
    uid = name.removesuffix(".zarr")
    with scratch_folder() as scratch:
        try:
            download_volume(ObjectStore(url), uid, scratch / name)
        except CacheNotFoundError as error:
            return [Fault(uid, str(error), _REBUILD.format(uid=uid))], None, 0
        return _check_volume(scratch / name, spec, deep)


def _check_volume(folder: Path, spec: CacheSpec, deep: bool) -> _Checked:
    """Return the faults of one volume, the row the manifest should have, and the bytes read."""
    uid = folder.name.removesuffix(".zarr")
    if not folder.name.endswith(".zarr") or not folder.is_dir():
        return [Fault(f"volumes/{folder.name}", "is no volume", "Remove it")], None, 0

    def fault(what: str) -> Fault:
        return Fault(uid, what, _REBUILD.format(uid=uid))

    try:
        attributes = read_attributes(folder)
    except CacheError as error:
        return [fault(str(error))], None, 0
    faults: list[Fault] = []
    row, size = None, 0
    try:
        faults.extend(fault(what) for what in _faults(folder, attributes, spec, deep))  # up to an error, if one comes
        size = tree_bytes(folder)
        if attributes.keys() >= _NEEDED:
            row = manifest_row({**attributes, "status": "cached", "folder": folder}, "")
    except ODD as error:
        kind = "can't be read" if isinstance(error, OSError) else "has damaged metadata"
        faults.append(fault(f"the volume {kind}: {type(error).__name__} {error}"))
    return faults, row, size


def _faults(folder: Path, attributes: dict[str, Any], spec: CacheSpec, deep: bool) -> Iterator[str]:
    if attributes.get("format_version") != FORMAT_VERSION:
        yield f"format version {attributes.get('format_version')}, this program knows {FORMAT_VERSION}"
    if missing := sorted(_NEEDED - attributes.keys()):
        yield f"the metadata lacks {', '.join(missing)}"
        return
    if attributes["series_uid"] != folder.name.removesuffix(".zarr"):
        yield f"the metadata is of series {attributes['series_uid']}"
    if attributes["digest"] != spec.digest:
        yield f"digest {attributes['digest']}, the cache's spec has {spec.digest}"
    blocks = attributes["blocks"]
    if isinstance(blocks, dict) and (survey := blocks.get("survey", 1)) != SURVEY_VERSION:
        yield f"head and vessels were found by survey {survey}, this program's is {SURVEY_VERSION}"
    yield from _check_arrays(folder, spec)
    if content_hash(folder, attributes) != attributes["content_hash"]:
        yield "content hash differs: a file or the metadata was changed or damaged since it was written"
    if deep:
        yield from _check_values(folder, spec, attributes)


def _check_arrays(folder: Path, spec: CacheSpec) -> Iterator[str]:
    arrays = {IMAGE: spec.storage.dtype}
    if (folder / VESSELS).exists():
        arrays[VESSELS] = "uint8"
    for name, dtype in arrays.items():
        try:
            metadata = json.loads((folder / name / "zarr.json").read_text("utf-8"))
            codec = metadata["codecs"][0]
            found = (metadata["data_type"], tuple(codec["configuration"]["chunk_shape"]), len(metadata["shape"]))
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            yield f"the metadata of array {name} is missing or damaged ({type(error).__name__})"
            continue
        if found != (dtype, spec.storage.chunk, 3):
            yield f"array {name} has type, chunks, dimensions {found}, the spec {(dtype, spec.storage.chunk, 3)}"
        if not (folder / name / "c/0/0/0").is_file():
            yield f"array {name} has lost its shard c/0/0/0"


def _check_values(folder: Path, spec: CacheSpec, attributes: dict[str, Any]) -> Iterator[str]:
    """Decode everything with zarr-python, which is not what wrote it."""
    shapes = {}
    for name in [IMAGE, *([VESSELS] if (folder / VESSELS).exists() else [])]:
        try:
            voxels = np.asarray(zarr.open_array(folder / name, mode="r")[...])
        except Exception as error:  # noqa: BLE001 - each codec has errors of its own
            yield f"array {name} can't be decoded: {type(error).__name__} {str(error)[:120]}"
            continue
        shapes[name] = voxels.shape
        if name == IMAGE:
            intensity = attributes["intensity"]
            low, high = ((v - intensity["offset"]) / intensity["scale"] for v in intensity["clip"])
            if voxels.min() < low - 0.5 or voxels.max() > high + 0.5:
                yield f"values from {voxels.min()} to {voxels.max()}, the metadata allows {low:.0f} to {high:.0f}"
        elif voxels.max() > UNKNOWN_VESSEL:
            yield f"vessel mask holds {voxels.max()}, the highest label is {UNKNOWN_VESSEL}"
    if len(set(shapes.values())) > 1:
        yield f"the vessel mask is {shapes[VESSELS]}, the volume {shapes[IMAGE]}"
    yield from _check_blocks(attributes["blocks"], shapes.get(IMAGE))
    affine = np.array(attributes["affine_lps"], float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0) if affine.shape == (4, 4) else np.zeros(3)
    if not np.allclose(spacing, spec.spacing_mm, atol=1e-6):
        yield f"the affine has a spacing of {spacing.round(4).tolist()}, the spec {list(spec.spacing_mm)}"
        return
    for lesion in attributes.get("lesions", ()):
        there = affine @ [*lesion["zyx"], 1.0]
        if not np.allclose(there[:3], lesion["lps_mm"], atol=0.01):
            yield f"lesion of row {lesion['row']}: voxel and point in the patient differ"


def _check_blocks(content: Any, shape: tuple[int, ...] | None) -> Iterator[str]:
    try:
        blocks = Blocks.from_metadata(content)
    except (KeyError, TypeError, ValueError) as error:
        yield f"the blocks can't be read ({type(error).__name__})"
        return
    if shape is not None and blocks.head.shape != tuple(-(-n // e) for n, e in zip(shape, blocks.edge, strict=True)):
        yield f"{blocks.head.shape} blocks of {blocks.edge} voxels do not cover a volume of {shape}"


def _check_manifest(layout: CacheLayout, rows: dict[str, dict[str, str]], folders: set[str]) -> Iterator[Fault]:
    try:
        manifest = {r["series_uid"]: r for r in read_manifest(layout.manifest)}
    except CacheError as error:
        yield Fault("manifest.csv", str(error), _RERUN)
        return
    for uid, row in manifest.items():
        if row["status"] == "cached":
            if uid not in folders:
                yield Fault(
                    uid, "the manifest says cached, but there is no volume", "Run aneurysm precache: it builds it"
                )
            elif uid in rows:
                differing = [k for k, v in rows[uid].items() if k != "seconds" and row.get(k, "") != v]
                if differing:
                    yield Fault(uid, f"the manifest and the volume differ in {', '.join(differing)}", _RERUN)
        elif not layout.record(uid).is_file():
            yield Fault(uid, f"the manifest says {row['status']}, but there is no record of it", _RERUN)
        elif uid in folders:
            yield Fault(uid, f"the manifest says {row['status']}, but there is a volume", _RERUN)
    for uid in sorted(folders - manifest.keys()):
        yield Fault(uid, "there is a volume, but no row in the manifest", _RERUN)
    records = {path.name.removesuffix(".json") for path in layout.rejected.glob("*.json")}
    for uid in sorted(records - manifest.keys() - folders):
        yield Fault(uid, "there is a record of why it is not cached, but no row in the manifest", _RETRY)
