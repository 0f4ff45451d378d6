"""Plan of an epoch -> pos_weight: how many patches without a label there are for each one with it."""

from __future__ import annotations

from typing import Final

import numpy as np

from aneurysm.cache.cache import Cache
from aneurysm.labels import LABELS
from aneurysm.patches.plan import Plan

MOST: Final = 100.0
"""A label of a handful of lesions would otherwise make the loss jump whenever one of them is drawn."""


def positive_weights(cache: Cache, plan: Plan, patch: tuple[int, int, int]) -> tuple[float, ...]:
    """
    Return for the 14 labels the patches without over the patches with, in the plan's first epoch: 1 to `MOST`.

    Counted as patches with a label are those drawn about its lesions (of the others, few hold a lesion by chance),
    and those of volumes so small that the patch holds all of them, if the series has the label. Labels that no patch
    has get `MOST`.
    """
    whole = np.all(cache.shapes <= np.array(patch), axis=1)
    positive = np.zeros(len(LABELS))
    for draw in plan.epoch(0):
        if whole[draw.volume]:
            positive += cache.labels[draw.volume] == 1
        elif draw.lesion >= 0:
            positive[[cache.lesion_site[draw.lesion], -1]] += 1
    weights = (plan.samples - positive) / np.maximum(positive, 1)
    return tuple(float(w) for w in weights.clip(1.0, MOST).round(2))
