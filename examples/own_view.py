"""
A view and a model of one's own: the three planes through the middle of the head, in a small network of pictures.

    python examples/own_view.py cache

A view says which pictures of a volume to read; the loader does the rest: labels, balance, workers, the same samples for
any of them. The network sees each picture by itself, and averages what it finds.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import aneurysm as an

SIZE = 160


class MiddlePlanes:
    """An axial, a coronal and a sagittal slice through the middle of the head."""

    scope = "series"
    channels = 1
    shape = (3, SIZE, SIZE)  # pictures, rows, columns
    planes = (((0, 0), (1, 0), (2, 0)),)  # by channel: of each picture the axis across it, and its row of pictures

    def choose(self, volume: Any, rng: np.random.Generator | None = None) -> list[list[an.Picture]]:
        """Return the pictures by channel; in training a few slices off the middle."""
        blocks = np.argwhere(volume.survey.head)
        middle = (blocks.min(0) + blocks.max(0) + 1) * np.array(volume.survey.edge) // 2
        if rng is not None:
            middle = middle + rng.integers(-5, 6, 3)
        pictures = []
        for axis in range(3):
            row, column = (int(m) - SIZE // 2 for a, m in enumerate(middle) if a != axis)
            pictures.append(an.Picture(axis, int(middle[axis]), int(middle[axis]) + 1, (row, column)))
        return [pictures]


class SmallNet(nn.Module):
    """(B, 1, K, Y, X) -> 14 logits."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 8), (8, 16), (16, 32)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(32, len(an.LABELS))

    def forward(self, image: Tensor) -> Tensor:
        """Average over the pictures, and over their pixels."""
        b, c, k, y, x = image.shape
        features = self.features(image.transpose(1, 2).reshape(b * k, c, y, x))
        return self.head(features.mean((2, 3)).unflatten(0, (b, k)).mean(1))


def main() -> None:
    """Train for a few steps, and say what the loss was."""
    cache = an.open_cache(sys.argv[1] if len(sys.argv) > 1 else "cache")
    loader = an.PatchLoader(
        cache, view=MiddlePlanes(), batch_size=4, steps=10, sampling=an.Sampling(balance="label"), workers=0
    )
    model = SmallNet()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for step, batch in enumerate(loader):
        given = an.augment(batch, an.AugmentConfig())
        each = nn.functional.binary_cross_entropy_with_logits(model(given.image), given.targets, reduction="none")
        loss = each[~given.ignore].mean()  # what is not known of a series teaches nothing
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")  # noqa: T201 - this is a script
    loader.close()


if __name__ == "__main__":
    main()
