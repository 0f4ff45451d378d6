"""Lesion coordinates -> targets: which sites have a lesion in a patch, and where that can't be said."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aneurysm.labels import LABELS

MARGIN_MM: Final = 3.0
"""The radius of a common sac (most measure 3 to 7 mm): so far inside a face, all of it is in the patch; so far
outside, none."""

_PRESENT: Final = len(LABELS) - 1


def inner_places(
    lesion_zyx: NDArray[np.float32], volume_zyx: NDArray[np.integer], spacing_mm: tuple[float, float, float]
) -> NDArray[np.float32]:
    """
    Return lesions (L, 3), voxels of their volumes (L, 3), moved until all `MARGIN_MM` about them lie in the volume.

    What a lesion lacks beyond a face of the volume, no patch has: `patch_targets` does not call it cut for that.
    """
    # A little more, so that rounding does not make it less.
    low = MARGIN_MM / np.array(spacing_mm) - 0.5 + 1e-3
    high = np.maximum(volume_zyx - 1 - low, (volume_zyx - 1) / 2)
    return np.asarray(np.clip(lesion_zyx, np.minimum(low, high), high), np.float32)


def patch_targets(
    lesion_sample: Tensor,
    lesion_site: Tensor,
    lesion_zyx: Tensor,
    lesion_inner: Tensor,
    batch_size: int,
    shape_zyx: tuple[int, int, int],
    margin_mm: float,
    spacing_mm: tuple[float, float, float],
    base_ignore: Tensor,
    certain: Tensor,
) -> tuple[Tensor, Tensor]:
    """
    Say of each patch and label whether there is a lesion, and whether to leave that out of a loss.

    A lesion whose centre lies at least ``margin_mm`` inside every face of its patch is present: for its site and for
    "Aneurysm Present" the target is 1. One that lies nearer to a face, inside or outside, is cut: both are ignored,
    unless another lesion is surely there. One farther outside counts for nothing. A face of the volume cuts nothing.

    Parameters
    ----------
    lesion_sample, lesion_site
        (L,) int64: each lesion's patch, and its index into `aneurysm.labels.SITES`.
    lesion_zyx
        (L, 3) float: voxel coordinates in the patch, whole numbers being voxel centres.
    lesion_inner
        (L, 3) float: the same of `inner_places`.
    batch_size
        B, the number of patches.
    shape_zyx
        The patch's shape in voxels. Its faces are those of the outermost voxels, half a voxel beyond their centres.
    margin_mm
        How much of a lesion has to be in view; `MARGIN_MM` is the usual one.
    spacing_mm
        (z, y, x) of a voxel.
    base_ignore
        (B, 14) bool: not known for other reasons. A lesion that is surely there overrides it.
    certain
        (B, 14) bool: present for other reasons, whatever the places of lesions.

    Returns
    -------
    targets
        (B, 14) float32, 0 or 1, in the order of `aneurysm.labels.LABELS`.
    ignore
        (B, 14) bool. A target there is 0.
    """

    def depths_mm(places: Tensor) -> Tensor:
        faces = zip(places.unbind(1), shape_zyx, spacing_mm, strict=True)
        return torch.stack([torch.minimum(at + 0.5, n - 0.5 - at) * mm for at, n, mm in faces], dim=1)

    sure = depths_mm(lesion_inner).amin(dim=1) >= margin_mm
    outside_mm = (-depths_mm(lesion_zyx)).clamp(min=0).norm(dim=1)
    cut = ~sure & (outside_mm < margin_mm)

    def any_of(which: Tensor) -> Tensor:
        found = torch.zeros(batch_size, len(LABELS), dtype=torch.float32, device=lesion_zyx.device)
        found.index_put_((lesion_sample, lesion_site), which.float(), accumulate=True)
        found[:, _PRESENT] = found.sum(dim=1)
        return found > 0

    present = any_of(sure) | certain
    return present.float(), (any_of(cut) | base_ignore) & ~present
