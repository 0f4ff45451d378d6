"""Plan of an epoch -> pos_weight: how many patches without a label there are for each one with it."""

from __future__ import annotations

from typing import Final

import numpy as np

from aneurysm.cache.catalog import Cache
from aneurysm.labels import LABELS
from aneurysm.patches.plan import Plan

MOST: Final = 100.0
"""A label of a handful of lesions would otherwise make the loss jump whenever one of them is drawn."""


def positive_weights(cache: Cache, plan: Plan) -> tuple[float, ...]:
    """
    Return for the 14 labels the patches without over the patches with, in the plan's first epoch: 1 to `MOST`.

    Counted as patches with a label are those drawn about its lesions: of the others, few hold a lesion by chance.
    Labels that have no lesion to draw about get `MOST`.
    """
    drawn = np.bincount([cache.lesion_site[d.lesion] for d in plan.epoch(0) if d.lesion >= 0], minlength=len(LABELS))
    drawn[-1] = drawn.sum()
    weights = (plan.samples - drawn) / np.maximum(drawn, 1)
    return tuple(float(w) for w in weights.clip(1.0, MOST).round(2))
