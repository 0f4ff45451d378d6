"""Temperatures: one number a label that its logits are divided by, so that 0.7 comes true in seven cases of ten.

Fitted on one half of the patients and tried on the other, both ways; the temperatures to use later are fitted on all.
The expected calibration error (ECE) has 15 bins of equal width; it is the mean over the series of |mean probability -
share of positives| of their bin (Guo et al., "On calibration of modern neural networks", ICML 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aneurysm.cache.catalog import UNKNOWN
from aneurysm.labels import LABELS
from aneurysm.report.bootstrap import Estimate, Weights, estimate
from aneurysm.report.combine import logit, sigmoid
from aneurysm.report.run import Predictions

BINS = 15
TEMPERATURES = (0.05, 20.0)
"""Where a temperature is sought; classes that scores part perfectly would drive it to 0."""


@dataclass(frozen=True)
class LabelCalibration:
    """One label: the temperature fitted on all series, and the error without and with those of the other half."""

    label: str
    temperature: float | None
    ece_before: Estimate
    ece_after: Estimate


@dataclass(frozen=True)
class Calibration:
    """All labels; ``probabilities`` (n, 14) are calibrated with the other half's temperatures."""

    labels: tuple[LabelCalibration, ...]
    probabilities: NDArray[np.float64]


def fit_temperature(positive: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> float | None:
    """Return the temperature of the highest likelihood, within `TEMPERATURES`; None if there is one class only."""
    from scipy.optimize import minimize_scalar

    if positive.all() or not positive.any():
        return None
    signed = np.where(positive, 1.0, -1.0) * logit(probabilities)

    # Convex in 1 / temperature.
    def loss(inverse: float) -> float:
        return float(np.logaddexp(0.0, -inverse * signed).mean())

    low, high = TEMPERATURES
    found = minimize_scalar(loss, bounds=(1 / high, 1 / low), method="bounded", options={"xatol": 1e-5})
    return float(1 / found.x)


def apply_temperature(probabilities: NDArray[np.float64] | np.float64, temperature: float) -> NDArray[np.float64]:
    """Return the probabilities of logits divided by ``temperature``."""
    return sigmoid(logit(probabilities) / temperature)


def calibrate(predictions: Predictions, second_half: NDArray[np.bool_], weights: Weights) -> Calibration:
    """Fit and try a temperature for each label; without both classes in both halves, a label is left as it is."""
    calibrated = predictions.probabilities.copy()
    labels = []
    for i, label in enumerate(LABELS):
        known = predictions.truth[:, i] != UNKNOWN
        positive, raw = predictions.positive(i), predictions.probabilities[:, i]
        temperature = None
        halves = (known & ~second_half, known & second_half)
        fitted = [fit_temperature(positive[half], raw[half]) for half in halves]
        if fitted[0] is not None and fitted[1] is not None:
            temperature = fit_temperature(positive[known], raw[known])
            calibrated[~second_half, i] = apply_temperature(raw[~second_half], fitted[1])
            calibrated[second_half, i] = apply_temperature(raw[second_half], fitted[0])
        before = calibration_error(positive[known], raw[known], weights[:, known])
        after = calibration_error(positive[known], calibrated[known, i], weights[:, known])
        labels.append(
            LabelCalibration(label, temperature, before, after if temperature is not None else Estimate(None))
        )
    return Calibration(tuple(labels), calibrated)


def calibration_error(positive: NDArray[np.bool_], probabilities: NDArray[np.float64], weights: Weights) -> Estimate:
    """Return the expected calibration error of m observations, with ``weights`` (samples, m) for its interval."""
    if not len(positive):
        return Estimate(None)
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    excess = np.zeros((len(positive), BINS))
    excess[np.arange(len(positive)), bins] = probabilities - positive
    drawn = weights.astype(np.float64)
    with np.errstate(invalid="ignore"):
        samples = np.abs(drawn @ excess).sum(axis=1) / drawn.sum(axis=1)
    return estimate(float(np.abs(excess.sum(axis=0)).sum() / len(positive)), samples)
