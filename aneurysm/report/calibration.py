"""Temperatures: one number a label that its logits are divided by, so that 0.7 comes true in seven cases of ten.

Fitted on one half of the patients and tried on the other, both ways; the temperatures to use later are fitted on all.
The expected calibration error (ECE) has 15 bins of equal width; it is the mean over the series of |mean probability -
share of positives| of their bin (Guo et al., "On calibration of modern neural networks", ICML 2017).
Its interval allows for noise, which makes the error of right probabilities larger than 0; see `error_estimate`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aneurysm.labels import LABELS, UNKNOWN
from aneurysm.probability import apply_temperature, logit, sigmoid
from aneurysm.report.intervals import FEWEST, Estimate, error_estimate
from aneurysm.report.run_tables import Predictions

BINS = 15
TEMPERATURES = (0.05, 20.0)
"""Where a temperature is sought: classes that scores part perfectly have none, for it would go to 0."""


@dataclass(frozen=True)
class LabelCalibration:
    """
    One label: the temperature fitted on all series, and the error without and with those of the other half.

    ``missing`` says why there is no temperature.
    """

    label: str
    temperature: float | None
    ece_before: Estimate
    ece_after: Estimate
    missing: str = ""


@dataclass(frozen=True)
class CalibrationFit:
    """All labels; ``probabilities`` (n, 14) are calibrated with the other half's temperatures."""

    labels: tuple[LabelCalibration, ...]
    probabilities: NDArray[np.float64]


def fit_temperature(positive: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> float | None:
    """Return the temperature of the highest likelihood; None if it lies at an end of `TEMPERATURES`, or beyond."""
    from scipy.optimize import brentq

    signed = np.where(positive, 1.0, -1.0) * logit(probabilities)

    # The loss, mean log(1 + exp(-signed / temperature)), is convex in 1 / temperature: its slope rises.
    def slope(inverse: float) -> float:
        return float(-(signed * sigmoid(-inverse * signed)).mean())

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if not len(signed) or slope(low) >= 0 or slope(high) <= 0:
        return None
    return float(1 / brentq(slope, low, high))


def calibrate(predictions: Predictions, second_half: NDArray[np.bool_]) -> CalibrationFit:
    """Fit and try a temperature for each label; with too few of a class in a half, a label is left as it is."""
    calibrated = predictions.probabilities.copy()
    patients = np.unique(predictions.patients, return_inverse=True)[1]
    labels = []
    for i, label in enumerate(LABELS):
        known = predictions.truth[:, i] != UNKNOWN
        positive, raw = predictions.positive(i), predictions.probabilities[:, i]
        temperature, missing = None, ""
        halves = (known & ~second_half, known & second_half)
        if any(min(positive[half].sum(), (~positive[half]).sum()) < FEWEST for half in halves):
            # Two positives are parted from the rest by chance: their temperature would make 0.6 a certainty.
            missing = f"fewer than {FEWEST} positives or negatives in one half of the patients"
        else:
            first, second, temperature = (fit_temperature(positive[s], raw[s]) for s in (*halves, known))
            if first is None or second is None or temperature is None:
                temperature = None
                missing = "none from {:g} to {:g} fits".format(*TEMPERATURES)
            else:
                calibrated[~second_half, i] = apply_temperature(raw[~second_half], second)
                calibrated[second_half, i] = apply_temperature(raw[second_half], first)
        before = calibration_error(positive[known], raw[known], patients[known])
        after = calibration_error(positive[known], calibrated[known, i], patients[known])
        labels.append(LabelCalibration(label, temperature, before, Estimate(None) if missing else after, missing))
    return CalibrationFit(tuple(labels), calibrated)


def calibration_error(
    positive: NDArray[np.bool_], probabilities: NDArray[np.float64], patients: NDArray[np.int64]
) -> Estimate:
    """Return the expected calibration error of m observations; ``patients`` (m,) are numbers from 0."""
    if not len(positive):
        return Estimate(None)
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    excess = np.zeros((len(positive), BINS))
    excess[np.arange(len(positive)), bins] = probabilities - positive
    return error_estimate(excess, patients, int(patients.max()) + 1)
