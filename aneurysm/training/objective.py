"""Objective: the weighted sum of the losses that a run asks for, and what positives weigh in it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from aneurysm.cache.cache import Cache
from aneurysm.errors import UsageError
from aneurysm.labels import LABELS
from aneurysm.models.output import ModelOutput
from aneurysm.patches.plan import Plan
from aneurysm.training.dense_losses import is_empty, shrink, top_k_bce, tversky_bce, unknown_vessels, vessel_channels
from aneurysm.training.losses import asymmetric, bce, consistency, focal, kept, without_pair

TERMS = {
    "bce": "binary cross-entropy of the patch's logits",
    "focal": "focal loss of the patch's logits",
    "asl": "asymmetric loss of the patch's logits",
    "consistency": "a site's probability should not exceed that of present",
    "dense_top_k": "binary cross-entropy of the hardest 20 % of the lesion map's cells",
    "dense_dice": "Dice + binary cross-entropy of the lesion map",
    "dense_tversky": "Tversky (0.3, 0.7) + binary cross-entropy of the lesion map",
    "vessels": "Dice + binary cross-entropy of the vessel head, of patches whose series has a vessel mask",
}
"""The terms of an `Objective`, and what each is."""

_COSTS = {"dense_dice": (0.5, 0.5), "dense_tversky": (0.3, 0.7)}
"""Of false positives and false negatives, by term."""

MAX_POS_WEIGHT: Final = 100.0
"""A label of a handful of lesions would otherwise make the loss jump whenever one of them is drawn."""

SampleCounts = Mapping[str, Tensor]
"""Numbers of values, one a tensor, that the means of an `Objective` are over; see `Objective.counts`."""


class Objective(nn.Module):
    """
    The weighted sum of terms.

    Parameters
    ----------
    weights
        Weight by term: names as in `TERMS`. Terms of weight 0 are not computed.
    pos_weight
        (14,) for `bce`: factor of the positives of each label.

    Raises
    ------
    UsageError
        There is no such term, a weight is negative, or all are 0.
    """

    pos_weight: Tensor | None

    def __init__(self, weights: Mapping[str, float], *, pos_weight: Tensor | None = None) -> None:
        super().__init__()
        for term, weight in weights.items():
            if term not in TERMS:
                near = difflib.get_close_matches(term, TERMS, n=1)
                hint = f"Did you mean {near[0]}? " if near else ""
                raise UsageError(f"there is no loss {term!r}. {hint}There are {', '.join(TERMS)}")
            if not weight >= 0:
                raise UsageError(f"the weight of the loss {term!r} is {weight}: it must be 0 or more")
        self.weights = {term: weight for term, weight in weights.items() if weight}
        if not self.weights:
            raise UsageError("no loss has a weight above 0")
        self.register_buffer("pos_weight", pos_weight, persistent=False)

    @property
    def has_maps(self) -> bool:
        """Whether a term is of the lesion map."""
        return any(term.startswith("dense_") for term in self.weights)

    @property
    def has_filled_maps(self) -> bool:
        """Whether a term's mean is over the channels of the lesion map that hold something: `counts` looks into it."""
        return not self.weights.keys().isdisjoint(_COSTS)

    def taught(self, output: ModelOutput) -> list[Tensor]:
        """Return the parts of a model's output that have a term."""
        maps = [] if output.dense is None else [output.dense, *output.coarser]
        vessels = [] if output.vessels is None else [output.vessels]
        of_logits = any(term != "vessels" and not term.startswith("dense_") for term in self.weights)
        return [output.logits] * of_logits + maps * self.has_maps + vessels * ("vessels" in self.weights)

    def forward(
        self,
        output: ModelOutput,
        targets: Tensor,
        ignore: Tensor,
        *,
        dense: Tensor | None = None,
        unmapped: Tensor | None = None,
        vessels: Tensor | None = None,
        has_vessels: Tensor | None = None,
        counts: SampleCounts | None = None,
    ) -> dict[str, Tensor]:
        """
        Return each term, unweighted, and their weighted sum as ``loss``.

        Each term is a mean over what is known in a step of the optimiser. If the step is cut into several batches,
        here or on other ranks, ``counts`` holds what is known in all of them: then the terms of these batches add up
        to those of the step, however it is cut.

        Parameters
        ----------
        output
            Of the model.
        targets, ignore
            (B, 14), as in `aneurysm.patches.batch.Batch`.
        dense
            (B, 14, z, y, x), 0 to 1: what ``output.dense`` should be; for the ``dense_`` terms.
        unmapped
            (B, 14) bool: lesions that are there, but not in ``dense``; its channel is left out. None: there are none.
        vessels, has_vessels
            (B, 1, Z, Y, X) and (B,), as in `Batch`; for ``vessels``.
        counts
            The sum of `counts` over the batches of the step; None: this batch is the step.

        Raises
        ------
        UsageError
            A term asks for what the model or the batch has not.
        """
        if counts is None:
            counts = self.counts(ignore, dense=dense, unmapped=unmapped, vessels=vessels, has_vessels=has_vessels)
        terms = {}
        for term in self.weights:
            if term.startswith("dense_"):
                terms[term] = _of_maps(term, output, dense, _unmapped(ignore, unmapped), counts)
            elif term == "vessels":
                terms[term] = _of_vessels(output, vessels, has_vessels, counts)
            else:
                terms[term] = self._of_logits(term, output.logits, targets, ignore, counts)
        total = torch.stack([self.weights[term] * value for term, value in terms.items()]).sum()
        return {"loss": total, **terms}

    def counts(
        self,
        ignore: Tensor,
        *,
        dense: Tensor | None = None,
        unmapped: Tensor | None = None,
        vessels: Tensor | None = None,
        has_vessels: Tensor | None = None,
    ) -> SampleCounts:
        """Return over how many values of a batch the terms are means; parameters are those of `forward`."""
        found = {"labels": kept(ignore), "pairs": kept(without_pair(ignore))}
        if self.has_maps:
            found["maps"] = kept(_unmapped(ignore, unmapped))
        if self.has_filled_maps and dense is not None:
            found["filled_maps"] = kept(_unmapped(ignore, unmapped) | is_empty(dense))
        if "vessels" in self.weights and vessels is not None and has_vessels is not None:
            unknown, channels = unknown_vessels(vessels, has_vessels), vessel_channels(vessels)
            found |= {"vessels": kept(unknown), "filled_vessels": kept(unknown | is_empty(channels))}
        return found

    def _of_logits(self, term: str, logits: Tensor, targets: Tensor, ignore: Tensor, counts: SampleCounts) -> Tensor:
        match term:
            case "bce":
                return bce(logits, targets, ignore, pos_weight=self.pos_weight, count=counts["labels"])
            case "focal":
                return focal(logits, targets, ignore, count=counts["labels"])
            case "asl":
                return asymmetric(logits, targets, ignore, count=counts["labels"])
        return consistency(logits, ignore, count=counts["pairs"])


def _unmapped(ignore: Tensor, unmapped: Tensor | None) -> Tensor:
    return ignore if unmapped is None else ignore | unmapped


def _of_maps(term: str, output: ModelOutput, target: Tensor | None, ignore: Tensor, counts: SampleCounts) -> Tensor:
    if output.dense is None or target is None:
        missing = "the model has no lesion map" if output.dense is None else "the batch has no lesion map"
        raise UsageError(f"the loss {term!r} can't be had: {missing}")
    maps = (output.dense, *output.coarser)
    # Each coarser level counts half as much as the one before it (Isensee et al. 2021, nnU-Net).
    total = sum(
        (_of_map(term, logits, target, ignore, counts) / 2**level for level, logits in enumerate(maps)),
        start=target.new_zeros((), dtype=torch.float32),
    )
    return total / sum(0.5**level for level in range(len(maps)))


def _of_map(term: str, logits: Tensor, target: Tensor, ignore: Tensor, counts: SampleCounts) -> Tensor:
    small = shrink(target, tuple(logits.shape[2:]))
    if term == "dense_top_k":
        return top_k_bce(logits, small, ignore, count=counts["maps"])
    alpha, beta = _COSTS[term]
    return tversky_bce(
        logits, small, ignore, alpha=alpha, beta=beta, count=counts["maps"], count_filled=counts["filled_maps"]
    )


def _of_vessels(
    output: ModelOutput, vessels: Tensor | None, has_vessels: Tensor | None, counts: SampleCounts
) -> Tensor:
    if output.vessels is None or vessels is None or has_vessels is None:
        missing = "the model has no vessel head" if output.vessels is None else "the batch has no vessel masks"
        raise UsageError(f"the loss 'vessels' can't be had: {missing}")
    channels, unknown = vessel_channels(vessels), unknown_vessels(vessels, has_vessels)
    return tversky_bce(
        output.vessels, channels, unknown, count=counts["vessels"], count_filled=counts["filled_vessels"]
    )


def positive_weights(cache: Cache, plan: Plan, patch: tuple[int, int, int] | None) -> tuple[float, ...]:
    """
    Return for the 14 labels the patches without over the patches with, in the plan's first epoch.

    They are limited to 1 to `MAX_POS_WEIGHT`.

    Counted as patches with a label are those drawn about its lesions (of the others, few hold a lesion by chance),
    and those of volumes so small that the patch holds all of them, if the series has the label; of pictures of series,
    whose ``patch`` is None, all. Labels that no patch has get `MAX_POS_WEIGHT`.
    """
    whole = np.ones(len(cache), np.bool_) if patch is None else np.all(cache.shapes <= np.array(patch), axis=1)
    positive = np.zeros(len(LABELS))
    for draw in plan.epoch(0):
        if whole[draw.volume]:
            positive += cache.labels[draw.volume] == 1
        elif draw.lesion >= 0:
            positive[[cache.lesion_site[draw.lesion], -1]] += 1
    weights = (plan.samples - positive) / np.maximum(positive, 1)
    return tuple(float(w) for w in weights.clip(1.0, MAX_POS_WEIGHT).round(2))
