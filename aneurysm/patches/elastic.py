"""Coarse control points -> a smooth displacement, by cubic B-splines: on a whole grid, or at single points."""

from __future__ import annotations

import torch
from torch import Tensor


def controls_shape(
    shape_zyx: tuple[int, int, int], spacing_mm: tuple[float, float, float], distance_mm: float
) -> tuple[int, int, int]:
    """Return how many control points ``distance_mm`` apart a patch needs: one before it and two behind included."""
    z, y, x = (int((n - 1) * mm / distance_mm) + 4 for n, mm in zip(shape_zyx, spacing_mm, strict=True))
    return z, y, x


def displacement_on_grid(
    controls: Tensor, shape_zyx: tuple[int, int, int], spacing_mm: tuple[float, float, float], distance_mm: float
) -> Tensor:
    """
    Return (B, 3, Z, Y, X): the displacement of each voxel, in the units of ``controls``.

    Parameters
    ----------
    controls
        (B, 3, z, y, x): displacement of the control points along (z, y, x).
    shape_zyx, spacing_mm
        Of the patch.
    distance_mm
        From one control point to the next.
    """
    z, y, x = (
        _weights(torch.arange(n, dtype=torch.float32, device=controls.device) * (mm / distance_mm), size)
        for n, mm, size in zip(shape_zyx, spacing_mm, controls.shape[2:], strict=True)
    )
    # From the coarsest to the finest: the full size is reached only in the last step.
    bent = torch.einsum("bczyx,kz->bckyx", controls, z)
    bent = torch.einsum("bczyx,ky->bczkx", bent, y)
    return torch.einsum("bczyx,kx->bczyk", bent, x)


def displacement_at(
    controls: Tensor, zyx: Tensor, spacing_mm: tuple[float, float, float], distance_mm: float
) -> Tensor:
    """
    Return (L, 3): the displacement at L points, the same that `displacement_on_grid` gives the voxels.

    Parameters
    ----------
    controls
        (L, 3, z, y, x): the control points of each point's patch.
    zyx
        (L, 3) voxel coordinates. Outside the patch the displacement is that of the nearest point on its faces.
    spacing_mm, distance_mm
        As in `displacement_on_grid`.
    """
    z, y, x = (
        _weights(at * (mm / distance_mm), size)
        for at, mm, size in zip(zyx.unbind(1), spacing_mm, controls.shape[2:], strict=True)
    )
    return torch.einsum("lczyx,lz,ly,lx->lc", controls, z, y, x)


def _weights(at: Tensor, size: int) -> Tensor:
    """Return (N, size): the weight of each control point at N places, in distances from the second control point."""
    away = (at.clamp(0, size - 3)[:, None] - torch.arange(-1, size - 1, device=at.device)).abs()
    near = 2 / 3 - away**2 + away**3 / 2
    return torch.where(away < 1, near, (2 - away).clamp(min=0) ** 3 / 6)
