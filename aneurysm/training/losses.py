"""
Losses on the logits of patches, (B, 14). What is to be ignored has no part in them, not even through a NaN.

All compute in float32, whatever mixed precision made of the logits, and are 0, with zero gradients, if all is ignored.

Each is a mean over what is known. A step of the optimiser may be cut into micro-batches and ranks, which know different
numbers of labels: the mean of their means would be another loss than that of the whole step. So each takes the number
that its sum is divided by, ``count``, over the whole step; then the parts add up to the loss of the whole.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from aneurysm.labels import SITES


def bce(
    logits: Tensor, targets: Tensor, ignore: Tensor, *, pos_weight: Tensor | None = None, count: Tensor | None = None
) -> Tensor:
    """
    Binary cross-entropy, the mean over what is not ignored.

    Parameters
    ----------
    logits, targets
        (B, 14); targets from 0 to 1.
    ignore
        (B, 14) bool.
    pos_weight
        (14,): factor of the positives of each label.
    count
        How many values of the whole step are not ignored; None: this batch is the step.
    """
    logits, targets = without_ignored(logits, targets, ignore)
    loss = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=pos_weight, reduction="none")
    return mean_of_kept(loss, ignore, count)


def focal(
    logits: Tensor,
    targets: Tensor,
    ignore: Tensor,
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    count: Tensor | None = None,
) -> Tensor:
    """
    Focal loss, ``-alpha_t (1 - p_t)^gamma log(p_t)``, with the values of Lin et al. 2017 (arXiv:1708.02002, eq. 5).

    ``alpha`` weighs the positives, ``1 - alpha`` the negatives; None weighs neither. Otherwise as `bce`.
    """
    logits, targets = without_ignored(logits, targets, ignore)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # 1 - p_t without the cancellation that 1 - exp(-ce) has where the answer is right.
    loss = (-torch.expm1(-cross_entropy)) ** gamma * cross_entropy
    if alpha is not None:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return mean_of_kept(loss, ignore, count)


def asymmetric(
    logits: Tensor,
    targets: Tensor,
    ignore: Tensor,
    *,
    gamma_positive: float = 0.0,
    gamma_negative: float = 4.0,
    margin: float = 0.05,
    count: Tensor | None = None,
) -> Tensor:
    """
    Asymmetric loss (ASL) with the values that the paper recommends (Ridnik et al. 2021, arXiv:2009.14119, eq. 7).

    ``(1 - p)^gamma_positive log(p)`` for positives, ``p_m^gamma_negative log(1 - p_m)`` for negatives, both negated,
    with ``p_m = max(p - margin, 0)``: negatives below the margin count for nothing. The exponents are 0, or at least
    1, below which their gradient at 0 is infinite. Otherwise as `bce`.
    """
    logits, targets = without_ignored(logits, targets, ignore)
    shifted = (torch.sigmoid(logits) - margin).clamp(min=0)
    positive = torch.sigmoid(-logits) ** gamma_positive * F.logsigmoid(logits)
    if margin > 0:
        negative = shifted**gamma_negative * torch.log1p(-shifted)
    else:  # log1p(-p) would be infinite where p rounds to 1
        negative = shifted**gamma_negative * F.logsigmoid(-logits)
    return mean_of_kept(-(targets * positive + (1 - targets) * negative), ignore, count)


def consistency(logits: Tensor, ignore: Tensor, *, count: Tensor | None = None) -> Tensor:
    """
    How far a site's probability exceeds that of "present", the mean over sites: an aneurysm somewhere is an aneurysm.

    Parameters
    ----------
    logits
        (B, 14), "present" last.
    ignore
        (B, 14) bool; where "present" is ignored, so are all sites of the patch.
    count
        As in `bce`, of `without_pair`.
    """
    n = len(SITES)
    probabilities = torch.sigmoid(logits.float().masked_fill(ignore, 0))
    return mean_of_kept((probabilities[:, :n] - probabilities[:, n:]).relu(), without_pair(ignore), count)


def without_pair(ignore: Tensor) -> Tensor:
    """Return (B, 13) bool: sites that are ignored, or whose "present" is, so that `consistency` can't compare them."""
    return ignore[:, :-1] | ignore[:, -1:]


def without_ignored(logits: Tensor, targets: Tensor, ignore: Tensor) -> tuple[Tensor, Tensor]:
    """
    Return both in float32, 0 where ``ignore``.

    Before the loss, and not only in its mean: 0 times the gradient of an infinite loss is NaN.
    """
    return logits.float().masked_fill(ignore, 0), targets.float().masked_fill(ignore, 0)


def mean_of_kept(loss: Tensor, ignore: Tensor, count: Tensor | None = None) -> Tensor:
    """
    Return the sum of ``loss`` where not ``ignore``, both of one shape, divided by ``count``; 0 if that is 0.

    None counts what is not ignored: then it is the mean.
    """
    return loss.masked_fill(ignore, 0).sum() / (kept(ignore) if count is None else count).clamp(min=1)


def kept(ignore: Tensor) -> Tensor:
    """Return how many values are not ignored."""
    return (~ignore).sum()
