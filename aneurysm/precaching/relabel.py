"""Tables and masks that were corrected -> the annotations of volumes that are there; no slice is decoded for it.

Voxels stay: what is written are zarr.json, the vessel mask, and the records of series that are not cached. A volume
keeps what it takes to place lesions again (`aneurysm.annotations.frames`), and of its voxels what tells vessels where
there is no mask (`aneurysm.volume.blocks.Survey`).

What is guaranteed: zarr.json is replaced in one step, and says where the labels are that belong to it: the mask, and of
CT where bone is. Labels that take the place of others are put beside them first (`labels.next`); then zarr.json names
that; then the old ones are replaced, zarr.json names their place again, and what is beside it is removed. After a kill
at any moment a reader finds the old annotations or the new ones, with their labels; the next run finishes the rest.
Whoever has the voxels open is not disturbed: their files are not touched. It is the same in an object store, where an
object is replaced as a whole.

A table that is absent says nothing: what a volume holds stays. A table that is there, without a row for a series, says
that nothing is known of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from aneurysm.annotations.describe import describe_lesions, describe_modality, describe_uncached, file_hash
from aneurysm.annotations.frames import unpack_frames
from aneurysm.annotations.lesions import Lesion, UnplacedLesion
from aneurysm.annotations.vessels import resample_mask
from aneurysm.cache.layout import BONE, LABELS_TREE, STAGED_TREE, VESSELS, CacheLayout
from aneurysm.cache.manifest import shape_of
from aneurysm.cache.metadata import (
    Record,
    VolumeDocument,
    VolumeMetadata,
    annotation_hash,
    is_mask_decision,
    parse_document,
    read_document,
    read_record,
)
from aneurysm.cache.writer import describe_bone, describe_vessels, seal_labels, write_bone, write_vessels
from aneurysm.errors import AneurysmError, CacheError, DamagedCacheError, reason_of, words_of
from aneurysm.precaching.destination import Destination
from aneurysm.precaching.publish import claim, publish_record
from aneurysm.precaching.slot import VolumeFiles, open_slot, read_files
from aneurysm.precaching.write_errors import translate_write_errors
from aneurysm.processes.children import NO_LIMITS, Limits, LostError, Runner
from aneurysm.processes.map_batches import map_batches
from aneurysm.processes.threads import map_io
from aneurysm.rawdata.bucket import local_mask
from aneurysm.rawdata.tables import SeriesNotes, Tables
from aneurysm.spec import CacheSpec
from aneurysm.types import triple
from aneurysm.volume.bone import BoneCells

ANNOTATION_KINDS: Final = {
    "labels": "labels",
    "modality": "modality",
    "lesions": "lesions",
    "rows": "line numbers of lesions",
    "vessels": "vessel mask",
}
"""What may differ, in the words of messages; ``rows`` are only the lines of train_localizers.csv."""


@dataclass(frozen=True)
class Annotations:
    """What is known of series now: the tables, and where the masks are by UID; None if there are no masks at all."""

    tables: Tables
    masks: Mapping[str, Path | str] | None


@dataclass(frozen=True)
class Expected:
    """
    What one volume should hold.

    ``mask_hash`` is that of the file ``mask``, empty if the series has none, and None if there are no masks at all.
    """

    notes: SeriesNotes
    has_labels: bool
    has_localizers: bool
    mask: Path | str | None
    mask_hash: str | None


@dataclass(frozen=True)
class Update:
    """
    What came of one volume or record.

    ``changes`` are those of `ANNOTATION_KINDS` that differed. ``problem`` says why nothing was written; ``busy`` is
    what another
    run holds.
    """

    uid: str
    changes: frozenset[str] = frozenset()
    problem: str = ""
    busy: bool = False


@dataclass(frozen=True)
class _Job:
    uid: str
    expected: Expected
    cache: Path
    url: str
    spec: CacheSpec


def find_differences(place: Destination, uids: Iterable[str], given: Annotations) -> Iterator[Update]:
    """
    Yield for each of ``uids`` that holds other annotations than ``given`` what differs.

    Of one whose mask can't be read, and so not be compared, the ``problem`` is yielded.
    """
    for difference, _ in _compared(place, list(uids), given):
        if difference.changes or difference.problem:
            yield difference
    for uid in uids:
        if place.layout.volume(uid).exists():
            continue
        with suppress(CacheError):
            if changes := _record_changes(place.layout, uid, given)[1]:
                yield Update(uid, changes)


def relabel(
    place: Destination,
    uids: Sequence[str],
    given: Annotations,
    spec: CacheSpec,
    *,
    workers: int = 1,
    limits: Limits = NO_LIMITS,
    processes: Runner | None = None,
) -> list[Update]:
    """
    Bring the annotations of those of ``uids`` that are cached, or recorded as not cached, up to ``given``.

    Masks, which strangers wrote, are read within ``limits`` by ``workers`` of ``processes``, which are started if none
    are given; see `map_batches`. Return what changed, could not be changed, or is busy, in no order.

    Raises
    ------
    NoSpaceError, CacheError, StoreError
        The cache can't be written.
    """
    jobs: list[_Job] = []
    masked: list[_Job] = []
    updates: list[Update] = []
    for difference, expected in _compared(place, uids, given):
        if expected is not None:
            job = _Job(difference.uid, expected, place.layout.root, place.url, spec)
            (masked if "vessels" in difference.changes and expected.mask is not None else jobs).append(job)
        elif difference.problem:
            updates.append(difference)
    # One after the other: most say nothing, and there may be millions.
    updates += filter(_says_something, map_io(jobs, _update))
    updates += filter(_says_something, map_batches(_update_all, masked, 1, workers, _lost, limits, processes))
    with translate_write_errors(place.layout.root):
        updates += filter(_says_something, map_io(uids, partial(_update_record, place.layout, given)))
    return updates


def _says_something(update: Update) -> bool:
    return bool(update.changes or update.problem or update.busy)


def _lost(job: _Job, error: LostError) -> Update:
    return Update(job.uid, problem=f"its vessel mask can't be placed: {error.detail}")


def _update_all(jobs: Sequence[_Job]) -> list[Update]:
    return [_update(job) for job in jobs]


def _compared(place: Destination, uids: Sequence[str], given: Annotations) -> Iterator[tuple[Update, Expected | None]]:
    """Yield what differs of each volume, and what it should hold: None if it does, or if that is not known."""

    def look(uid: str) -> tuple[Update, Expected | None]:
        volume = place.layout.volume(uid)
        try:
            own = read_document(volume).own
            expected = _expected(uid, given)
            _, changes = _changes(own, shape_of(volume), expected)
            settled = _is_settled(own, place.label_trees(uid))
        except _MaskReadError as error:
            return Update(uid, problem=str(error)), None
        except (CacheError, OSError, ValueError, IndexError):
            return Update(uid), None  # absent, or damaged, of which `aneurysm verify` speaks
        return Update(uid, changes), None if settled and not changes else expected

    yield from map_io(uids, look)


class _MaskReadError(AneurysmError):
    """The operating system can't read a vessel mask."""


@contextmanager
def _local_mask(mask: Path | str) -> Iterator[Path]:
    """Yield a vessel mask as a local file, to be read in the block. Raises `_MaskReadError`."""
    try:
        with local_mask(mask) as path:
            assert path is not None
            yield path
    except OSError as error:
        if isinstance(error, AneurysmError):
            raise
        raise _MaskReadError(f"its vessel mask can't be read: {words_of(error)}") from error


def _expected(uid: str, given: Annotations) -> Expected:
    tables, mask = given.tables, None if given.masks is None else given.masks.get(uid)
    known = None if given.masks is None else ""
    if mask is not None:
        with _local_mask(mask) as path:
            known = file_hash(path)
    return Expected(tables.of(uid), tables.has_labels, tables.has_localizers, mask, known)


def _changes(own: VolumeMetadata, shape: Sequence[int], expected: Expected) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the entries that should be others, without the mask's, and what differs. Raises as `unpack_frames`."""
    notes, new, changes = expected.notes, dict[str, Any](), set[str]()
    if expected.has_labels:
        modality = describe_modality(notes.modality, own.source.modality or "")
        new |= {"labels": notes.labels, **modality}
        changes |= {"labels"} if own.labels != notes.labels else set()
        changes |= {"modality"} if any(getattr(own, k) != v for k, v in modality.items()) else set()
    if expected.has_localizers:
        # Most series have none, and then nothing has to be unpacked; of others a file or two of hundreds.
        named = {row.sop_uid for row in notes.localizers}
        frames = unpack_frames(own.images, named) if named and own.images is not None else []
        lesions = describe_lesions(notes.localizers, frames, own.affine, shape)
        new |= lesions
        if any(getattr(own, k) != v for k, v in lesions.items()):
            same = all(_without_rows(getattr(own, k)) == _without_rows(v) for k, v in lesions.items())
            changes.add("rows" if same else "lesions")
    if expected.mask_hash is not None and expected.mask_hash != own.mask_file_hash:
        changes.add("vessels")
    return new, frozenset(changes)


def _without_rows(lesions: Iterable[Lesion | UnplacedLesion]) -> list[Lesion | UnplacedLesion]:
    return [replace(lesion, row=0) for lesion in lesions]


def _is_settled(own: VolumeMetadata, trees: set[str]) -> bool:
    """Return True if a volume's labels are where they belong, and there are no others."""
    return own.labels_tree in (None, LABELS_TREE) and trees == ({own.labels_tree} - {None})


def _update(job: _Job) -> Update:
    try:
        with open_slot(job.cache, job.url, job.uid) as slot:
            return Update(job.uid, busy=True) if slot is None else _update_held(job, slot.files(), slot.folder)
    except _MaskReadError as error:
        return Update(job.uid, problem=str(error))
    except (AneurysmError, MemoryError):  # none of this volume alone; or one for `map_batches`, which knows the limit
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the other volumes are none the worse for it
        return Update(job.uid, problem=reason_of(error)[1])


def _update_held(job: _Job, files: VolumeFiles, scratch: Path) -> Update:
    try:
        document = read_sound_document(files)
    except FileNotFoundError:
        return Update(job.uid)  # taken away just now
    except DamagedCacheError as error:
        return Update(job.uid, problem=f"{error}: aneurysm precache --overwrite --series {job.uid}")
    return Update(job.uid, update_volume(files, document, job.expected, job.spec, scratch))


def read_sound_document(files: VolumeFiles) -> VolumeDocument:
    """
    Return the content of a volume's zarr.json, whose annotations may be replaced.

    Raises
    ------
    FileNotFoundError
        There is none.
    DamagedCacheError
        Another hash would make the damage look sound.
    """
    damage = "its metadata were changed or damaged since they were written"
    try:
        document = parse_document(files.read_metadata(), "zarr.json")
    except FileNotFoundError:
        raise
    except (DamagedCacheError, OSError) as error:
        raise DamagedCacheError(damage) from error
    if annotation_hash(document.own) != document.own.annotation_hash:
        raise DamagedCacheError(damage)
    return document


def update_volume(
    files: VolumeFiles, document: VolumeDocument, expected: Expected, spec: CacheSpec, scratch: Path
) -> frozenset[str]:
    """
    Bring a volume's annotations up to what is ``expected``; return what differed.

    ``document`` is the content of its zarr.json, ``scratch`` a folder of one's own. Raises `_MaskReadError`.
    """
    document = settle(files, document)
    own, shape = document.own, files.shape()
    new, changes = _changes(own, shape, expected)
    if not changes:
        return changes
    if "vessels" not in changes:
        replace_annotations(files, document, **new)
        return changes
    vessels, decisions = None, tuple(d for d in own.decisions if not is_mask_decision(d))
    if expected.mask is not None:
        assert own.source.field_of_view is not None  # only an array has none, and no file is an array's mask
        whole = own.source.field_of_view
        with _local_mask(expected.mask) as path:
            vessels, decision = resample_mask(
                path, (own.affine, triple(shape)), (np.array(whole.affine_lps), whole.shape)
            )
        decisions += (decision,)
    document = document.with_changes(**new, decisions=decisions)
    replace_vessels(files, document, vessels, expected.mask_hash or "", spec, scratch)
    return changes


def replace_vessels(
    files: VolumeFiles, document: VolumeDocument, vessels: Any, vessels_from: str, spec: CacheSpec, scratch: Path
) -> None:
    """Write ``document``, whose annotations are new, with another vessel mask (z, y, x), or without one."""
    built = scratch / "relabelled"
    if vessels is not None:
        write_vessels(built, vessels, document.own.affine, spec.storage)
    _replace_label(files, document, VESSELS, built, vessel_mask=describe_vessels(vessels, vessels_from, document.own))


def replace_bone(
    files: VolumeFiles, document: VolumeDocument, bone: BoneCells | None, spec: CacheSpec, scratch: Path
) -> None:
    """Write ``document`` with another label of bone, or without one."""
    built = scratch / "relabelled"
    if bone is not None:
        write_bone(built, bone, document.own.affine, spec.storage)
    _replace_label(files, document, BONE, built, bone=describe_bone(bone))


def _replace_label(files: VolumeFiles, document: VolumeDocument, array: str, built: Path, **entry: Any) -> None:
    """
    Write a settled ``document`` with another ``entry`` of one label.

    Its ``array`` is the one in the volume ``built``, to which the other labels of the volume are added; none, if none
    is there.
    """
    before = document.own.labels_tree
    own_folder = array.split("/")[1] + "/"
    for name, content in files.read_tree(LABELS_TREE).items() if before else ():
        if "/" in name and not name.startswith(own_folder):
            path = built / LABELS_TREE / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    content_hash = seal_labels(built)
    own = document.own.model_copy(update=entry)
    if not content_hash:
        replace_annotations(files, document, **entry)
        files.remove_tree(LABELS_TREE)
        return
    tree = read_files(built / LABELS_TREE)
    if before is None:
        files.write_tree(LABELS_TREE, tree)
        replace_annotations(files, document, **own.labels_in(LABELS_TREE, content_hash))
        return
    files.write_tree(STAGED_TREE, tree)
    settle(files, replace_annotations(files, document, **own.labels_in(STAGED_TREE, content_hash)))


def settle(files: VolumeFiles, document: VolumeDocument) -> VolumeDocument:
    """Bring a volume's labels to their place, and remove what a killed run left of others; return what is there."""
    own, trees = document.own, files.trees()
    if own.labels_tree == STAGED_TREE:
        files.write_tree(LABELS_TREE, files.read_tree(STAGED_TREE))
        document = replace_annotations(files, document, **own.labels_in(LABELS_TREE))
    elif LABELS_TREE in trees and own.labels_tree is None:
        files.remove_tree(LABELS_TREE)
    if STAGED_TREE in trees:
        files.remove_tree(STAGED_TREE)
    return document


def replace_annotations(files: VolumeFiles, document: VolumeDocument, **changes: Any) -> VolumeDocument:
    """Write ``document`` with other annotations in one step; return what was written."""
    document = document.with_changes(**changes)
    files.write_metadata(document.to_bytes())
    return document


def _record_changes(layout: CacheLayout, uid: str, given: Annotations) -> tuple[Record | None, frozenset[str]]:
    """
    Return the record of a series as it should be, None if there is none, and what differs.

    Raises
    ------
    CacheError
        It is damaged, or can't be read.
    """
    try:
        record = read_record(layout.record(uid))
    except FileNotFoundError:
        return None, frozenset()
    new = describe_uncached(given.tables.of(uid), record.reason)
    if not given.tables.has_labels:
        new |= {k: getattr(record, k) for k in ("labels", "modality", "modality_source")}
    if not given.tables.has_localizers:
        new["unplaced_lesions"] = record.unplaced_lesions
    expected = record.model_copy(update=new)
    changes = {k for k in ("labels", "modality") if getattr(record, k) != getattr(expected, k)}
    if record.unplaced_lesions != expected.unplaced_lesions:
        rows = [_without_rows(one.unplaced_lesions) for one in (record, expected)]
        changes.add("rows" if rows[0] == rows[1] else "lesions")
    return expected.sealed(), frozenset(changes)


def _update_record(layout: CacheLayout, given: Annotations, uid: str) -> Update:
    if layout.volume(uid).exists():
        return Update(uid)  # what a record says beside a volume nobody reads
    try:
        if not _record_changes(layout, uid, given)[1]:
            return Update(uid)
        with claim(layout, uid) as folder:
            if folder is None:
                return Update(uid, busy=True)
            record, changes = _record_changes(layout, uid, given)
            if record is not None and changes:
                publish_record(layout, record)
            return Update(uid, changes)
    except CacheError as error:
        return Update(uid, problem=f"{error}. Run aneurysm precache --retry-failed")
