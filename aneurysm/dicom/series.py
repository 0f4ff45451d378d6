"""Headers of one series' files -> Series: its frames with geometry and pixel format, without pixels."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aneurysm.dicom.frame import MAX_FRAMES, UID, Decision, Frame, listed, modality_of
from aneurysm.dicom.header import DamagedHeaderError, Header, NotDicomError, read_header
from aneurysm.errors import Reason, SeriesRejectedError


@dataclass(slots=True)
class Series:
    """
    All frames of one series in no particular order, what the headers say of it, and what was left out so far.

    ``damaged`` counts the files that were slices, and whose header breaks off or has no pixels behind it.
    """

    uid: str
    frames: list[Frame]
    header: Header
    files: int
    bytes_in: int
    patient_id: str
    decisions: list[Decision] = field(default_factory=list)
    damaged: int = 0

    @property
    def modality(self) -> str:
        """DICOM's Modality: ``CT`` or ``MR``."""
        return modality_of(self.header)


def read_series(uid: str, files: Sequence[Path]) -> Series:
    """
    Read the headers of ``files``, which are taken to be one series.

    Raises
    ------
    SeriesRejectedError
        There is no image among the files, they are of several patients, studies or frames of reference, or they are of
        no use whatever their geometry.
    """
    from aneurysm.dicom.identity import of_one_subject, patient_id
    from aneurysm.dicom.multiframe import frames_of_file

    frames: list[Frame] = []
    headers: list[Header] = []
    unreadable: list[str] = []
    without_pixels: list[str] = []
    decisions: list[Decision] = []
    damaged = 0
    for number, path in enumerate(files, 1):
        name = f"file {number} of {len(files)} by name"
        try:
            header = read_header(path)
        except NotDicomError as error:
            unreadable.append(name)
            damaged += isinstance(error, DamagedHeaderError)
            continue
        sop_uid = str(header.get("SOPInstanceUID", ""))
        header.name = f"image {sop_uid}" if UID.fullmatch(sop_uid) else name
        if header.pixel_length == 0:
            without_pixels.append(header.name)
            damaged += "Rows" in header.values
            continue
        headers.append(header)

    headers, foreign = _of_one_series(uid, headers)
    headers, notes = of_one_subject(headers)
    decisions.extend(notes)
    for header in headers:
        made, notes = frames_of_file(header)
        frames.extend(made)
        decisions.extend(notes)
        if len(frames) > MAX_FRAMES:
            raise SeriesRejectedError(Reason.TOO_LARGE, f"more than {MAX_FRAMES} frames")

    if unreadable:
        decisions.append(Decision("unreadable_files", listed(unreadable)))
    if without_pixels:
        decisions.append(Decision("files_without_pixels", listed(without_pixels)))
    if foreign:
        decisions.append(Decision("foreign_files", f"{foreign.total()} files of {len(foreign)} other series"))
    decisions = _by_code(decisions)
    if not headers:
        raise SeriesRejectedError(
            Reason.NO_IMAGES,
            f"none of {len(files)} files is a readable DICOM image"
            + (f"; unreadable: {listed(unreadable)}" if unreadable else "")
            + (f"; without pixel data: {listed(without_pixels)}" if without_pixels else ""),
        )
    if not frames:
        raise SeriesRejectedError(Reason.UNSUPPORTED_PIXELS, "; ".join(d.detail for d in decisions))
    mosaics = sum("MOSAIC" in h.get("ImageType", ()) for h in headers)
    if mosaics:
        raise SeriesRejectedError(
            Reason.MOSAIC,
            f"{mosaics} of {len(headers)} files are Siemens mosaics: tiles of a volume, not slices",
        )
    first = _first_header(headers, frames)
    return Series(
        uid=uid,
        frames=frames,
        header=first,
        files=len(files),
        bytes_in=sum(h.file_size for h in headers),
        patient_id=patient_id(headers),
        decisions=decisions,
        damaged=damaged,
    )


def _of_one_series(uid: str, headers: list[Header]) -> tuple[list[Header], Counter[str]]:
    """Return the files of the series that a folder bears the UID of, and those of others, by their UID."""
    counts = Counter(str(h.values["SeriesInstanceUID"]) for h in headers if "SeriesInstanceUID" in h.values)
    if uid in counts:
        # Those without a UID are in the folder, so they belong to it.
        headers = [h for h in headers if h.get("SeriesInstanceUID", uid) == uid]
        del counts[uid]
        return headers, counts
    if len(counts) > 1:
        raise SeriesRejectedError(
            Reason.SEVERAL_VOLUMES, f"{counts.total()} files of {len(counts)} series, none of which is {uid}"
        )
    return headers, Counter()


def _first_header(headers: Sequence[Header], frames: Sequence[Frame]) -> Header:
    """Return the first header of the modality that most frames have: a screenshot must not speak for 300 slices."""
    placed = [f for f in frames if f.position is not None] or frames
    modality = Counter(f.modality for f in placed).most_common(1)[0][0]
    alike = [h for h in headers if modality_of(h) == modality]
    return min(alike, key=lambda h: (h.get("InstanceNumber", math.inf), str(h.get("SOPInstanceUID", "")), str(h.path)))


def _by_code(decisions: Sequence[Decision]) -> list[Decision]:
    """Return one decision for each code: a note on every one of a thousand files would fill the metadata."""
    details: dict[str, list[str]] = defaultdict(list)
    for decision in decisions:
        details[decision.code].append(decision.detail)
    return [Decision(code, listed(texts, separator="; ")) for code, texts in details.items()]
