"""SeriesJob -> Outcome: everything a worker does for one series, from its files to a published volume or a record."""

from __future__ import annotations

import hashlib
import hmac
import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from aneurysm.annotations.describe import (
    describe_field_of_view,
    describe_lesions,
    describe_modality,
    describe_uncached,
    file_hash,
    place_mask,
)
from aneurysm.annotations.frames import pack_frames, source_frames
from aneurysm.cache.folder import is_done
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.metadata import Record
from aneurysm.dicom.series import Series, read_series
from aneurysm.dicom.stack import Stack
from aneurysm.errors import FAILURES, Reason, SeriesRejectedError, StoreError, reason_of
from aneurysm.precache.publish import claim, set_aside
from aneurysm.precache.remote_destination import VolumeSender, working_folder
from aneurysm.precache.store import store_volume
from aneurysm.precache.write_errors import ends_the_run, translate_write_errors
from aneurysm.processes.files import write_atomically
from aneurysm.rawdata.bucket import local_mask
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.rawdata.tables import SeriesNotes
from aneurysm.spec import CacheSpec
from aneurysm.volume.modality import inferred_modality
from aneurysm.volume.volume import Volume, assemble

Status = Literal["cached", "rejected", "failed", "skipped", "busy"]

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
    With ``insist`` a series is built also if another run at the same store seems to be at it.
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

    def is_done(self, layout: CacheLayout) -> bool:
        """Return True if there is nothing to do: somebody else has built the series, or found that it can't be."""
        if self.overwrite:
            return False
        uid = self.source.uid
        return layout.volume(uid).exists() if self.retry else is_done(layout, uid)


@dataclass(frozen=True)
class Outcome:
    """What came of one series; ``busy`` means that another process is at it."""

    uid: str
    status: Status
    reason: str = ""
    detail: str = ""
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0


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
    working = working_folder(job.cache) if job.url else nullcontext(job.cache)
    with (
        working as root,
        translate_write_errors(root),
        claim(layout := CacheLayout(root), uid) as folder,
        ExitStack() as stack,
    ):
        if folder is None:
            return Outcome(uid, "busy")
        sender = VolumeSender(job.url, uid, folder) if job.url else None
        if sender is not None and not stack.enter_context(sender.marked(insist=job.insist)):
            return Outcome(uid, "busy")
        done = job.is_done(layout)
        if sender is not None and not job.overwrite:
            done = done or sender.is_done() or (not job.retry and sender.is_recorded())
        if done:
            return Outcome(uid, "skipped")
        layout = layout if sender is None else sender.layout
        try:
            bytes_in, bytes_out = _cache(job, layout, folder)
            layout.record(uid).unlink(missing_ok=True)
            if sender is not None:
                sender.send_volume(overwrite=job.overwrite)
            return Outcome(uid, "cached", seconds=_since(started), bytes_in=bytes_in, bytes_out=bytes_out)
        except Exception as error:
            if ends_the_run(error) or isinstance(error, StoreError):
                raise
            outcome = _record(job, layout, folder, error, _since(started))
        # A failure says nothing of the volume that is there.
        if sender is not None and (outcome.status == "rejected" or not sender.is_done()):
            sender.send_record(overwrite=job.overwrite)
        return outcome


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)


def _cache(job: SeriesJob, layout: CacheLayout, folder: Path) -> tuple[int, int]:
    """Build the volume in ``folder`` and publish it; return the bytes read and written."""
    if job.source.problem:
        raise SeriesRejectedError(Reason.INVALID_UID, job.source.problem)
    job.source.check_complete()
    with job.source.brought() as source, local_mask(job.mask) as mask:
        return _cache_files(job, source.list_files(), mask, layout, folder)


def _cache_files(
    job: SeriesJob, files: list[Path], mask: Path | None, layout: CacheLayout, folder: Path
) -> tuple[int, int]:
    uid, spec = job.source.uid, job.spec
    if not files:
        raise SeriesRejectedError(Reason.NO_FILES, "the folder of the series is empty or absent")
    series = read_series(uid, files)
    volume = assemble(series, spec)
    attributes = _attributes(job, series, volume)
    vessels, vessels_from = None, ""
    if mask is not None:
        vessels_from = file_hash(mask)
        vessels, decision = place_mask(
            mask, volume.affine_lps, volume.voxels.shape, attributes["source"]["field_of_view"]
        )
        attributes["decisions"].append(decision)
    bytes_out = store_volume(
        layout, folder, spec, attributes, volume.voxels, volume.affine_lps, volume.intensity, vessels, vessels_from,
        overwrite=job.overwrite,
    )  # fmt: skip
    return series.bytes_in, bytes_out


def _attributes(job: SeriesJob, series: Series, volume: Volume) -> dict[str, Any]:
    notes, stack = job.notes, volume.stack
    frames = source_frames(series.frames, stack.all_frames, stack.dropped)
    inferred = inferred_modality(series)
    return {
        "series_uid": series.uid,
        **describe_modality(notes.modality, inferred),
        "spec": job.spec.name,
        "digest": job.spec.digest,
        "source": {
            "modality": inferred,
            **_part_facts(stack),
            "other_parts": [_part_facts(part) for part in stack.others],
            "field_of_view": describe_field_of_view(stack, job.spec),
            "transfer_syntaxes": sorted({f.format.transfer_syntax for f in stack.all_frames}),
            "files": series.files,
            "frames": len(series.frames),
            "bytes": series.bytes_in,
            "acquisition": {k: series.header.values[k] for k in _ACQUISITION if k in series.header.values},
        },
        "images": pack_frames(frames),
        "decisions": [asdict(d) for d in dict.fromkeys(volume.decisions)],
        "labels": notes.labels,
        **describe_lesions(notes.localizers, frames, volume.affine_lps, volume.voxels.shape),
        "patient_key": patient_key(job.secret, series.patient_id),
    }


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


def _record(job: SeriesJob, layout: CacheLayout, folder: Path, error: Exception, seconds: float) -> Outcome:
    """Write down why there is no volume; take away the one that is there, if it should not be."""
    status, reason, detail = write_outcome(job, layout, *reason_of(error))
    if job.overwrite and status == "rejected":
        set_aside(layout.volume(job.source.uid), folder)
    return Outcome(job.source.uid, status, reason, detail, seconds, _size(job.source))


def write_outcome(job: SeriesJob, layout: CacheLayout, reason: Reason, detail: str) -> tuple[Status, Reason, str]:
    """Record what came of a series that was not built; return it. Of a failure beside a good volume nothing is left."""
    if reason in FAILURES and layout.volume(job.source.uid).exists():
        return "failed", reason, f"{detail}; the volume that was there is kept"
    return write_record(layout, job.spec, job.source.uid, reason, detail, job.notes), reason, detail


def write_record(
    layout: CacheLayout, spec: CacheSpec, uid: str, reason: Reason, detail: str, notes: SeriesNotes
) -> Status:
    """Write the record of a series that is not cached; return its status, which follows from the reason."""
    status: Literal["rejected", "failed"] = "failed" if reason in FAILURES else "rejected"
    record = Record(
        series_uid=uid,
        status=status,
        reason=str(reason),
        # What comes of a broken encoding can't stand in JSON.
        detail=detail.encode("utf-8", "replace").decode(),
        digest=spec.digest,
        **describe_uncached(notes, reason),
    )
    write_atomically(layout.record(uid), record.sealed().to_json())
    return status


def _size(source: SeriesSource) -> int:
    try:
        return source.size()
    except (OSError, StoreError):
        return 0
