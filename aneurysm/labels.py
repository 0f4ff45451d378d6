"""The 14 labels in train.csv's order, their left/right pairs, and vessel-mask values."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

LABELS: tuple[str, ...] = (
    "Left Infraclinoid Internal Carotid Artery",
    "Right Infraclinoid Internal Carotid Artery",
    "Left Supraclinoid Internal Carotid Artery",
    "Right Supraclinoid Internal Carotid Artery",
    "Left Middle Cerebral Artery",
    "Right Middle Cerebral Artery",
    "Anterior Communicating Artery",
    "Left Anterior Cerebral Artery",
    "Right Anterior Cerebral Artery",
    "Left Posterior Communicating Artery",
    "Right Posterior Communicating Artery",
    "Basilar Tip",
    "Other Posterior Circulation",
    "Aneurysm Present",
)
"""Column order of train.csv and of every label vector in this project."""
SITES: tuple[str, ...] = LABELS[:13]
"""The labels that name a place; the 14th says whether there is any aneurysm at all."""
LEFT_RIGHT_PAIRS: tuple[tuple[int, int], ...] = ((0, 1), (2, 3), (4, 5), (7, 8), (9, 10))
"""Indices into LABELS that change places when a volume is mirrored left to right."""
VESSEL_VALUES: tuple[int, ...] = (6, 5, 8, 7, 10, 9, 13, 12, 11, 4, 3, 2, 1)
"""VESSEL_VALUES[i] is the value of SITES[i] in a vessel mask: the masks have an order of their own."""
UNKNOWN_VESSEL: int = 14
"""Value in a cached vessel mask of a vessel whose site is unknown: what masks of 0 and 1 say."""
MODALITIES: tuple[str, ...] = ("CTA", "MRA", "MRI T2", "MRI T1post")
"""The values of train.csv's Modality column."""
UNKNOWN_MODALITY: str = "unknown"
"""Stands in the manifest for the modality of arrays that came without one."""
UNKNOWN = 255
"""Stands in `Cache.labels` where a series has no labels."""
