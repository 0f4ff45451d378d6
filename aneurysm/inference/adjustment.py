"""Adjustment: the probabilities of a model -> those that are given: calibrated, then gated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aneurysm.errors import UsageError
from aneurysm.inference.calibration import Calibration
from aneurysm.labels import SITES


@dataclass(frozen=True)
class Adjustment:
    """
    What is done to a series' probabilities; nothing, as it stands.

    Attributes
    ----------
    calibration
        Temperatures.
    gate
        alpha: the probability of each site is multiplied by that of "Aneurysm Present" to the power of alpha. At 0
        nothing changes; at 1 a site is as probable as it is *and* there is an aneurysm, were the two independent.

    Raises
    ------
    UsageError
        ``gate`` is negative or not finite.
    """

    calibration: Calibration | None = None
    gate: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gate) and self.gate >= 0):
            raise UsageError(f"the gate is {self.gate:g}: give 0 (off) or more")

    def __call__(self, probabilities: NDArray[np.float64]) -> list[float]:
        """Return the 14 probabilities to be given of (14,) those of a model."""
        given = probabilities.astype(np.float64)
        if self.calibration is not None:
            given = self.calibration.calibrated(given)
        given[: len(SITES)] *= given[len(SITES)] ** self.gate
        found: list[float] = given.tolist()
        return found
