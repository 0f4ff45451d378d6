"""Metadata of volumes that tests write without a series: all entries, of which a test changes what it is about."""

from __future__ import annotations

from typing import Any

import numpy as np

from aneurysm.annotations.lesions import Lesion, UnplacedLesion
from aneurysm.cache.metadata import SourceEntry, VolumeMetadata
from aneurysm.volume.blocks import PackedSurvey, Survey
from aneurysm.volume.intensity import Intensity

IDENTITY = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
HU = Intensity("HU", 1.0, 0.0, (-1000.0, 2000.0), (-1000.0, 2000.0), {})
SOURCE = SourceEntry(
    modality="CTA", shape=(1, 1, 1), spacing_mm=(1.0, 1.0, 1.0), orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0), plane="",
    tilt_deg=0.0, other_parts=(), transfer_syntaxes=(), files=1, frames=1, bytes=1, acquisition={},
)  # fmt: skip


def all_head(shape: tuple[int, ...], edge: int = 8) -> PackedSurvey:
    """Blocks of which all are head, and none vessels."""
    head = np.ones([-(-n // edge) for n in shape], bool)
    return Survey((edge, edge, edge), head, np.zeros_like(head)).pack()


def metadata(
    uid: str = "1.2.3",
    shape: tuple[int, ...] = (8, 8, 8),
    *,
    affine: Any = IDENTITY,
    lesions: tuple[Lesion, ...] = (),
    unplaced: tuple[UnplacedLesion, ...] = (),
    **changes: Any,
) -> VolumeMetadata:
    """Metadata of a volume of ``shape``, in HU, without labels, all of it head."""
    entries: dict[str, Any] = {
        "affine_lps": np.asarray(affine, float).tolist(),
        "series_uid": uid,
        "modality": "CTA",
        "modality_source": "dicom",
        "spec": "rsna-1mm",
        "digest": "",
        "source": SOURCE,
        "decisions": (),
        "labels": None,
        "lesions": lesions,
        "unplaced_lesions": unplaced,
        "patient_key": "",
        "intensity": HU,
        "blocks": all_head(shape),
    }
    return VolumeMetadata(**{**entries, **changes})
