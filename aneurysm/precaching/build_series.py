"""SeriesJob -> Outcome: everything a worker does for one series, from its files to a published volume or a record."""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from aneurysm.annotations.describe import (
    describe_lesions,
    describe_modality,
    describe_uncached,
    file_hash,
    whole_grid,
)
from aneurysm.annotations.frames import pack_frames, source_frames
from aneurysm.annotations.vessels import PlacedGrid, resample_mask
from aneurysm.cache.folder import is_done
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.metadata import GridEntry, PartEntry, Record, SourceEntry, VolumeMetadata
from aneurysm.cache.writer import write_volume
from aneurysm.dicom.frame import Decision
from aneurysm.dicom.series import Series
from aneurysm.dicom.stack import Stack
from aneurysm.errors import FAILURES, Reason, StoreError, reason_of
from aneurysm.precaching.header_check import check_source
from aneurysm.precaching.slot import VolumeSlot, open_slot
from aneurysm.precaching.write_errors import ends_the_run
from aneurysm.processes.files import tree_bytes
from aneurysm.rawdata.bucket import local_mask
from aneurysm.rawdata.facts import SeriesFacts
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.rawdata.tables import SeriesNotes
from aneurysm.spec import CacheSpec
from aneurysm.types import triple
from aneurysm.volume.modality import inferred_modality
from aneurysm.volume.volume import Volume, assemble

Status = Literal["cached", "rejected", "failed", "skipped", "busy", "changed"]

# Not identifying, and of use to whoever asks why a model fails on some scanner. Nothing else is copied.
_ACQUISITION: Final = (
    "Manufacturer",
    "ManufacturerModelName",
    "MagneticFieldStrength",
    "KVP",
    "EchoTime",
    "RepetitionTime",
    "InversionTime",
    "FlipAngle",
    "SliceThickness",
    "MRAcquisitionType",
)


@dataclass(frozen=True)
class SeriesJob:
    """
    All that a worker needs to know of one series.

    ``mask`` may be a URL. ``url`` is where the worker sends what it made; ``cache`` is then the run's scratch folder.
    With ``retry`` a record of why there is no volume does not count; with ``overwrite`` a volume does not, either.
    With ``insist`` a series is built also if another run at the same store seems to be at it. ``run`` names the run,
    for its ledger; ``size`` is the bytes of the series, and ``expected_s`` the seconds that it should take, 0 if they
    are not known. ``planned`` is what it had when a plan was made: it is not built if it is another one now.
    """

    source: SeriesSource
    notes: SeriesNotes
    mask: Path | str | None
    cache: Path
    spec: CacheSpec
    secret: bytes
    overwrite: bool = False
    url: str = ""
    retry: bool = False
    insist: bool = False
    run: str = ""
    size: int = 0
    expected_s: float = 0.0
    planned: SeriesFacts | None = None

    def is_done(self, layout: CacheLayout) -> bool:
        """Return True if there is nothing to do: somebody else has built the series, or found that it can't be."""
        if self.overwrite:
            return False
        uid = self.source.uid
        return layout.volume(uid).exists() if self.retry else is_done(layout, uid)


@dataclass(frozen=True)
class Outcome:
    """
    What came of one series; ``busy`` means that another process is at it, ``changed`` that it is not as planned.

    Of a cached one also the ``frames`` of its files, the ``voxels`` of those that were decoded, and their transfer
    ``syntax``, or several of them between commas.
    """

    uid: str
    status: Status
    reason: str = ""
    detail: str = ""
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    frames: int = 0
    voxels: int = 0
    syntax: str = ""


def build_series(job: SeriesJob) -> Outcome:
    """
    Build and publish the volume of one series, or its record with the reason why there is none.

    Raises
    ------
    NoSpaceError
        The disk is full: the run must end, and the series be left for the next one.
    CacheError
        The cache can't be written: the same.
    StoreError
        An object store fails: likewise.
    """
    uid = job.source.uid
    started = time.perf_counter()
    with open_slot(job.cache, job.url, uid, insist=job.insist) as slot:
        if slot is None:
            return Outcome(uid, "busy")
        if not job.overwrite and slot.is_done(retry=job.retry):
            return Outcome(uid, "skipped")
        try:
            if job.planned is not None and not job.planned.same_extent(job.source.extent()):
                return Outcome(uid, "changed")
            cached = _cache(job, slot)
            return replace(cached, seconds=_since(started))
        except Exception as error:
            if ends_the_run(error) or isinstance(error, StoreError):
                raise
            reason, detail = reason_of(error)
        has_volume = slot.has_volume()
        status, detail = outcome_of(reason, detail, has_volume=has_volume)
        # A failure says nothing of the volume that is there.
        if status == "rejected" or not has_volume:
            slot.record(record_of(job.spec, uid, reason, detail, job.notes), replace=job.overwrite)
        return Outcome(uid, status, reason, detail, _since(started), _size(job.source))


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)


def _cache(job: SeriesJob, slot: VolumeSlot) -> Outcome:
    """Build the volume and publish it."""
    check_source(job.source)
    with job.source.local_copy() as source, local_mask(job.mask) as mask:
        return _cache_files(job, source, mask, slot)


def _cache_files(job: SeriesJob, source: SeriesSource, mask: Path | None, slot: VolumeSlot) -> Outcome:
    series = source.read_headers()
    volume = assemble(series, job.spec)
    whole = whole_grid(volume.stack, job.spec)
    vessels, vessels_from = None, ""
    decisions = tuple(dict.fromkeys(volume.decisions))
    if mask is not None:
        vessels_from = file_hash(mask)
        vessels, decision = resample_mask(mask, (volume.affine_lps, triple(volume.voxels.shape)), whole)
        decisions += (decision,)
    built = slot.folder / "built.zarr"
    write_volume(
        built, volume.voxels, _metadata(job, series, volume, whole, decisions), storage=job.spec.storage,
        fill=volume.intensity.fill, vessels=vessels, vessels_from=vessels_from,
    )  # fmt: skip
    bytes_out = tree_bytes(built)
    slot.publish(built, replace=job.overwrite)
    decoded = [frame.format for frame in volume.stack.all_frames]
    return Outcome(
        job.source.uid,
        "cached",
        bytes_in=series.bytes_in,
        bytes_out=bytes_out,
        frames=len(series.frames),
        voxels=sum(fmt.rows * fmt.columns for fmt in decoded),
        syntax=",".join(sorted({fmt.transfer_syntax for fmt in decoded})),
    )


def _metadata(
    job: SeriesJob, series: Series, volume: Volume, whole: PlacedGrid, decisions: tuple[Decision, ...]
) -> VolumeMetadata:
    notes, stack = job.notes, volume.stack
    frames = source_frames(series.frames, stack.all_frames, stack.dropped)
    inferred = inferred_modality(series)
    return VolumeMetadata(
        affine_lps=volume.affine_lps.tolist(),
        series_uid=series.uid,
        **describe_modality(notes.modality, inferred),
        spec=job.spec.name,
        digest=job.spec.digest,
        source=SourceEntry(
            modality=inferred,
            **_part_facts(stack),
            other_parts=tuple(PartEntry(**_part_facts(part)) for part in stack.others),
            field_of_view=GridEntry(affine_lps=whole[0].tolist(), shape=whole[1]),
            transfer_syntaxes=tuple(sorted({f.format.transfer_syntax for f in stack.all_frames})),
            files=series.files,
            frames=len(series.frames),
            bytes=series.bytes_in,
            acquisition={k: series.header.values[k] for k in _ACQUISITION if k in series.header.values},
        ),
        images=pack_frames(frames),
        decisions=decisions,
        labels=notes.labels,
        **describe_lesions(notes.localizers, frames, volume.affine_lps, volume.voxels.shape),
        patient_key=patient_key(job.secret, series.patient_id),
        intensity=volume.intensity,
        blocks=volume.survey.pack(),
    )


def _part_facts(part: Stack) -> dict[str, Any]:
    """Return what the metadata say of a block of slices."""
    geometry, fmt = part.geometry, part.frames[0].format
    return {
        "shape": [len(part.frames), fmt.rows, fmt.columns],
        "spacing_mm": [round(v, 6) for v in (geometry.slice_spacing_mm, *geometry.spacing_mm)],
        "orientation": [round(float(v), 6) for v in geometry.axes[:2].ravel()],
        "plane": geometry.plane,
        "tilt_deg": round(geometry.tilt_deg, 4),
    }


def patient_key(secret: bytes, patient_id: str) -> str:
    """Return the keyed hash of a PatientID: the same for one patient's series, and of no use without the key."""
    return hmac.new(secret, patient_id.encode("utf-8"), hashlib.sha256).hexdigest()[:16] if patient_id else ""


def outcome_of(reason: Reason, detail: str, *, has_volume: bool) -> tuple[Literal["rejected", "failed"], str]:
    """Return the status that follows from a reason, and the detail of it beside the volume that may be there."""
    if reason not in FAILURES:
        return "rejected", detail
    return "failed", f"{detail}; the volume that was there is kept" if has_volume else detail


def record_of(spec: CacheSpec, uid: str, reason: Reason, detail: str, notes: SeriesNotes) -> Record:
    """Return the record of a series that is not cached."""
    return Record(
        series_uid=uid,
        status=outcome_of(reason, detail, has_volume=False)[0],
        reason=str(reason),
        # What comes of a broken encoding can't stand in JSON.
        detail=detail.encode("utf-8", "replace").decode(),
        digest=spec.digest,
        **describe_uncached(notes, reason),
    ).sealed()


def _size(source: SeriesSource) -> int:
    try:
        return source.size()
    except (OSError, StoreError):
        return 0
