"""Prediction: the answer for one series, with its places in the patient and in the original images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aneurysm.annotations.source_pixel import SourcePixel, source_pixel
from aneurysm.dicom.frame import Decision
from aneurysm.dicom.stack import Stack
from aneurysm.inference.calibration import Adjustment
from aneurysm.inference.lesion_map import LesionMap
from aneurysm.inference.read_series import ReadSeries
from aneurysm.labels import LABELS, SITES
from aneurysm.windows.candidates import Candidate
from aneurysm.windows.predict import SeriesPrediction


@dataclass(frozen=True)
class LocatedCandidate:
    """
    A place where there may be an aneurysm.

    Attributes
    ----------
    site
        One of `aneurysm.labels.SITES`.
    probability
        From 0 to 1.
    lps_mm
        (x, y, z) in patient space.
    zyx
        Voxel coordinates in the cached volume.
    source
        Where the original series shows it; None for a cached volume, which does not say.
    """

    site: str
    probability: float
    lps_mm: tuple[float, float, float]
    zyx: tuple[float, float, float]
    source: SourcePixel | None


@dataclass(frozen=True)
class Prediction:
    """
    The answer for one series. Not for clinical use.

    Attributes
    ----------
    series_uid
        The series.
    probabilities
        By label, in the order of `aneurysm.labels.LABELS`; calibrated and gated, if the predictor does that.
    logits
        (14,) float32, as the model gives them: neither calibrated nor gated.
    candidates
        The most probable first.
    decisions
        What was decided while the series became a volume: slices left out, geometry assumed.
    lesion_map
        Of the label that was asked for; None if none was.
    """

    series_uid: str
    probabilities: dict[str, float]
    logits: NDArray[np.float32]
    candidates: list[LocatedCandidate]
    decisions: list[Decision]
    lesion_map: LesionMap | None = None


def prediction_of(answer: SeriesPrediction, read: ReadSeries, adjust: Adjustment) -> Prediction:
    """Return the answer for a series that was read, from the model's."""
    return Prediction(
        answer.series_uid,
        dict(zip(LABELS, adjust(answer.probabilities), strict=True)),
        answer.logits,
        [_located(c, read.stack) for c in answer.candidates],
        read.decisions,
        None if answer.lesion_map is None else LesionMap(answer.lesion_map, read.volume.affine_lps, read.stack),
    )


def is_finite(prediction: Prediction) -> bool:
    """Return True if all is a number: with fp16, or weights that training has spoilt, it may not be."""
    return bool(np.isfinite([*prediction.probabilities.values(), *prediction.logits]).all())


def _located(candidate: Candidate, stack: Stack | None) -> LocatedCandidate:
    pixel = None if stack is None else source_pixel(stack, candidate.lps_mm)
    return LocatedCandidate(SITES[candidate.site], candidate.probability, candidate.lps_mm, candidate.zyx, pixel)
