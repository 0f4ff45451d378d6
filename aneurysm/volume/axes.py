"""Axes of an array or an acquisition -> which axis of the patient each is closest to. Loads nothing of DICOM."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import NDArray


def closest_axes(directions: NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """
    Assign three orthogonal directions (rows of a (3, 3) array, LPS) to Superior, Posterior and Left.

    Returns for (z, y, x) the index of the direction, and whether it points the other way. The assignment with the
    largest sum of cosines is taken as a whole: axis by axis, two directions of an oblique volume could claim the
    same.
    """
    patient = np.eye(3)[::-1]  # z, y, x
    cosines = directions @ patient.T
    order = max(permutations(range(3)), key=lambda p: sum(abs(cosines[p[i], i]) for i in range(3)))
    flipped = tuple(bool(cosines[order[i], i] < 0) for i in range(3))
    return (order[0], order[1], order[2]), (flipped[0], flipped[1], flipped[2])
