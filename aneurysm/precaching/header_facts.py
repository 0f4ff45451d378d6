"""HeaderFacts: what the headers of a series say, and whether a run would reject it by them; no pixel is decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np

from aneurysm.dicom.series import Series
from aneurysm.dicom.stack import Stack
from aneurysm.errors import StoreError, reason_of
from aneurysm.precaching.build_series import patient_key
from aneurysm.precaching.header_check import check_source, planned_volume
from aneurysm.precaching.write_errors import ends_the_run
from aneurysm.processes.children import Limits, LostError, Runner
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.rawdata.tables import Localizer
from aneurysm.spec import CacheSpec
from aneurysm.types import Point, Triple, point
from aneurysm.volume.modality import inferred_modality

_LARGEST_MM: Final = 1000.0
"""A thickness beyond it is damage."""


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """
    What the headers of one series say; a few hundred bytes, so that those of all series can be held at once.

    Attributes
    ----------
    reason, detail
        Why a run would reject it, by the headers alone; empty if they are as they should be.
    files, frames, bytes
        Of what was read; 0 if nothing could be.
    patient
        Keyed hash of the PatientID, or "".
    modality
        By the tags, as `inferred_modality` names it; "" if it can't be known.
    syntaxes
        UIDs of the transfer syntaxes of its frames, sorted.
    plane, shape, spacing_mm
        Of the stack (its largest part): "", and zeros, if there is none. Both are by slice, row and column; the
        distance of slices is the median.
    length_mm
        From the first slice to the last, along the normal.
    thickness_mm
        SliceThickness, 0 if it is not given.
    images_with_points
        How many of the localizers asked about are in an image of the series.
    """

    uid: str
    reason: str = ""
    detail: str = ""
    files: int = 0
    frames: int = 0
    bytes: int = 0
    patient: str = ""
    modality: str = ""
    syntaxes: tuple[str, ...] = ()
    plane: str = ""
    shape: Triple = (0, 0, 0)
    spacing_mm: Point = (0.0, 0.0, 0.0)
    length_mm: float = 0.0
    thickness_mm: float = 0.0
    images_with_points: int = 0

    @property
    def field_mm(self) -> tuple[float, float]:
        """Height and width of a slice."""
        return self.shape[1] * self.spacing_mm[1], self.shape[2] * self.spacing_mm[2]


Asked = tuple[SeriesSource, tuple[Localizer, ...]]
"""A series, and the points that the tables give in its images."""


def read_header_facts(
    asked: Sequence[Asked], spec: CacheSpec, secret: bytes, workers: int, limits: Limits, processes: Runner
) -> Iterator[HeaderFacts]:
    """
    Yield the facts of each series, in order, read by ``workers`` of ``processes``.

    A series whose process dies, or takes more than ``limits``, is tried once more, and then has the reason.

    Parameters
    ----------
    secret
        Key of the hashes of patients.

    Raises
    ------
    StoreError
        An object store fails.
    """
    from aneurysm.processes.map_batches import map_batches  # joblib, which its processes don't need

    read = partial(_facts_of_each, spec=spec, secret=secret)
    # One at a time, so that the limits are those of a series.
    return map_batches(read, asked, 1, workers, partial(_lost, read, limits, processes), limits, processes)


def header_facts(source: SeriesSource, localizers: Sequence[Localizer], spec: CacheSpec, secret: bytes) -> HeaderFacts:
    """
    Return what the headers of a series say; see `read_header_facts`.

    Raises
    ------
    StoreError, NoSpaceError
        An object store fails; the scratch folder's disk is full.
    """
    facts = HeaderFacts(source.uid)
    try:
        check_source(source)
        with source.local_copy(headers_only=True) as local:
            facts = replace(facts, files=len(local.list_files()))
            series = local.read_headers()
        facts = replace(facts, **_of_series(series, localizers, secret))
        facts = replace(facts, modality=inferred_modality(series))
        stack, _ = planned_volume(series, spec)
        return replace(facts, **_of_stack(stack))
    except Exception as error:
        if ends_the_run(error) or isinstance(error, StoreError):
            raise
        reason, detail = reason_of(error)
    return replace(facts, reason=str(reason), detail=detail.encode("utf-8", "replace").decode())


def _facts_of_each(asked: Sequence[Asked], spec: CacheSpec, secret: bytes) -> list[HeaderFacts]:
    return [header_facts(source, localizers, spec, secret) for source, localizers in asked]


def _lost(read: Any, limits: Limits, processes: Runner, asked: Asked, _error: LostError) -> HeaderFacts:
    """Try a series once more: it may have been for what else the machine did."""
    try:
        facts: list[HeaderFacts] = processes.run(read, [asked], limits=limits)
    except LostError as error:
        return HeaderFacts(asked[0].uid, str(error.reason), f"{error.detail} (tried twice)")
    return facts[0]


def _of_series(series: Series, localizers: Sequence[Localizer], secret: bytes) -> dict[str, Any]:
    images = {frame.sop_uid for frame in series.frames}
    thickness = series.header.get("SliceThickness", 0.0)
    return {
        "files": series.files,
        "frames": len(series.frames),
        "bytes": series.bytes_in,
        "patient": patient_key(secret, series.patient_id),
        "syntaxes": tuple(sorted({frame.format.transfer_syntax for frame in series.frames})),
        "thickness_mm": thickness if 0 < thickness < _LARGEST_MM else 0.0,
        "images_with_points": sum(point.sop_uid in images for point in localizers),
    }


def _of_stack(stack: Stack) -> dict[str, Any]:
    geometry, fmt = stack.geometry, stack.frames[0].format
    spacing = np.round([geometry.slice_spacing_mm, *geometry.spacing_mm], 4)
    return {
        "plane": geometry.plane,
        "shape": (len(stack.frames), fmt.rows, fmt.columns),
        "spacing_mm": point(spacing),
        "length_mm": round(float(geometry.positions_mm[-1]), 4),
    }
