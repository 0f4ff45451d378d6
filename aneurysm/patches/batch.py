"""Batch: patches or pictures as stored integers, and all that makes of them model units, targets and provenance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aneurysm.patches.targets import BatchLesions
from aneurysm.patches.views.view import Planes
from aneurysm.volume.intensity import to_model_units, to_physical


@dataclass(frozen=True)
class Batch:
    """
    B samples: patches of Z x Y x X voxels, or pictures of series, Z pictures of Y x X pixels.

    Tensors may lie on any device; `to` moves them together (but for `seeds`).

    Attributes
    ----------
    image
        (B, C, Z, Y, X) stored integers (int16 or uint8); patches have one channel.
    scale, offset
        (B,) float32: ``physical = image * scale + offset``, in HU or the MR scanner's units.
    window
        (B, 2) float32: the physical values that map to 0 and 1 in model units.
    fill
        (B,) float32: the stored value of air, which pads what lies outside the volume.
    is_ct
        (B,) bool: physical values are HU.
    vessels
        (B, 1, Z, Y, X) uint8, values of the vessel masks, 0 where there is none; None if none were asked for.
    has_vessels
        (B,) bool: the series has a vessel mask.
    targets
        (B, 14) float32, 0 or 1 in the order of `aneurysm.labels.LABELS`: which sites have a lesion in this patch; the
        last: any.
    ignore
        (B, 14) bool: not known, or cut by the border of the patch; losses leave these out.
    unknown
        (B, 14) bool: the part of `ignore` that has nothing to do with where the patch lies, as when the series has an
        aneurysm at a site, but no place was given for it. See `aneurysm.patches.targets.patch_targets`.
    certain
        (B, 14) bool: the series has an aneurysm whose place is not known, and all of its volume is in the patch: so
        that is, too.
    lesions
        Of the patches' series; see `aneurysm.patches.targets.BatchLesions`.
    spacing_mm
        (z, y, x) of a voxel.
    seeds
        (B,) int64: of the sample's own randomness, for augmentation. They stay on the CPU, which draws from them:
        to read them back from a GPU would be to wait for all that it has in its queue.
    index
        (B,) int64: number of the sample within the epoch.
    volume
        (B,) int64: index of the series in the `Cache`.
    start
        (B, 3) int64: the patch's first voxel (z, y, x) in the volume; may be negative.
    damaged
        What was wrong with series that could not be read and were replaced by others; most often empty.
    series_uid, why
        B strings each: the series, and which sampler chose the place.
    planes
        How pictures lie in the head, see `aneurysm.patches.views.view.Pictures`; None of patches. Pictures have the
        labels of their series: there are no lesions with places then, `certain` are the positive labels, and `unknown`
        those that nobody knows.
    """

    image: Tensor
    scale: Tensor
    offset: Tensor
    window: Tensor
    fill: Tensor
    is_ct: Tensor
    vessels: Tensor | None
    has_vessels: Tensor
    targets: Tensor
    ignore: Tensor
    unknown: Tensor
    certain: Tensor
    lesions: BatchLesions
    spacing_mm: tuple[float, float, float]
    seeds: Tensor
    index: Tensor
    volume: Tensor
    start: Tensor
    series_uid: tuple[str, ...]
    why: tuple[str, ...]
    damaged: tuple[str, ...] = ()
    planes: Planes | None = None

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch with all tensors but `seeds` on ``device``."""
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(moved, seeds=self.seeds)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; torch's DataLoader calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors: dict[str, Any] = {k: change(v) for k, v in self._fields().items() if isinstance(v, Tensor)}
        return replace(self, **tensors, lesions=self.lesions.map(change))

    def _fields(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes each tensor travels as shared memory with a descriptor of its own. That is right for voxels,
        # and costs more than it saves for a dozen small ones: these go by value.
        large = ("image", "vessels")
        content = {k: v.numpy() if isinstance(v, Tensor) and k not in large else v for k, v in self._fields().items()}
        return _unpickled, (content | {"lesions": [v.numpy() for v in vars(self.lesions).values()]},)

    def physical(self) -> Tensor:
        """Return (B, C, Z, Y, X) float32 in HU, or the MR scanner's units."""
        return to_physical(self.image.to(torch.float32, copy=True), _per_sample(self.scale), _per_sample(self.offset))

    def normalised(self) -> Tensor:
        """Return (B, C, Z, Y, X) float32 in model units: the window mapped to [0, 1], clipped."""
        low, high = self.window.unbind(1)
        return to_model_units(self.physical(), _per_sample(low), _per_sample(high - low))


def _unpickled(content: dict[str, Any]) -> Batch:
    tensors: dict[str, Any] = {k: torch.from_numpy(v) for k, v in content.items() if isinstance(v, np.ndarray)}
    lesions = BatchLesions(*map(torch.from_numpy, content["lesions"]))
    return Batch(**{**content, **tensors, "lesions": lesions})


def _per_sample(values: Tensor) -> Tensor:
    return values[:, None, None, None, None]
