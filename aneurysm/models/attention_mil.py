"""
Attention over a bag of pictures: each label has slices or projections of its own (Ilse, Tomczak, Welling 2018).

A series is a bag of K pictures, and its labels are those of the bag: which picture shows a lesion is not told. Gated
attention weighs pictures by what a shared backbone sees in them, with weights of its own for each label: a
carotid aneurysm does not lie in the slices of one at the basilar tip.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aneurysm.labels import LABELS
from aneurysm.models.efficientnet import EfficientNetFeatures
from aneurysm.models.output import ModelOutput, start_at_prior

CELL: tuple[int, int, int] = (1, 32, 32)
"""Picture, and pixels of it, per cell of the map."""


class GatedAttention(nn.Module):
    """
    Pictures' features -> the share that each has in each label.

    Equation 9 of Ilse et al.: w^T (tanh(V h) * sigmoid(U h)), with a w for each of ``labels``.
    """

    def __init__(self, features: int, hidden: int, labels: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(features, hidden), nn.Linear(features, hidden)
        self.score = nn.Linear(hidden, labels)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, K, F) to (B, K, labels), which sum to 1 over the K pictures."""
        scores: Tensor = self.score(torch.tanh(self.value(features)) * torch.sigmoid(self.gate(features)))
        return scores.softmax(1)


class AttentionMIL(nn.Module):
    """
    A bag of pictures -> 14 logits, and where they come from.

    Parameters
    ----------
    in_channels
        Of a picture.
    backbone
        A variant of `aneurysm.models.efficientnet.EfficientNetFeatures`.
    weights
        A file of ImageNet weights for it; random ones without.
    hidden
        Units of the attention.
    dropout
        Of the pictures' features.
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        backbone: str = "b0",
        weights: str | None = None,
        hidden: int = 128,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.features = EfficientNetFeatures(backbone, in_channels, weights)
        self.dropout = nn.Dropout(dropout)
        self.attention = GatedAttention(self.features.channels, hidden, len(LABELS))
        self.head = nn.Linear(self.features.channels, len(LABELS))
        start_at_prior(self.head, 0.05)

    def forward(self, image: Tensor) -> ModelOutput:
        """
        Map (B, C, K, Y, X), K pictures of each series, to the logits of each series.

        When not training the output has a map, of which the mean over all cells is the series' logit: what each cell of
        each picture adds (the class activation map of the picture, by the attention that it has).
        """
        b, c, k, y, x = image.shape
        cells = self.features(image.transpose(1, 2).reshape(b * k, c, y, x))
        pictures = self.dropout(cells.mean((2, 3)).reshape(b, k, -1))
        attention = self.attention(pictures)
        bag = torch.einsum("bkl,bkf->blf", attention, pictures)
        logits = torch.einsum("blf,lf->bl", bag, self.head.weight) + self.head.bias
        if self.training:
            return ModelOutput(logits)
        seen = torch.einsum("bkfyx,lf->blkyx", cells.unflatten(0, (b, k)), self.head.weight)
        dense = seen * attention.transpose(1, 2)[..., None, None] * k + self.head.bias[:, None, None, None]
        return ModelOutput(logits, dense, CELL)
