"""Measured numbers -> which of them are the same. Never compared as text, nor with whichever file comes first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

ORIENTATION_TOLERANCE: Final = 2e-3
"""
Largest difference of a direction cosine between slices of one stack that are alike: 0.11 degrees, a fifth of a
millimetre on the far side of a head. Writers that round to three decimals are 5e-4 off; scanners that follow the
patient's motion turn each slice a little further than the one before.
"""
ORIENTATION_SPREAD: Final = 9e-3
"""How far a slice may be turned against the middle of its stack, 0.5 degrees: all are resampled on the same axes."""
SPACING_TOLERANCE: Final = 5e-3
SPACING_ROUNDING_MM: Final = 0.005
"""
Pixel spacings are the same if they differ by no more than both: by what rounding to two decimals leaves (1.95 for
1.953125), and by 0.5 %, which is a millimetre over a head. Fields of view are set in larger steps.
"""
SAME_PLACE_MM: Final = 0.1
"""
Slices that lie closer together than this are at one place: positions rounded to a tenth of a millimetre are up to half
of it off. The thinnest slices of head CT lie 0.2 mm apart or more.
"""
SAME_PLACE_FRACTION: Final = 0.2
"""... and closer than this share of the stack's usual gap."""
TAG_TOLERANCE: Final = 0.01
TAG_ROUNDING: Final = 0.01
"""
Echo times, inversion times, b-values and tube voltages are the same if they differ by no more than 1 %, or 0.01 of
their unit (3.4 and 3.404 ms are one echo). Echoes of one acquisition differ by a tenth and more.
"""


def same_spacing(values: Sequence[float]) -> list[int]:
    """Return for each pixel spacing, in mm along one axis, the number of its group."""
    return _grouped(values, SPACING_TOLERANCE, SPACING_ROUNDING_MM, both=True)


def same_tag(values: Sequence[float]) -> list[int]:
    """Return for each echo time, tube voltage and the like the number of its group."""
    return _grouped(values, TAG_TOLERANCE, TAG_ROUNDING, both=False)


def _grouped(values: Sequence[float], fraction: float, rounding: float, *, both: bool) -> list[int]:
    """Group values of which each is within tolerance of the next, and all within twice of it of the smallest."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    numbers, number = [0] * len(values), 0
    smallest = previous = values[order[0]] if order else 0.0
    for i in order:
        value = values[i]
        limits = (fraction * max(abs(value), abs(previous)), rounding)
        limit = (min(limits) if both else max(limits)) * (1 + 1e-9)
        if value - previous > limit or value - smallest > 2 * limit:
            number, smallest = number + 1, value
        numbers[i], previous = number, value
    return numbers


def same_orientation(cosines: NDArray[np.float64]) -> list[int]:
    """
    Return for each of (n, 6) direction cosines the number of its group.

    Within a group each slice is linked to the others by steps of no more than the tolerance: an orientation that drifts
    is one, whatever the first and the last.
    """
    distinct, inverse = np.unique(cosines, axis=0, return_inverse=True)
    numbers = np.full(len(distinct), -1)
    for number, start in enumerate(range(len(distinct))):
        if numbers[start] >= 0:
            continue
        pending = [start]
        numbers[start] = number
        while pending:
            ungrouped = np.flatnonzero(numbers < 0)
            near = np.abs(distinct[ungrouped] - distinct[pending.pop()]).max(axis=1) <= ORIENTATION_TOLERANCE
            numbers[ungrouped[near]] = number
            pending.extend(ungrouped[near].tolist())
    return [int(n) for n in numbers[inverse.ravel()]]


def shown(values: Sequence[float], decimals: int) -> list[str]:
    """Return ``values`` as text with ``decimals`` digits, or as many more as it takes to tell different ones apart."""
    for digits in range(decimals, 12):
        texts = [f"{value:.{digits}f}" for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts
