"""Headers of one series' files -> Series: its frames with geometry and pixel format, without pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aneurysm.dicom.header import Header, NotDicomError, read_header
from aneurysm.errors import Reason, SeriesRejectedError

MAX_MATRIX: Final = 8192
"""Rows or columns beyond this are taken for damage: the largest medical CT or MR matrix is 2,048."""
MAX_FRAMES: Final = 20_000
CONTRAST: Final = (
    "ImageType",
    "EchoTime",
    "EchoNumbers",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "KVP",
    "InversionTime",
)
"""Attributes of which each value makes another picture of the same place."""
TELLING: Final = (*CONTRAST, "TriggerTime", "AcquisitionNumber")
"""Attributes by which volumes in one series differ, in the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Something that was decided while a series became a volume, recorded with the volume."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How the pixels of a frame are stored; the names are DICOM's."""

    rows: int
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class Frame:
    """
    One slice: where its pixels are, and where it lies in the patient.

    ``position`` is the centre of the first voxel (LPS mm), ``orientation`` the direction of a row (increasing column)
    then of a column (increasing row), ``spacing_mm`` the distance between rows and between columns. ``tells_apart``
    holds (name, value) pairs of the attributes by which volumes of one series differ: echo, time point, type of
    image.
    """

    path: Path
    index: int
    sop_uid: str
    format: PixelFormat
    pixel_offset: int | None
    pixel_length: int
    pixel_vr: str
    position: tuple[float, float, float] | None
    orientation: tuple[float, float, float, float, float, float] | None
    spacing_mm: tuple[float, float] | None
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    instance_number: float
    tells_apart: tuple[tuple[str, str], ...] = ()
    frames_in_file: int = 1

    @property
    def name(self) -> str:
        """How messages call this frame: the file's name, and the frame's number where the file has several."""
        return self.path.name if self.frames_in_file == 1 else f"{self.path.name} frame {self.index}"


@dataclass(slots=True)
class Series:
    """All frames of one series in no particular order, what the headers say of it, and what was left out so far."""

    uid: str
    frames: list[Frame]
    header: Header
    files: int
    bytes_in: int
    patient_id: str
    decisions: list[Decision] = field(default_factory=list)

    @property
    def modality(self) -> str:
        """DICOM's Modality: ``CT`` or ``MR``."""
        return str(self.header.get("Modality", ""))


def read_series(uid: str, files: Sequence[Path]) -> Series:
    """
    Read the headers of ``files``, which are taken to be one series.

    Raises
    ------
    SeriesRejectedError
        There is no image among the files, or it is of no use whatever its geometry.
    """
    from aneurysm.dicom.multiframe import frames_of_file

    frames: list[Frame] = []
    headers: list[Header] = []
    unreadable: list[str] = []
    without_pixels: list[str] = []
    decisions: list[Decision] = []
    foreign = Counter[str]()
    for path in files:
        try:
            header = read_header(path)
        except NotDicomError:
            unreadable.append(path.name)
            continue
        if header.pixel_length == 0:
            without_pixels.append(path.name)
            continue
        headers.append(header)

    # A folder that bears the series' UID may hold a stray file of another series.
    named = [str(h.get("SeriesInstanceUID", uid)) for h in headers]
    if uid in named:
        foreign.update(n for n in named if n != uid)
        headers = [h for h, n in zip(headers, named, strict=True) if n == uid]
    for header in headers:
        made, notes = frames_of_file(header)
        frames.extend(made)
        decisions.extend(notes)
        if len(frames) > MAX_FRAMES:
            raise SeriesRejectedError(Reason.TOO_LARGE, f"more than {MAX_FRAMES} frames")

    if unreadable:
        decisions.append(Decision("unreadable_files", _some(unreadable)))
    if without_pixels:
        decisions.append(Decision("files_without_pixels", _some(without_pixels)))
    if foreign:
        decisions.append(Decision("foreign_files", f"{foreign.total()} files of {len(foreign)} other series"))
    if not headers:
        raise SeriesRejectedError(
            Reason.NO_IMAGES,
            f"none of {len(files)} files is a readable DICOM image"
            + (f"; unreadable: {_some(unreadable)}" if unreadable else "")
            + (f"; without pixel data: {_some(without_pixels)}" if without_pixels else ""),
        )
    if not frames:
        raise SeriesRejectedError(Reason.UNSUPPORTED_PIXELS, "; ".join(d.detail for d in decisions))
    mosaics = sum("MOSAIC" in h.get("ImageType", ()) for h in headers)
    if mosaics:
        raise SeriesRejectedError(
            Reason.MOSAIC,
            f"{mosaics} of {len(headers)} files are Siemens mosaics: tiles of a volume, not slices",
        )
    first = min(headers, key=lambda h: (h.get("InstanceNumber", 0.0), str(h.path)))
    return Series(
        uid=uid,
        frames=frames,
        header=first,
        files=len(files),
        bytes_in=sum(h.file_size for h in headers),
        patient_id=str(first.get("PatientID", "")),
        decisions=decisions,
    )


def _some(names: Sequence[str], limit: int = 5) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
