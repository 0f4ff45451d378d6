"""Volumes in memory for views: random voxels, and a survey of what is head and what looks like a vessel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from aneurysm.volume.blocks import Survey
from aneurysm.windows.grid import MemoryVolume
from tests.support.metadata import HU

AIR = -1000
STRAIGHT = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])


def head(shape, *, head=None, bright=None, dark=None, seed=0, unit="HU", voxels=None, uid="1.2.3") -> MemoryVolume:
    """A volume of ``shape`` that is head as a whole, unless blocks (z, y, x) of 8 voxels are given."""
    blocks = tuple(-(-n // 8) for n in shape)
    found = Survey(
        (8, 8, 8),
        np.ones(blocks, bool) if head is None else head,
        np.zeros(blocks, bool) if bright is None else bright,
        dark,
    )
    if voxels is None:
        voxels = np.random.default_rng(seed).integers(-100, 900, shape, np.int16)
    return MemoryVolume(
        uid, voxels, AIR, STRAIGHT, found, replace(HU, unit=unit, window=(-100.0, 900.0)), stored_survey=found
    )
