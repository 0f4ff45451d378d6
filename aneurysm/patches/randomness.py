"""(seed, epoch, index) -> randomness: a sample is the same whoever draws it, in whatever order, after any restart."""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What randomness is used for: streams of one sample are independent of each other."""

    PLAN = 0
    PLACE = 1
    REPLACE = 2


def generator(seed: int, epoch: int, index: int, stream: Stream) -> np.random.Generator:
    """
    Return the random numbers of one sample.

    A counter-based generator (Philox, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) starts
    anywhere at no cost; seeding a Mersenne Twister for each sample would take longer than drawing from it, and close
    seeds would give related numbers.

    Raises
    ------
    ValueError
        A number is out of range: seed below 0 or from 2^64, epoch from 2^24, index from 2^40.
    """
    if not (0 <= seed < 1 << 64 and 0 <= epoch < 1 << 24 and 0 <= index < 1 << 40):
        raise ValueError(f"seed {seed}, epoch {epoch}, index {index}: out of range")
    key = np.array([seed, epoch << 40 | index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=int(stream) << 192))


def augmentation_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed, from 0 to 2^63 - 1, of all that augmentation draws for one sample."""
    digest = hashlib.blake2b(f"{seed} {epoch} {index}".encode(), digest_size=8, person=b"augment").digest()
    return int.from_bytes(digest, "little") >> 1
