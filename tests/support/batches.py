"""A `Batch` of what a test says, and of the simplest for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from aneurysm.labels import LABELS
from aneurysm.patches.batch import Batch
from aneurysm.patches.targets import BatchLesions, patch_targets

Lesion = tuple[int, int, tuple[float, float, float]]
"""Sample, site, (z, y, x)."""


def make_batch(
    image: Tensor,
    *,
    lesions: Sequence[Lesion] = (),
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    vessels: Tensor | None = None,
    unknown: Tensor | None = None,
    certain: Tensor | None = None,
    is_ct: Sequence[bool] | None = None,
    scale: float = 1.0,
    offset: float = 0.0,
    window: tuple[float, float] = (0.0, 1000.0),
    fill: float = 0.0,
    seeds: Sequence[int] | None = None,
) -> Batch:
    """``image`` is (B, 1, Z, Y, X), stored integers."""
    n = len(image)
    lesions = sorted(lesions, key=lambda lesion: lesion[0])
    sample = torch.tensor([lesion[0] for lesion in lesions], dtype=torch.int64)
    site = torch.tensor([lesion[1] for lesion in lesions], dtype=torch.int64)
    zyx = torch.tensor([lesion[2] for lesion in lesions], dtype=torch.float32).view(-1, 3)
    placed = BatchLesions(sample, site, zyx, zyx)
    unknown = torch.zeros(n, len(LABELS), dtype=torch.bool) if unknown is None else unknown
    certain = torch.zeros(n, len(LABELS), dtype=torch.bool) if certain is None else certain
    shape = (image.shape[2], image.shape[3], image.shape[4])
    targets, ignore = patch_targets(placed, unknown, certain, shape, spacing_mm)
    return Batch(
        image=image,
        scale=torch.full((n,), scale),
        offset=torch.full((n,), offset),
        window=torch.tensor([window] * n, dtype=torch.float32),
        fill=torch.full((n,), fill),
        is_ct=torch.tensor(is_ct or [True] * n),
        vessels=vessels,
        has_vessels=torch.full((n,), vessels is not None),
        targets=targets,
        ignore=ignore,
        unknown=unknown,
        certain=certain,
        lesions=placed,
        spacing_mm=spacing_mm,
        seeds=torch.tensor(seeds or range(n), dtype=torch.int64),
        index=torch.arange(n),
        volume=torch.zeros(n, dtype=torch.int64),
        start=torch.zeros(n, 3, dtype=torch.int64),
        series_uid=tuple(f"1.2.{k}" for k in range(n)),
        why=("test",) * n,
    )


def one_of(batch: Batch, row: int) -> Batch:
    """The batch that holds this sample alone."""
    return part_of(batch, row, row + 1)


def part_of(batch: Batch, first: int, end: int) -> Batch:
    """The batch of the samples from ``first`` up to, not including, ``end``."""
    mine = (batch.lesions.sample >= first) & (batch.lesions.sample < end)
    lesions = batch.lesions.map(lambda values: values[mine])
    tensors = {f.name: value for f in fields(batch) if isinstance(value := getattr(batch, f.name), Tensor)}
    return replace(
        batch,
        **{name: value[first:end] for name, value in tensors.items()},
        lesions=replace(lesions, sample=lesions.sample - first),
        series_uid=batch.series_uid[first:end],
        why=batch.why[first:end],
    )
