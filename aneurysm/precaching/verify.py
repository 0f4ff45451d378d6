"""Cache -> faults: manifest against disk, metadata, digests and hashes; with ``deep`` every chunk as well."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import zarr
from numpy.typing import NDArray

from aneurysm.cache.folder import read_spec, series_in_subfolder, strange_names
from aneurysm.cache.layout import (
    IMAGE,
    LABEL_TREES,
    RECORD_ENDING,
    SUBFOLDERS,
    VOLUME_ENDING,
    CacheLayout,
    subfolder_of,
    volume_key,
)
from aneurysm.cache.local_copy import download_volume
from aneurysm.cache.metadata import (
    VolumeDocument,
    VolumeMetadata,
    find_damage,
    find_strays,
    parse_document,
    read_document_bytes,
    read_record,
)
from aneurysm.documents import read_json
from aneurysm.errors import CacheError, UsageError
from aneurysm.labels import UNKNOWN_VESSEL
from aneurysm.precaching.destination import Destination
from aneurysm.precaching.label_bone import bone_fault, derive_bone, label_bone
from aneurysm.precaching.partition import Shard
from aneurysm.precaching.publish import is_claimed
from aneurysm.precaching.relabel import ANNOTATION_KINDS, Annotations, find_differences
from aneurysm.precaching.remote_destination import open_destination
from aneurysm.precaching.verify_tables import CheckedSeries, Fault, SeriesRows, TablesCheck, rows_of
from aneurysm.precaching.write_errors import translate_write_errors
from aneurysm.processes.children import LostError, Runner, runner
from aneurysm.processes.files import tree_bytes
from aneurysm.processes.map_batches import map_batches
from aneurysm.processes.threads import limit_threads
from aneurysm.rawdata.bucket import open_data
from aneurysm.remote.client import ObjectStore
from aneurysm.remote.scratch import scratch_folder
from aneurysm.spec import RECIPE_VERSION, CacheSpec, is_as_written
from aneurysm.volume.blocks import SURVEY_VERSION

_BATCH: Final = 64
_GROUP: Final = 4096
"""This many series at least are checked before their rows are compared with the tables': their rows are in memory."""
_TRIES: Final = 3
"""Looks at a volume that is replaced while it is read."""
_REBUILD = "Build it again: aneurysm precache --overwrite --series {uid}"
_RETRY = "Run aneurysm precache --retry-failed: it writes the record again"
_SETTLE = "Run aneurysm precache with the data: it finishes what a run began that died"
_RELABEL = "Run aneurysm precache: it updates the volume"
_LABEL_BONE = "Run aneurysm verify --fix: it finds bone by the voxels"
_COMPARE = "Mend that, and run aneurysm verify again"
_SPEC = "Bring the file back; nothing is added to the cache until then"
_KEY = "No series is built until this is mended"

_Checked = tuple[list[Fault], SeriesRows | None, int]


@dataclass(frozen=True)
class Sample:
    """``count`` volumes, those of the least hashes of ``seed`` and UID: the same ones every time."""

    count: int
    seed: int = 0

    def of(self, uids: Iterable[str]) -> list[str]:
        """Return the series of the sample."""
        return heapq.nsmallest(self.count, uids, key=lambda uid: hashlib.sha256(f"{self.seed} {uid}".encode()).digest())


@dataclass
class Report:
    """What `verify` found, which tables it wrote again, and of how many volumes the labels of bone."""

    faults: list[Fault] = field(default_factory=list)
    volumes: int = 0
    bytes_read: int = 0
    fixed: list[str] = field(default_factory=list)
    relabelled: int = 0


def verify(
    cache: str | Path,
    *,
    data: str | Path | None = None,
    deep: bool = False,
    workers: int = 1,
    fix: bool = False,
    shard: Shard | None = None,
    sample: Sample | None = None,
) -> Report:
    """
    Check a cache, a folder or a URL, each of whose volumes is downloaded for it; see `Report`.

    Parameters
    ----------
    data
        Compare the annotations of the volumes with the tables and vessel masks of this data folder or URL.
    deep
        Also decode every chunk, and check the values.
    workers
        Processes.
    fix
        Write again what is derived: labels of bone that are absent, or of another version, by the voxels; and
        manifest.csv and lesions.csv if they are not what the volumes and records give. Nothing else is changed.
    shard
        Only the series in this part of the `SUBFOLDERS`.
    sample
        Only these volumes (of the shard, if there is one), and no records.

    Raises
    ------
    CacheNotFoundError
        There is no cache at ``cache``.
    CacheError
        Its spec can't be read, so nothing can be checked against it; or a table can't be written.
    NoSpaceError
        The disk is full, so no table can be written.
    DataError
        There is nothing to compare with at ``data``.
    UsageError
        There are more shards than `SUBFOLDERS`.
    """
    if shard is not None and shard.count > len(SUBFOLDERS):
        raise UsageError(
            f"{shard.origin} {shard}: a cache has {len(SUBFOLDERS)} parts at most, the folders of its volumes"
        )
    subfolders = SUBFOLDERS if shard is None else SUBFOLDERS[shard.index :: shard.count]
    with open_destination(cache) as place:
        place.refresh(metadata=() if data is None else None)
        layout = place.layout
        spec = read_spec(layout)
        report = Report()
        tables = TablesCheck(layout)
        of_tables: list[Fault] = []
        of_records: list[Fault] = []
        checked: list[str] = []
        with runner(workers) as processes:
            for series in _series(layout, subfolders, sample):
                rows = _check_group(place, series, spec, report, deep, workers, processes)
                of_records += _check_records(layout, series, spec, rows)
                of_tables += tables.check(series, rows)
                if data is not None:
                    checked += series.volumes | series.records
            if fix:
                _label_bone(place, spec, report, workers, processes)
        report.faults.extend(_check_names(layout, subfolders))
        report.faults.extend(_check_spec(layout, spec))
        report.faults.extend(of_records)
        of_tables += tables.end(subfolders)
        if fix and (report.relabelled or any(fault.derived for fault in of_tables)):
            with translate_write_errors(layout.root):
                place.write_tables({}, afresh=True)
            report.fixed = [layout.manifest.name, layout.lesions.name]
            # What was lost is in no table any more, so that is reported once more.
            of_tables = [f for f in of_tables if not f.derived] + check_tables_alone(layout, subfolders, sample)
        report.faults.extend(of_tables)
        if data is not None:
            report.faults.extend(_check_annotations(place, data, checked, workers))
        if what := place.key_fault():
            report.faults.append(Fault(layout.patient_key_check.name, what, _KEY))
        for where in place.abandoned():
            report.faults.append(Fault(where, "left behind by a run that died", "The next run removes it"))
    return report


def _label_bone(place: Destination, spec: CacheSpec, report: Report, workers: int, processes: Runner) -> None:
    """Derive the labels of bone again of volumes that lack nothing else; their faults are none any more."""
    faults: dict[str, list[Fault]] = {}
    for fault in report.faults:
        faults.setdefault(fault.where, []).append(fault)
    uids = [uid for uid, found in faults.items() if all(fault.derived for fault in found)]
    problems = label_bone(place, uids, spec, workers, processes)
    mended = set(uids) - problems.keys()
    report.relabelled = len(mended)
    report.faults = [fault for fault in report.faults if fault.where not in mended]
    report.faults += [
        Fault(uid, f"bone can't be labelled: {what}", _REBUILD.format(uid=uid)) for uid, what in problems.items()
    ]


def _series(layout: CacheLayout, subfolders: Sequence[str], sample: Sample | None) -> Iterator[CheckedSeries]:
    """Yield what is to be checked, some subfolders at a time."""
    if sample is not None:
        uids = (uid for name in subfolders for uid in series_in_subfolder(layout.volumes / name, VOLUME_ENDING))
        chosen = frozenset(sample.of(uids))
        yield CheckedSeries(sorted({subfolder_of(uid) for uid in chosen}), chosen, frozenset(), all_of_them=False)
        return
    group: list[str] = []
    volumes: list[str] = []
    records: list[str] = []
    for name in subfolders:
        group.append(name)
        volumes += series_in_subfolder(layout.volumes / name, VOLUME_ENDING)
        records += series_in_subfolder(layout.rejected / name, RECORD_ENDING)
        if len(volumes) + len(records) >= _GROUP or name == subfolders[-1]:
            yield CheckedSeries(tuple(group), frozenset(volumes), frozenset(records))
            group, volumes, records = [], [], []


def _check_group(
    place: Destination,
    series: CheckedSeries,
    spec: CacheSpec,
    report: Report,
    deep: bool,
    workers: int,
    processes: Runner,
) -> dict[str, SeriesRows]:
    """Check some volumes; return what they give for the tables."""
    folders = [place.layout.volume(uid) for uid in sorted(series.volumes)]
    # Checking a small volume takes less time than handing it over.
    size = max(1, min(_BATCH, len(folders) // (8 * max(1, workers))))
    check = partial(_check_volumes, url=place.url, spec=spec, deep=deep)
    rows: dict[str, SeriesRows] = {}
    for folder, (faults, found, bytes_read) in zip(
        folders, map_batches(check, folders, size, workers, _lost, processes=processes), strict=True
    ):
        report.faults.extend(faults)
        report.volumes += 1
        report.bytes_read += bytes_read
        if found is not None:
            rows[folder.name.removesuffix(VOLUME_ENDING)] = found
    return rows


def check_tables_alone(
    layout: CacheLayout, subfolders: Sequence[str] = SUBFOLDERS, sample: Sample | None = None
) -> list[Fault]:
    """Return what the tables lack of what there is; of the volumes and records nothing is read but their names."""
    tables = TablesCheck(layout)
    faults = [fault for series in _series(layout, subfolders, sample) for fault in tables.check(series, {})]
    return faults + tables.end(subfolders)


def _lost(folder: Path, error: LostError) -> _Checked:
    uid = folder.name.removesuffix(VOLUME_ENDING)
    return [Fault(uid, f"can't be checked: {error.detail}", _REBUILD.format(uid=uid))], None, 0


def _check_volumes(folders: Sequence[Path], url: str, spec: CacheSpec, deep: bool) -> list[_Checked]:
    """Check volumes, or, of a cache at a URL, those of which ``folders`` are the shadows."""
    limit_threads(1)
    if url:
        return [_check_stored(folder.name, url, spec, deep) for folder in folders]
    return [_check_volume(folder, spec, deep) for folder in folders]


def _check_stored(name: str, url: str, spec: CacheSpec, deep: bool) -> _Checked:
    uid, store = name.removesuffix(VOLUME_ENDING), ObjectStore(url)
    for _ in range(_TRIES):
        with scratch_folder() as scratch:
            try:
                download_volume(store, uid, scratch / name)
                checked = _check_volume(scratch / name, spec, deep)
                # Else it was replaced while it was downloaded.
                if not checked[0] or store.read(f"{volume_key(uid)}/zarr.json") == _metadata_of(scratch / name):
                    break
            except FileNotFoundError as error:
                return [Fault(uid, str(error), _REBUILD.format(uid=uid))], None, 0
    return checked


def _check_volume(folder: Path, spec: CacheSpec, deep: bool) -> _Checked:
    """Return the faults of one volume, the rows that the tables should have, and the bytes read."""
    for _ in range(_TRIES):
        before = _metadata_of(folder)
        checked = _check_metadata(folder, before, spec, deep)
        # Else it was replaced meanwhile, and what was read of it was of two volumes.
        if not checked[0] or _metadata_of(folder) == before:
            break
    return checked


def _metadata_of(folder: Path) -> bytes | str:
    """Return the bytes of a volume's zarr.json, or why they can't be read."""
    try:
        return read_document_bytes(folder)
    except CacheError as error:
        return str(error)


def _check_metadata(folder: Path, content: bytes | str, spec: CacheSpec, deep: bool) -> _Checked:
    uid = folder.name.removesuffix(VOLUME_ENDING)
    if folder.is_file():
        return [Fault(volume_key(uid), "is no volume", "Remove it")], None, 0

    def fault(what: str) -> Fault:
        return Fault(uid, what, _SETTLE if what.startswith(LABEL_TREES) else _REBUILD.format(uid=uid))

    if isinstance(content, str):
        return [fault(content)], None, 0
    try:
        document = parse_document(content, str(folder / "zarr.json"))
    except CacheError as error:
        return [fault(str(error))], None, 0
    faults: list[Fault] = []
    rows, size = None, 0
    try:
        faults.extend(map(fault, _faults(folder, document, content, spec, deep)))  # up to an error, if one comes
        size = tree_bytes(folder)
        rows = rows_of(document.own, folder)
        if what := bone_fault(document.own):
            faults.append(Fault(uid, what, _LABEL_BONE, derived=True))
    except (OSError, ValueError) as error:
        faults.append(fault(f"the volume can't be read: {type(error).__name__} {error}"))
    return faults, rows, size


def _faults(folder: Path, document: VolumeDocument, content: bytes, spec: CacheSpec, deep: bool) -> Iterator[str]:
    own = document.own
    if own.series_uid != folder.name.removesuffix(VOLUME_ENDING):
        yield f"the metadata is of series {own.series_uid}"
    if own.digest != spec.digest:
        yield f"digest {own.digest}, the cache's spec has {spec.digest}"
    if own.blocks.survey != SURVEY_VERSION:
        yield f"head and vessels were found by survey {own.blocks.survey}, this program's is {SURVEY_VERSION}"
    arrays = [IMAGE, *own.label_paths]
    yield from _check_arrays(folder, spec, arrays)
    yield from find_damage(folder, document, content)
    for name in find_strays(folder, document):
        # Of labels that are being replaced there are two for a while.
        if name not in LABEL_TREES or not is_claimed(CacheLayout(folder.parents[2]), own.series_uid):
            yield f"{name} is no part of the volume"
    if deep:
        yield from _check_values(folder, spec, own, arrays)


def _check_arrays(folder: Path, spec: CacheSpec, arrays: Sequence[str]) -> Iterator[str]:
    for name in arrays:
        dtype = spec.storage.dtype if name == IMAGE else "uint8"
        try:
            metadata = read_json(folder / name / "zarr.json")
            codec = metadata["codecs"][0]
            found = (metadata["data_type"], tuple(codec["configuration"]["chunk_shape"]), len(metadata["shape"]))
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            yield f"the metadata of array {name} is missing or damaged ({type(error).__name__})"
            continue
        if found != (dtype, spec.storage.chunk, 3):
            yield f"array {name} has type, chunks, dimensions {found}, the spec {(dtype, spec.storage.chunk, 3)}"
        if not (folder / name / "c/0/0/0").is_file():
            yield f"array {name} has lost its shard c/0/0/0"


def _check_values(folder: Path, spec: CacheSpec, own: VolumeMetadata, arrays: Sequence[str]) -> Iterator[str]:
    """Decode everything with zarr-python, which is not what wrote it."""
    shapes = {}
    for name in arrays:
        try:
            voxels = np.asarray(zarr.open_array(folder / name, mode="r")[...])
        except Exception as error:  # noqa: BLE001 - each codec has errors of its own
            yield f"array {name} can't be decoded: {type(error).__name__} {str(error)[:120]}"
            continue
        shapes[name] = voxels.shape
        if name == IMAGE:
            low, high = ((v - own.intensity.offset) / own.intensity.scale for v in own.intensity.clip)
            if voxels.min() < low - 0.5 or voxels.max() > high + 0.5:
                yield f"values from {voxels.min()} to {voxels.max()}, the metadata allows {low:.0f} to {high:.0f}"
        elif name == own.mask_path and voxels.max() > UNKNOWN_VESSEL:
            yield f"vessel mask holds {voxels.max()}, the highest label is {UNKNOWN_VESSEL}"
        elif name != own.mask_path:
            yield from _check_bone(folder, own, voxels)
    if own.mask_path in shapes and IMAGE in shapes and shapes[own.mask_path] != shapes[IMAGE]:
        yield f"the vessel mask is {shapes[own.mask_path]}, the volume {shapes[IMAGE]}"
    yield from _check_blocks(own, shapes.get(IMAGE))
    if not np.allclose(own.spacing_mm, spec.spacing_mm, atol=1e-6):
        yield f"the affine has a spacing of {np.round(own.spacing_mm, 4).tolist()}, the spec {list(spec.spacing_mm)}"
        return
    for lesion in own.lesions:
        if not np.allclose((own.affine @ [*lesion.zyx, 1.0])[:3], lesion.lps_mm, atol=0.01):
            yield f"lesion of row {lesion.row}: voxel and point in the patient differ"


def _check_bone(folder: Path, own: VolumeMetadata, cells: NDArray[np.uint8]) -> Iterator[str]:
    """Compare a label of bone, if it is of this program's version, with what the voxels give."""
    if bone_fault(own):
        return
    try:
        bone = derive_bone(folder)
    except CacheError as error:
        yield f"bone can't be found again: {error}"
        return
    if bone is None or own.bone is None or own.bone.edge != bone.edge or not np.array_equal(cells, bone.cells):
        yield "the label of bone is not what the voxels give"


def _check_blocks(own: VolumeMetadata, shape: tuple[int, ...] | None) -> Iterator[str]:
    try:
        blocks = own.head_and_vessels()
    except ValueError as error:
        yield f"the blocks can't be read ({type(error).__name__})"
        return
    if shape is not None and blocks.head.shape != tuple(-(-n // e) for n, e in zip(shape, blocks.edge, strict=True)):
        yield f"{blocks.head.shape} blocks of {blocks.edge} voxels do not cover a volume of {shape}"


def _check_spec(layout: CacheLayout, spec: CacheSpec) -> Iterator[Fault]:
    # By another recipe a cache is as sound as by this one, whose digest can't be computed here.
    if not is_as_written(layout.spec.read_text("utf-8")):
        yield Fault(layout.spec.name, "was changed or damaged since it was written", _SPEC)
    elif spec.recipe == RECIPE_VERSION and (what := spec.mismatch()):
        yield Fault(layout.spec.name, what, _SPEC)


def _check_names(layout: CacheLayout, subfolders: Sequence[str]) -> Iterator[Fault]:
    """Find what belongs to no series, or lies where that of its series does not."""
    for path in strange_names(layout.volumes, VOLUME_ENDING, subfolders):
        yield Fault(f"{layout.volumes.name}/{path}", "is no volume, or lies in the wrong folder", "Remove it")
    for path in strange_names(layout.rejected, RECORD_ENDING, subfolders):
        if not path.rpartition("/")[2].startswith("."):  # one that is being written
            yield Fault(f"{layout.rejected.name}/{path}", "is no record, or lies in the wrong folder", "Remove it")


def _check_records(
    layout: CacheLayout, series: CheckedSeries, spec: CacheSpec, rows: dict[str, SeriesRows]
) -> Iterator[Fault]:
    """Check the records of series that are not cached; add to ``rows`` what they give for the tables."""
    for uid in sorted(series.records):
        path = layout.record(uid)
        try:
            entry = read_record(path)
        except FileNotFoundError:
            continue  # its series was built just now
        except CacheError as error:
            yield Fault(uid, str(error), _RETRY)
            continue
        if entry.digest != spec.digest:
            yield Fault(uid, f"the record has digest {entry.digest}, the cache's spec {spec.digest}", _RETRY)
        rows.setdefault(uid, rows_of(entry, path))


def _check_annotations(place: Destination, data: str | Path, checked: Iterable[str], workers: int) -> Iterator[Fault]:
    given = open_data(data)
    uids = sorted({s.uid for s in given.find_series(workers).sources}.intersection(checked))
    for difference in find_differences(place, uids, Annotations(given.tables(), given.find_masks())):
        if difference.problem:
            yield Fault(difference.uid, difference.problem, _COMPARE)
            continue
        what = ", ".join(f"the {text}" for kind, text in ANNOTATION_KINDS.items() if kind in difference.changes)
        yield Fault(difference.uid, f"{what} in the cache and in {data} differ", _RELABEL)
