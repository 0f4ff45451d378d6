"""FileFacts: what a scan learns of each file of a tree, by its header."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aneurysm.dicom.header import DamagedHeaderError, NotDicomError, read_header
from aneurysm.errors import Reason
from aneurysm.processes.children import LostError


@dataclass(frozen=True, slots=True)
class FileFacts:
    """
    What a scan learns of one file of a tree.

    Attributes
    ----------
    kind
        What it is if it has no image: "not DICOM", "DICOM without image", "damaged DICOM", "folder"; else "".
    series_uid, sop_uid
        Of its header, or "".
    is_slice
        It has, or once had, the rows of an image.
    lost
        Reason and detail if it can't be read.
    """

    kind: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    is_slice: bool = True
    lost: tuple[Reason, str] | None = None


def lost_facts(_file: object, error: LostError) -> FileFacts:
    """Return the facts of a file that ended the process which read it, or took too long."""
    return FileFacts(lost=(error.reason, error.detail))


def file_facts(paths: Iterable[str]) -> list[FileFacts]:
    """Return what each file is."""
    return [_facts(path) for path in paths]


def _facts(path: str) -> FileFacts:
    try:
        header = read_header(Path(path))
    except DamagedHeaderError as error:
        values, kind = error.values, "damaged DICOM"
    except NotDicomError:
        return FileFacts("not DICOM", is_slice=False)
    except OSError as error:
        detail = f"{type(error).__name__}: {error.strerror or 'input/output error'}"
        return FileFacts("folder" if Path(path).is_dir() else "", lost=(Reason.READ_ERROR, detail))
    else:
        values, kind = header.values, "" if header.pixel_length else "DICOM without image"
    series_uid, sop_uid = (str(values.get(k, "")) for k in ("SeriesInstanceUID", "SOPInstanceUID"))
    return FileFacts(kind, series_uid, sop_uid, is_slice=not kind or "Rows" in values)
