"""
Draws -> PictureGeometry: pictures of a batch flipped, turned, scaled, sheared and shifted.

A draw is of the head, in 3D, as for patches: each picture shows what of it lies in its plane. A left-right flip mirrors
axial and coronal pictures. A sagittal projection has no left and right, and stays as it is; sagittal slices trade
places. A stack of planes flipped as one picture would have left and right mirrored in two, front and back in the third.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from aneurysm.patches.augment_draws import AugmentDraw
from aneurysm.patches.views.view import Planes, grouped_by_plane, in_plane

_LEFT_RIGHT = 2


class PictureGeometry:
    """
    What happens to the pictures of a batch. There is no bending, which a projection could not show.

    Parameters
    ----------
    draws
        B of them.
    planes
        See `aneurysm.patches.views.view.Pictures`.
    spacing_mm
        (z, y, x) of a voxel.
    """

    def __init__(self, draws: Sequence[AugmentDraw], planes: Planes, spacing_mm: tuple[float, float, float]) -> None:
        self._draws, self._planes, self._spacing_mm = draws, planes, np.array(spacing_mm)

    def image(self, stored: Tensor, fill: Tensor) -> Tensor:
        """Return (B, C, K, Y, X) float32 of stored integers; ``fill`` (B,) is what lies outside."""
        out = stored.to(torch.float32, copy=True)
        moved = [row for row, draw in enumerate(self._draws) if draw.affine_mm is not None]
        flipped = [row for row, draw in enumerate(self._draws) if draw.affine_mm is None and any(draw.flips)]
        for (axis, _), members in grouped_by_plane(self._planes).items():
            channels, pictures = zip(*members, strict=True)
            for row in (*flipped, *moved):
                if self._draws[row].flips[axis]:  # across the pictures: they trade places
                    out[row, channels, pictures] = out[row, channels[::-1], pictures[::-1]]
            for row in flipped:
                dims = [1 + k for k, a in enumerate(in_plane(axis)) if self._draws[row].flips[a]]
                if dims:
                    out[row, channels, pictures] = out[row, channels, pictures].flip(dims)
            if moved:
                rows = torch.tensor(moved).to(out.device, non_blocking=True)
                # grid_sample pads with 0, so air has to be 0 meanwhile.
                air = fill[rows, None, None, None]
                there = (rows[:, None], torch.tensor(channels), torch.tensor(pictures))
                out[there] = self._sampled(out[there] - air, axis, moved) + air
        return out

    def _sampled(self, pictures: Tensor, axis: int, rows: Sequence[int]) -> Tensor:
        """Return (R, N, Y, X) pictures across ``axis`` as the draws of ``rows`` move them."""
        plane = list(in_plane(axis))
        lengths = np.array(pictures.shape[2:]) * self._spacing_mm[plane]
        back = []
        for row in rows:
            draw = self._draws[row]
            assert draw.affine_mm is not None
            flips = np.where(np.array(draw.flips)[plane], -1.0, 1.0)
            # q = F (A p + t), so p = inverse(A) (F q - t); in units of half the picture's length, (x, y) in order.
            inverse = np.linalg.inv(draw.affine_mm[np.ix_(plane, plane)])
            linear = inverse * flips * lengths / lengths[:, None]
            shift = -2 * (inverse @ np.array(draw.shift_mm)[plane]) / lengths
            back.append(np.concatenate([linear[::-1, ::-1], shift[::-1, None]], axis=1))
        theta = torch.tensor(np.stack(back), dtype=torch.float32).to(pictures.device, non_blocking=True)
        grid = affine_grid(theta, list(pictures.shape), align_corners=False)
        return grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def picture_spacing(planes: Planes, spacing_mm: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return (pictures, rows, columns) in mm; pictures lie so far apart that nothing blurs one into the next."""
    row, column = (spacing_mm[a] for a in in_plane(planes[0][0][0]))
    return 1e6, row, column


def mirrored_pictures(pictures: Tensor, planes: Planes) -> Tensor:
    """
    Return (B, C, K, Y, X) pictures, or maps of them, of the head mirrored left to right.

    Each row of ``planes`` stands for equally many channels, one after the other, as of several windows.
    """
    b, c, *rest = pictures.shape
    out = pictures.reshape(b, len(planes), c // len(planes), *rest).clone()
    for (axis, _), members in grouped_by_plane(planes).items():
        channels, numbers = zip(*members, strict=True)
        if axis == _LEFT_RIGHT:
            out[:, channels, :, numbers] = out[:, channels[::-1], :, numbers[::-1]]
        else:
            out[:, channels, :, numbers] = out[:, channels, :, numbers].flip(-1)
    return out.flatten(1, 2)
