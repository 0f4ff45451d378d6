"""Objective: the weighted sum of the losses that a run asks for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from aneurysm.errors import UsageError
from aneurysm.models.output import ModelOutput
from aneurysm.training.loss import asymmetric, bce, consistency, focal
from aneurysm.training.map_loss import shrink, top_k_bce, tversky_bce, unknown_vessels, vessel_channels

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
    ) -> dict[str, Tensor]:
        """
        Return each term, unweighted, and their weighted sum as ``loss``.

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

        Raises
        ------
        UsageError
            A term asks for what the model or the batch has not.
        """
        terms = {}
        for term in self.weights:
            if term.startswith("dense_"):
                terms[term] = _of_maps(term, output, dense, ignore if unmapped is None else ignore | unmapped)
            elif term == "vessels":
                terms[term] = _of_vessels(output, vessels, has_vessels)
            else:
                terms[term] = self._of_logits(term, output.logits, targets, ignore)
        total = torch.stack([self.weights[term] * value for term, value in terms.items()]).sum()
        return {"loss": total, **terms}

    def _of_logits(self, term: str, logits: Tensor, targets: Tensor, ignore: Tensor) -> Tensor:
        match term:
            case "bce":
                return bce(logits, targets, ignore, pos_weight=self.pos_weight)
            case "focal":
                return focal(logits, targets, ignore)
            case "asl":
                return asymmetric(logits, targets, ignore)
        return consistency(logits, ignore)


def _of_maps(term: str, output: ModelOutput, target: Tensor | None, ignore: Tensor) -> Tensor:
    if output.dense is None or target is None:
        missing = "the model has no lesion map" if output.dense is None else "the batch has no lesion map"
        raise UsageError(f"the loss {term!r} can't be had: {missing}")
    maps = (output.dense, *output.coarser)
    # Each coarser level counts half as much as the one before it (Isensee et al. 2021, nnU-Net).
    total = sum(
        (_of_map(term, logits, target, ignore) / 2**level for level, logits in enumerate(maps)),
        start=target.new_zeros((), dtype=torch.float32),
    )
    return total / sum(0.5**level for level in range(len(maps)))


def _of_map(term: str, logits: Tensor, target: Tensor, ignore: Tensor) -> Tensor:
    small = shrink(target, tuple(logits.shape[2:]))
    match term:
        case "dense_top_k":
            return top_k_bce(logits, small, ignore)
        case "dense_dice":
            return tversky_bce(logits, small, ignore)
    return tversky_bce(logits, small, ignore, alpha=0.3, beta=0.7)


def _of_vessels(output: ModelOutput, vessels: Tensor | None, has_vessels: Tensor | None) -> Tensor:
    if output.vessels is None or vessels is None or has_vessels is None:
        missing = "the model has no vessel head" if output.vessels is None else "the batch has no vessel masks"
        raise UsageError(f"the loss 'vessels' can't be had: {missing}")
    return tversky_bce(output.vessels, vessel_channels(vessels), unknown_vessels(vessels, has_vessels))
