"""Shapes and points that many modules name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Triple = tuple[int, int, int]
"""Voxels along (z, y, x): an index, a shape."""
Point = tuple[float, float, float]
"""A place or a direction in three numbers: (x, y, z) in LPS mm, or (z, y, x) in voxels, as the name says."""


def triple(values: Iterable[Any]) -> Triple:
    """Return three whole numbers of an array as a tuple."""
    z, y, x = (int(value) for value in values)
    return z, y, x


def point(values: Iterable[Any]) -> Point:
    """Return three numbers, or texts that hold numbers, as a tuple of floats."""
    first, second, third = (float(value) for value in values)
    return first, second, third
