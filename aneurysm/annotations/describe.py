"""Tables and masks -> the annotations of a volume: the same when it is built, and when they are corrected later."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aneurysm.annotations.frames import SourceFrame
from aneurysm.annotations.lesions import Lesion, UnplacedLesion, place_lesions
from aneurysm.annotations.vessels import PlacedGrid
from aneurysm.dicom.stack import Stack
from aneurysm.rawdata.tables import Localizer, SeriesNotes
from aneurysm.spec import CacheSpec
from aneurysm.volume.grid import target_grid


def describe_modality(named: str, inferred: str) -> dict[str, str]:
    """Return the entries of the modality: that which train.csv names, if it does, else the one by the DICOM tags."""
    return {"modality": named or inferred, "modality_source": "train.csv" if named else "dicom"}


def describe_lesions(
    localizers: Sequence[Localizer],
    frames: Sequence[SourceFrame],
    affine_lps: NDArray[np.float64],
    shape: Sequence[int],
) -> dict[str, tuple[Lesion, ...] | tuple[UnplacedLesion, ...]]:
    """Return the entries of the lesions in a volume; see `place_lesions`."""
    lesions, unplaced = place_lesions(localizers, frames, affine_lps, shape)
    return {"lesions": tuple(lesions), "unplaced_lesions": tuple(unplaced)}


def describe_uncached(notes: SeriesNotes, reason: str) -> dict[str, Any]:
    """Return the entries of the record of a series that is not cached, for ``reason``."""
    rows = [UnplacedLesion(r.location, "series_not_cached", str(reason), r.row) for r in notes.localizers]
    return {
        "modality": notes.modality,
        "modality_source": "train.csv" if notes.modality else "",
        "labels": notes.labels,
        "unplaced_lesions": tuple(rows),
    }


def whole_grid(stack: Stack, spec: CacheSpec) -> PlacedGrid:
    """Return the grid that covers all of ``stack``, whatever the region of ``spec``: masks are held against it."""
    whole = target_grid(stack, spec.model_copy(update={"region": None, "max_voxels": sys.maxsize}))
    return whole.affine_lps, whole.shape


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file. Raises `OSError`."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
