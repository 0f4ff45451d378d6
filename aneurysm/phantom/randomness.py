"""Named random streams: every number depends on (seed, series, name) only, never on what was drawn before it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Streams:
    """
    The random streams of one series.

    Adding a draw to one stream leaves all others as they were, and slices may be drawn in any order.
    """

    seed: int
    index: int

    def __call__(self, name: str, number: int = 0) -> np.random.Generator:
        """Return the generator of a name, and of a number within it (a slice, say), at its start."""
        entropy = (self.seed, self.index + 1, zlib.crc32(name.encode()), number)
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
