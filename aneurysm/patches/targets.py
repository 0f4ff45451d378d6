"""BatchLesions -> targets: which sites have a lesion in a patch, where that can't be said, and maps of the lesions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aneurysm.labels import LABELS

MARGIN_MM: Final = 3.0
"""The radius of a common sac (most measure 3 to 7 mm): so far inside a face, all of it is in the patch; so far
outside, none."""

_PRESENT: Final = len(LABELS) - 1


@dataclass(frozen=True)
class BatchLesions:
    """
    The lesions of a batch's series: L of them over all B patches, also those that lie outside their patch.

    Attributes
    ----------
    sample
        (L,) int64, rising: to which patch of the batch a lesion belongs.
    site
        (L,) int64: index into `aneurysm.labels.SITES`.
    zyx
        (L, 3) float32: voxel coordinates in the patch, whole numbers being voxel centres.
    inner
        (L, 3) float32: the same, away from the volume's faces; see `inner_places`.
    """

    sample: Tensor
    site: Tensor
    zyx: Tensor
    inner: Tensor

    def __len__(self) -> int:
        return len(self.sample)

    def map(self, change: Callable[[Tensor], Tensor]) -> BatchLesions:
        """Return the lesions with each tensor changed, as by a move to another device."""
        return BatchLesions(change(self.sample), change(self.site), change(self.zyx), change(self.inner))


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
    lesions: BatchLesions,
    unknown: Tensor,
    certain: Tensor,
    shape_zyx: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    *,
    margin_mm: float = MARGIN_MM,
) -> tuple[Tensor, Tensor]:
    """
    Return for each patch and label whether there is a lesion, and whether a loss is to leave that out.

    A lesion whose centre lies at least ``margin_mm`` inside every face of its patch is present: for its site and for
    "Aneurysm Present" the target is 1. One that lies nearer to a face, inside or outside, is cut: both are ignored,
    unless another lesion is surely there. One farther outside counts for nothing. A face of the volume cuts nothing.

    Parameters
    ----------
    lesions
        Of B patches.
    unknown
        (B, 14) bool: not known for other reasons. A lesion that is surely there overrides it.
    certain
        (B, 14) bool: present for other reasons, whatever the places of lesions.
    shape_zyx
        The patch's shape in voxels. Its faces are those of the outermost voxels, half a voxel beyond their centres.
    spacing_mm
        (z, y, x) of a voxel.
    margin_mm
        How much of a lesion has to be in view.

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

    sure = depths_mm(lesions.inner).amin(dim=1) >= margin_mm
    outside_mm = (-depths_mm(lesions.zyx)).clamp(min=0).norm(dim=1)
    cut = ~sure & (outside_mm < margin_mm)

    def any_of(which: Tensor) -> Tensor:
        counts = torch.zeros(unknown.shape, dtype=torch.float32, device=unknown.device)
        counts.index_put_((lesions.sample, lesions.site), which.float(), accumulate=True)
        counts[:, _PRESENT] = counts.sum(dim=1)
        return counts > 0

    present = any_of(sure) | certain
    return present.float(), (any_of(cut) | unknown) & ~present


def map_targets(
    lesions: BatchLesions,
    batch_size: int,
    shape_zyx: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    *,
    radius_mm: float,
    kind: Literal["sphere", "gaussian"] = "sphere",
    stride: int = 1,
) -> Tensor:
    """
    Return maps: a ball or a blob around each lesion, in the channel of its site and in the last, "Aneurysm Present".

    Where several meet, the largest value counts. Lesions outside the patch draw what reaches into it.

    Parameters
    ----------
    lesions
        Of B patches.
    batch_size
        B, the number of patches.
    shape_zyx
        The patch's shape in voxels.
    spacing_mm
        (z, y, x) of a voxel.
    radius_mm
        The ball's radius; the blob falls to one half there.
    kind
        "sphere" is 1 up to the radius, 0 beyond, and 1 in the cell nearest to the centre however coarse the cells
        are. "gaussian" is 1 at the centre, and is cut off at 3 standard deviations.
    stride
        Voxels per cell and axis: cell i has its centre at voxel ``stride * i + (stride - 1) / 2``.

    Returns
    -------
    Tensor
        (B, 14, ceil(Z / stride), ceil(Y / stride), ceil(X / stride)) float32, from 0 to 1.
    """
    device = lesions.zyx.device
    sigma_mm = radius_mm / math.sqrt(2 * math.log(2))
    reach_mm = radius_mm if kind == "sphere" else 3 * sigma_mm
    cells = tuple(-(-n // stride) for n in shape_zyx)
    # A box of one size around each lesion's nearest cell: no coordinate has to be read back from the device.
    index = torch.zeros(len(lesions), 1, 1, 1, dtype=torch.int64, device=device)
    square_mm, within, nearest = index.float(), index == 0, index == 0
    for axis, (n, mm) in enumerate(zip(cells, spacing_mm, strict=True)):
        half = math.ceil(reach_mm / (mm * stride))
        offset = torch.arange(-half, half + 1, device=device)
        centre = (lesions.zyx[:, axis, None] - (stride - 1) / 2) / stride
        cell = centre.round().long() + offset
        view = [-1, 1, 1, 1]
        view[axis + 1] = len(offset)
        square_mm = square_mm + ((cell - centre) * (mm * stride)).square().view(view)
        within = within & ((cell >= 0) & (cell < n)).view(view)
        nearest = nearest & (offset == 0).view([1, *view[1:]])
        index = index * n + cell.clamp(0, n - 1).view(view)
    if kind == "sphere":
        value = ((square_mm <= radius_mm**2) | nearest).float()
    else:
        value = torch.exp(square_mm / (-2 * sigma_mm**2)) * (square_mm <= reach_mm**2)
    value = (value * within).flatten()

    voxels = math.prod(cells)
    out = torch.zeros(batch_size * len(LABELS) * voxels, dtype=torch.float32, device=device)
    for label in (lesions.site, torch.full_like(lesions.site, len(LABELS) - 1)):
        first = ((lesions.sample * len(LABELS) + label) * voxels).view(-1, 1, 1, 1)
        out.scatter_reduce_(0, (first + index).flatten(), value, "amax")
    return out.view(batch_size, len(LABELS), *cells)
