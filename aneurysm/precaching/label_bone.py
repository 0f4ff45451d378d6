"""Volumes without a label of bone, or with one of another version -> it is derived again, from their voxels alone.

Nothing but the cache is read for it, and of a volume nothing is written but its labels and zarr.json, by the steps of
`aneurysm.precaching.relabel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.local_copy import download_volume
from aneurysm.cache.metadata import VolumeMetadata
from aneurysm.cache.volume import open_volume, read_box
from aneurysm.errors import AneurysmError, CacheNotFoundError, DamagedCacheError, reason_of
from aneurysm.precaching.destination import Destination
from aneurysm.precaching.relabel import read_sound_document, replace_bone, settle
from aneurysm.precaching.slot import VolumeSlot, open_slot
from aneurysm.processes.children import LostError, Runner
from aneurysm.processes.map_batches import map_batches
from aneurysm.processes.threads import limit_threads
from aneurysm.remote.client import ObjectStore
from aneurysm.spec import CacheSpec
from aneurysm.volume.bone import BONE_VERSION, BoneCells, bone_problem, find_bone


@dataclass(frozen=True)
class _Job:
    uid: str
    cache: Path
    url: str
    spec: CacheSpec


def bone_fault(own: VolumeMetadata) -> str:
    """Return why the label of bone of a volume is not the one that this program would give it; empty if it is."""
    due = None if bone_problem(own.intensity) else BONE_VERSION
    version = None if own.bone is None else own.bone.version
    if version == due:
        return ""
    if version is None:
        return "it is not labelled where bone is"
    return f"bone was found by version {version}, this program's is {due}" if due else "bone can't be told in it"


def label_bone(
    place: Destination, uids: Sequence[str], spec: CacheSpec, workers: int, processes: Runner
) -> dict[str, str]:
    """
    Derive the labels of bone of ``uids`` again; return by series why it could not be done.

    Raises
    ------
    NoSpaceError, CacheError, StoreError
        The cache can't be written.
    """
    jobs = [_Job(uid, place.layout.root, place.url, spec) for uid in uids]
    answers = map_batches(_label_all, jobs, 1, workers, _lost, processes=processes)
    return {job.uid: problem for job, problem in zip(jobs, answers, strict=True) if problem}


def _lost(_: _Job, error: LostError) -> str:
    return error.detail


def _label_all(jobs: Sequence[_Job]) -> list[str]:
    limit_threads(1)
    return [_label(job) for job in jobs]


def _label(job: _Job) -> str:
    try:
        with open_slot(job.cache, job.url, job.uid) as slot:
            if slot is None:
                return "another run is at it"
            files = slot.files()
            document = settle(files, read_sound_document(files))
            bone = _derived(job, slot)
            replace_bone(files, document, bone, job.spec, slot.folder)
            return ""
    except (DamagedCacheError, CacheNotFoundError) as error:  # of this volume alone
        return str(error)
    except (AneurysmError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the other volumes are none the worse for it
        return reason_of(error)[1]


def _derived(job: _Job, slot: VolumeSlot) -> BoneCells | None:
    folder = CacheLayout(job.cache).volume(job.uid)
    if job.url:
        folder = slot.folder / folder.name
        download_volume(ObjectStore(job.url), job.uid, folder)
    return derive_bone(folder)


def derive_bone(folder: Path) -> BoneCells | None:
    """
    Return where bone is in the volume in ``folder``, by its voxels; None if these can't tell.

    Raises
    ------
    CacheError
        It is not there, or damaged.
    """
    opened = open_volume(folder)
    own, image = opened.metadata, opened.image
    return find_bone(read_box(image, (0, 0, 0), image.shape), own.intensity, own.spacing_mm)
