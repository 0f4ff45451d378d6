"""Lesion coordinates -> dense targets, drawn on the device that they are on."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from aneurysm.labels import LABELS


def lesion_map(
    lesion_sample: Tensor,
    lesion_site: Tensor,
    lesion_zyx: Tensor,
    batch_size: int,
    shape_zyx: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    *,
    radius_mm: float,
    kind: Literal["sphere", "gaussian"] = "sphere",
    stride: int = 1,
) -> Tensor:
    """
    Draw a ball or a blob around each lesion, in the channel of its site and in the last, "Aneurysm Present".

    Where several meet, the largest value counts. Lesions outside the patch draw what reaches into it.

    Parameters
    ----------
    lesion_sample, lesion_site
        (L,) int64: each lesion's patch, and its index into `aneurysm.labels.SITES`.
    lesion_zyx
        (L, 3) float: voxel coordinates in the patch, whole numbers being voxel centres.
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
    device = lesion_zyx.device
    sigma_mm = radius_mm / math.sqrt(2 * math.log(2))
    reach_mm = radius_mm if kind == "sphere" else 3 * sigma_mm
    cells = tuple(-(-n // stride) for n in shape_zyx)
    # A box of one size around each lesion's nearest cell: no coordinate has to be read back from the device.
    index = torch.zeros(len(lesion_zyx), 1, 1, 1, dtype=torch.int64, device=device)
    square_mm, within, nearest = index.float(), index == 0, index == 0
    for axis, (n, mm) in enumerate(zip(cells, spacing_mm, strict=True)):
        half = math.ceil(reach_mm / (mm * stride))
        offset = torch.arange(-half, half + 1, device=device)
        centre = (lesion_zyx[:, axis, None] - (stride - 1) / 2) / stride
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
    for label in (lesion_site, torch.full_like(lesion_site, len(LABELS) - 1)):
        first = ((lesion_sample * len(LABELS) + label) * voxels).view(-1, 1, 1, 1)
        out.scatter_reduce_(0, (first + index).flatten(), value, "amax")
    return out.view(batch_size, len(LABELS), *cells)
