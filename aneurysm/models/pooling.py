"""Patch probabilities -> one of the series: which patch, or how many, decide."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def highest(probabilities: Tensor) -> Tensor:
    """Return (14,) from (patches, 14): the highest of each label."""
    return probabilities.amax(0)


def mean_of_highest(probabilities: Tensor, n: int = 3) -> Tensor:
    """Return (14,) from (patches, 14): the mean of the ``n`` highest of each label; steadier than the highest alone."""
    return probabilities.topk(min(n, len(probabilities)), dim=0).values.mean(0)


def noisy_or(probabilities: Tensor) -> Tensor:
    """
    Return (14,) from (patches, 14): the probability that at least one patch is positive, were they independent.

    Patches that overlap are not: it rises with their number, so use it for patches that do not.
    """
    return 1 - (1 - probabilities).prod(0)


POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": highest,
    "mean-top": mean_of_highest,
    "noisy-or": noisy_or,
}
"""By the name that an architecture's defaults and the commands use."""
