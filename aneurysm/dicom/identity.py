"""Headers of one SeriesInstanceUID -> those of one patient, study and frame of reference. Never slices of two heads."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from aneurysm.dicom.frame import MAX_FRAMES, UID, Decision
from aneurysm.dicom.header import Header
from aneurysm.errors import Reason, SeriesRejectedError

MAX_FOREIGN_FRACTION: Final = 0.1
"""
Up to this share of the frames, those of another patient, study or frame of reference are strays, and are left out.
More of them may be a head of its own, and which of the two the labels of the UID are about can't be known.
"""
_PLACEHOLDER: Final = re.compile(
    r"(anon\w*|de-?id\w*|removed|redacted|unknown|none|null|nil|n/?a|blank|empty|no ?id|patient|subject|test|0+|x+"
    r"|[-_.?*]+)",
    re.IGNORECASE,
)
"""What anonymisers write in the place of a PatientID: it says no more than an empty one."""


def of_one_subject(headers: Sequence[Header]) -> tuple[list[Header], list[Decision]]:
    """
    Return the headers of the patient, study and frame of reference that most frames are of, and what was decided.

    Some anonymisers give all files of a study, or of all studies, one SeriesInstanceUID. A value that is absent or a
    placeholder contradicts none, and neither do values of which every file has one of its own.

    Raises
    ------
    SeriesRejectedError
        More than a few strays are of another patient, study or frame of reference.
    """
    remaining, decisions = list(headers), []
    for what, value_of in _IDENTITY.items():
        frames: Counter[str] = Counter()
        files: dict[str, list[Header]] = defaultdict(list)
        for header in remaining:
            if value := value_of(header):
                frames[value] += _frame_count(header)
                files[value].append(header)
        if len(frames) < 2:
            continue
        if len(frames) > 2 and max(frames.values()) == 1:
            decisions.append(Decision("identity_per_file", f"{len(frames)} frames are of as many {what}: not believed"))
            continue
        main = min(frames, key=lambda value: (-frames[value], value))
        total = sum(_frame_count(header) for header in remaining)
        others = frames.total() - frames[main]
        if others > MAX_FOREIGN_FRACTION * total:
            counts = " and ".join(str(n) for n in sorted(frames.values(), reverse=True)[:4])
            raise SeriesRejectedError(
                Reason.SEVERAL_SUBJECTS,
                f"{total} frames with this SeriesInstanceUID are of {len(files)} {what}: {counts} frames",
            )
        foreign = {id(header) for value in files if value != main for header in files[value]}
        remaining = [header for header in remaining if id(header) not in foreign]
        decisions.append(Decision("foreign_files", f"{len(foreign)} files of other {what}"))
    return remaining, decisions


def patient_id(headers: Sequence[Header]) -> str:
    """Return the PatientID that most files have, a placeholder only where there is nothing else."""
    counts = Counter(str(h.get("PatientID", "")).strip() for h in headers)
    return min(counts, key=lambda value: (_is_placeholder(value), -counts[value], value), default="")


def _is_placeholder(patient: str) -> bool:
    return not patient or _PLACEHOLDER.fullmatch(patient) is not None


def _patient(header: Header) -> str:
    # Case and padding are the writer's: p-7 and P-7 are one patient.
    value = str(header.get("PatientID", "")).strip().casefold()
    return "" if _is_placeholder(value) else value


def _uid(keyword: str) -> Callable[[Header], str]:
    def value_of(header: Header) -> str:
        value = str(header.get(keyword, ""))
        return value if UID.fullmatch(value) else ""

    return value_of


_IDENTITY: Final[dict[str, Callable[[Header], str]]] = {
    "patients": _patient,
    "frames of reference": _uid("FrameOfReferenceUID"),
    "studies": _uid("StudyInstanceUID"),
}
"""In the order in which they are tried: what a message calls them, and how to take the value of a header."""


def _frame_count(header: Header) -> int:
    return min(max(int(header.get("NumberOfFrames", 1)), 1), MAX_FRAMES)
