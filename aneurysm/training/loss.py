"""
Losses on the logits of patches, (B, 14). What is to be ignored has no part in them, not even through a NaN.

All compute in float32, whatever mixed precision made of the logits, and are 0, with zero gradients, if all is ignored.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from aneurysm.labels import SITES


def bce(logits: Tensor, targets: Tensor, ignore: Tensor, *, pos_weight: Tensor | None = None) -> Tensor:
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
    """
    logits, targets = without_ignored(logits, targets, ignore)
    loss = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=pos_weight, reduction="none")
    return mean_of_kept(loss, ignore)


def focal(logits: Tensor, targets: Tensor, ignore: Tensor, *, alpha: float | None = 0.25, gamma: float = 2.0) -> Tensor:
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
    return mean_of_kept(loss, ignore)


def asymmetric(
    logits: Tensor,
    targets: Tensor,
    ignore: Tensor,
    *,
    gamma_positive: float = 0.0,
    gamma_negative: float = 4.0,
    margin: float = 0.05,
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
    return mean_of_kept(-(targets * positive + (1 - targets) * negative), ignore)


def consistency(logits: Tensor, ignore: Tensor) -> Tensor:
    """
    How far a site's probability exceeds that of "present", the mean over sites: an aneurysm somewhere is an aneurysm.

    Parameters
    ----------
    logits
        (B, 14), "present" last.
    ignore
        (B, 14) bool; where "present" is ignored, so are all sites of the patch.
    """
    n = len(SITES)
    ignored = ignore[:, :n] | ignore[:, n:]
    probabilities = torch.sigmoid(logits.float().masked_fill(ignore, 0))
    return mean_of_kept((probabilities[:, :n] - probabilities[:, n:]).relu(), ignored)


def without_ignored(logits: Tensor, targets: Tensor, ignore: Tensor) -> tuple[Tensor, Tensor]:
    """
    Return both in float32, 0 where ``ignore``.

    Before the loss, and not only in its mean: 0 times the gradient of an infinite loss is NaN.
    """
    return logits.float().masked_fill(ignore, 0), targets.float().masked_fill(ignore, 0)


def mean_of_kept(loss: Tensor, ignore: Tensor) -> Tensor:
    """Return the mean of ``loss`` where not ``ignore``, both of one shape; 0 if that is nowhere."""
    return loss.masked_fill(ignore, 0).sum() / (~ignore).sum().clamp(min=1)
