"""Left <-> right: what else changes when a patch is flipped along x."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from aneurysm.labels import LABELS, LEFT_RIGHT_PAIRS, VESSEL_VALUES


def mirrored_labels(device: torch.device) -> Tensor:
    """
    Return (14,) int64: for each label the one on the other side; those in the middle stand for themselves.

    ``x[:, mirrored_labels(x.device)]`` swaps the columns of (B, 14) targets or logits, and
    ``mirrored_labels(site.device)[site]`` the sites of lesions.
    """
    return _tables(device)[0]


def mirrored_vessels(vessels: Tensor) -> Tensor:
    """Return a vessel mask (uint8, any shape) whose left and right values have changed places; no voxel moves."""
    return _tables(vessels.device)[1][vessels.long()]


@cache
@torch.inference_mode(mode=False)  # it is kept, and one made in inference mode could not serve a backward pass
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    labels, values = torch.arange(len(LABELS)), torch.arange(256, dtype=torch.uint8)
    for left, right in LEFT_RIGHT_PAIRS:
        labels[left], labels[right] = right, left
        values[VESSEL_VALUES[left]], values[VESSEL_VALUES[right]] = VESSEL_VALUES[right], VESSEL_VALUES[left]
    return labels.to(device), values.to(device)
