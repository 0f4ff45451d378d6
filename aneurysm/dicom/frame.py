"""What is known of one slice before its pixels are read, and the decisions that are recorded of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # stage 2 reads decisions, and loads no pydicom
    from aneurysm.dicom.header import Header

MAX_MATRIX: Final = 8192
"""Rows or columns beyond this are taken for damage: the largest medical CT or MR matrix is 2,048."""
MAX_FRAMES: Final = 20_000
_LARGEST_RESCALE: Final = 1e9
UID: Final = re.compile(r"[0-9]+(\.[0-9]+)+")
_BY_SOP_CLASS: Final = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
}
CONTRAST_TAGS: Final = (
    "ImageType",
    "EchoTime",
    "EchoNumbers",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "KVP",
    "InversionTime",
)
"""Attributes of which each value makes another picture of the same place."""
DISTINGUISHING_TAGS: Final = (*CONTRAST_TAGS, "TriggerTime", "AcquisitionNumber")
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

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame without compression."""
        return self.rows * self.columns * self.samples * self.bits_allocated // 8

    @property
    def is_monochrome(self) -> bool:
        """True if a pixel is one value, from dark to bright or the other way round."""
        return self.samples == 1 and self.photometric.startswith("MONOCHROME")


@dataclass(frozen=True, slots=True)
class Rescale:
    """
    How a header turns stored values into physical ones; what it does not say is None.

    ``unit`` is RescaleType, or the unit of a real world value mapping, which stands for an absent rescale: in capitals,
    HU by whichever of its names, and empty where it says nothing.
    """

    slope: float | None = None
    intercept: float | None = None
    unit: str = ""
    real_world: bool = False

    @property
    def present(self) -> bool:
        """True if the header has a slope or an intercept."""
        return self.slope is not None or self.intercept is not None

    @property
    def line(self) -> tuple[float, float]:
        """Slope and intercept as they are applied: 1 and 0 where there is none, and 1 for a slope of 0."""
        return self.slope or 1.0, self.intercept or 0.0

    @property
    def is_absurd(self) -> bool:
        """True if they are of no size that a scanner writes: results would overflow, and say nothing."""
        slope, intercept = self.line
        return not 1 / _LARGEST_RESCALE < abs(slope) < _LARGEST_RESCALE or abs(intercept) > _LARGEST_RESCALE


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """
    One slice: where its pixels are, and where it lies in the patient.

    ``position`` is the centre of the first voxel (LPS mm), ``orientation`` the direction of a row (increasing column)
    then of a column (increasing row), ``spacing_mm`` the distance between rows and between columns.
    ``distinguishing_tags`` holds (name, value) pairs of the attributes by which volumes of one series differ: echo,
    time point, type of image; what is a number is a float. ``acquired_s`` and ``created_s`` are AcquisitionTime and
    ContentTime in seconds since midnight: they serve to tell acquisitions apart, and appear in no message or metadata.
    ``rescale`` is what the header says, which may be wrong: `aneurysm.volume.stored_values` decides. ``file_name`` is
    how messages call the file: what identifies it, and never its name, which may be a patient's.
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
    rescale: Rescale
    padding: tuple[int, int] | None
    instance_number: float
    distinguishing_tags: tuple[tuple[str, TagValue], ...] = ()
    acquired_s: float | None = None
    created_s: float | None = None
    frames_in_file: int = 1
    file_name: str = "the file"
    modality: str = ""

    @property
    def name(self) -> str:
        """How messages call this frame: its file, and the frame's number where the file has several."""
        return self.file_name if self.frames_in_file == 1 else f"{self.file_name} frame {self.index}"

    @property
    def key(self) -> FrameKey:
        """What tells this frame from any other: a SOPInstanceUID is that of all frames of a file, or even of files."""
        return self.path, self.index


FrameKey = tuple[Path, int]
TagValue = str | float


def modality_of(header: Header) -> str:
    """Return DICOM's Modality in capitals, or where it is absent what the SOP class says, or ""."""
    named = str(header.get("Modality", "")).upper()
    return named or _BY_SOP_CLASS.get(str(header.get("SOPClassUID", "")), "")


def listed(names: Sequence[str], limit: int = 5, separator: str = ", ") -> str:
    """Return the first of ``names`` as text, and how many more there are."""
    rest = len(names) - limit
    return separator.join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
