"""DICOM -> modality: CT or MR for the arithmetic, and for the manifest the kind of MR as well as the tags allow."""

from __future__ import annotations

import re
from typing import Final

from aneurysm.dicom.header import Header
from aneurysm.dicom.series import Series
from aneurysm.errors import Reason, SeriesRejectedError

_AFTER_CONTRAST: Final = re.compile(r"POST(?!ER)|\+C|GAD|GD|CONTRAST")
"""POSTERIOR FOSSA is a place."""


def dicom_modality(series: Series) -> str:
    """
    Return ``CT`` or ``MR``: the only distinction that is there at inference, and so the only one that changes a voxel.

    Raises
    ------
    SeriesRejectedError
        The series is of another modality, or names none.
    """
    named = series.modality
    if named in ("CT", "MR"):
        return named
    raise SeriesRejectedError(
        Reason.UNSUPPORTED_MODALITY,
        f"DICOM Modality is {named!r}; CT and MR are read" if named else "no Modality is given",
    )


def inferred_modality(series: Series) -> str:
    """
    Return train.csv's name of the kind of series where the tags tell it, else ``CT`` or ``MR``.

    A CT with contrast agent is a ``CTA``. Of MR: time of flight or phase contrast angiography, T2 by a long echo
    time, T1 with contrast agent. Series descriptions are used last: people write anything there.
    """
    header = series.header
    if dicom_modality(series) == "CT":
        text = _described(header)
        return "CTA" if "CTA" in text or "ANGIO" in text or header.get("ContrastBolusAgent") else "CT"
    return _inferred_mr(header)


def _inferred_mr(header: Header) -> str:
    text = _described(header)
    image_type = {t.upper() for t in header.get("ImageType", ())}
    name = str(header.get("SequenceName", "")).lower()
    if (
        str(header.get("AngioFlag", "")).upper() == "Y"
        or "TOF" in {str(v).upper() for v in header.get("SequenceVariant", ())}
        or "ANGIO" in image_type
        or name.startswith(("*fl3d1_ve", "fl_tof", "*fl_tof", "tof"))
        or any(word in text for word in ("TOF", "MRA", "ANGIO"))
    ):
        return "MRA"
    echo, repetition = header.get("EchoTime", 0.0), header.get("RepetitionTime", 0.0)
    inversion = header.get("InversionTime", 0.0)
    if echo >= 60 and repetition >= 1500 and not inversion > 1200:
        return "MRI T2"
    t1 = (0 < echo < 30 and 0 < repetition < 1200) or "T1" in text
    contrast = header.get("ContrastBolusAgent") or _AFTER_CONTRAST.search(text)
    if t1 and contrast:
        return "MRI T1post"
    words = text.replace("_", " ").replace("-", " ").split()
    if not echo and "T2" in words and "FLAIR" not in text:
        return "MRI T2"
    return "MR"


def _described(header: Header) -> str:
    return f"{header.get('SeriesDescription', '')} {header.get('ProtocolName', '')}".upper()
