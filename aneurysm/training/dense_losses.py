"""Losses on maps of logits, (B, C, z, y, x), against masks or soft blobs of lesions, and masks of vessels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from aneurysm.errors import UsageError
from aneurysm.labels import UNKNOWN_VESSEL, VESSEL_VALUES
from aneurysm.training.losses import mean_of_kept, without_ignored


def top_k_bce(
    logits: Tensor, target: Tensor, ignore: Tensor, *, fraction: float = 0.2, count: Tensor | None = None
) -> Tensor:
    """
    Binary cross-entropy over the hardest cells of each channel: the mean of the highest ``fraction``.

    Nearly all cells are easy background; in a plain mean they drown those at the lesion. All cells of a lesion count,
    as long as the answer there is wrong.

    Parameters
    ----------
    logits, target
        (B, C, z, y, x); target from 0 to 1, of any dtype.
    ignore
        (B, C) bool: channels that are left out.
    fraction
        Above 0, at most 1; at least one cell is taken.
    count
        How many channels of the whole step are not ignored; None: this batch is the step.
    """
    logits, target = without_ignored(logits, target, _channels(ignore))
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(2)
    k = max(1, math.ceil(fraction * loss.shape[2]))
    return mean_of_kept(loss.topk(k, dim=2, sorted=False).values.mean(2), ignore, count)


def tversky_bce(
    logits: Tensor,
    target: Tensor,
    ignore: Tensor,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    count: Tensor | None = None,
    count_filled: Tensor | None = None,
) -> Tensor:
    """
    Return ``1 - TP / (TP + alpha FP + beta FN)`` plus binary cross-entropy; 0.5 and 0.5 make it Dice.

    The index is taken per patch and channel, and only where the target has anything: one voxel too many in an empty
    mask would cost as much as a lesion that was missed. The cross-entropy is over all voxels. Salehi et al. 2017
    (arXiv:1706.05721) found 0.3 and 0.7 best for small lesions.

    Parameters
    ----------
    logits, target
        (B, C, z, y, x); target from 0 to 1, of any dtype.
    ignore
        (B, C) bool: channels that are left out.
    alpha, beta
        Costs of false positives and of false negatives, above 0.
    count, count_filled
        How many channels of the whole step are not ignored, and in how many of these the target has anything; None:
        this batch is the step.
    """
    logits, target = without_ignored(logits, target, _channels(ignore))
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3, 4))
    probability = torch.sigmoid(logits)
    true_positive = (probability * target).sum((2, 3, 4))
    false_positive = probability.sum((2, 3, 4)) - true_positive
    size = target.sum((2, 3, 4))
    empty = is_empty(target)
    index = true_positive / (true_positive + alpha * false_positive + beta * (size - true_positive) + empty)
    return mean_of_kept(1 - index, ignore | empty, count_filled) + mean_of_kept(cross_entropy, ignore, count)


def is_empty(target: Tensor) -> Tensor:
    """Return (B, C) bool: channels of (B, C, z, y, x) that are 0 everywhere."""
    return ~target.flatten(2).any(2)


def vessel_channels(vessels: Tensor) -> Tensor:
    """
    Turn vessel masks into a mask per label.

    Parameters
    ----------
    vessels
        (B, 1, Z, Y, X) uint8, values as in `VESSEL_VALUES` or `UNKNOWN_VESSEL`, 0 where there is none.

    Returns
    -------
    Tensor
        (B, 14, Z, Y, X) bool: the sites in the order of `aneurysm.labels.SITES`, then any vessel.
    """
    values = torch.tensor(VESSEL_VALUES, dtype=vessels.dtype, device=vessels.device)
    return torch.cat([vessels == values[:, None, None, None], vessels > 0], 1)


def unknown_vessels(vessels: Tensor, has_vessels: Tensor) -> Tensor:
    """
    Return which of `vessel_channels` say nothing, (B, 14) bool: all of a series without a mask, (B,) ``has_vessels``.

    Of a patch with vessels of unknown site all but the last one: any vessel.
    """
    unknown = (~has_vessels)[:, None].repeat(1, len(VESSEL_VALUES) + 1)
    unknown[:, :-1] |= (vessels == UNKNOWN_VESSEL).flatten(1).any(1)[:, None]
    return unknown


def shrink(target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """
    Return a lesion map (B, C, z, y, x) at half its resolution, once or more, until it has ``shape``.

    A coarse cell takes the maximum of its eight, or a lesion of one cell would fade away.

    Raises
    ------
    UsageError
        Halving does not lead there.
    """
    small = target.float()
    while tuple(small.shape[2:]) != shape:
        if min(small.shape[2:]) < 2:
            raise UsageError(f"a map of {tuple(target.shape[2:])} cells can't be halved into one of {shape}")
        small = F.max_pool3d(small, 2)
    return small


def _channels(ignore: Tensor) -> Tensor:
    return ignore[:, :, None, None, None]
