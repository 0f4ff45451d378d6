"""Blur and thick slices: separable, so each is a small matrix along an axis of the patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aneurysm.patches.augment_draws import AugmentDraw


def lower_resolution(image: Tensor, draws: Sequence[AugmentDraw], spacing_mm: tuple[float, float, float]) -> Tensor:
    """
    Return (B, 1, Z, Y, X) blurred, and as if scanned in thick slices, where that was drawn; in place.

    Beyond the patch nothing is made up: at its faces weights are spread over the voxels that there are.
    """
    rows = [row for row, draw in enumerate(draws) if draw.blur_sigma_mm or draw.slice_mm]
    if not rows:
        return image
    index = torch.tensor(rows).to(image.device, non_blocking=True)
    z, y, x = (
        torch.from_numpy(np.stack([_along(draws[row], axis, n, spacing_mm[axis]) for row in rows]))
        .float()
        .to(image.device, non_blocking=True)
        for axis, n in enumerate(image.shape[2:])
    )
    chosen = image[index, 0]
    chosen = (z @ chosen.flatten(2)).view_as(chosen)
    image[index, 0] = y[:, None] @ chosen @ x[:, None].mT
    return image


def _along(draw: AugmentDraw, axis: int, n: int, spacing_mm: float) -> NDArray[Any]:
    """Return the (n, n) matrix of all that a draw does along one axis: blur, then slices."""
    matrix = np.eye(n)
    if draw.blur_sigma_mm:
        matrix = gaussian_matrix(n, draw.blur_sigma_mm / spacing_mm)
    if draw.slice_mm and axis == draw.slice_axis:
        matrix = slices_matrix(n, draw.slice_mm / spacing_mm, draw.slice_phase) @ matrix
    return matrix


def gaussian_matrix(n: int, sigma: float) -> NDArray[np.float64]:
    """Return (n, n): each row the weights of a Gaussian of ``sigma`` voxels; they sum to 1."""
    at = np.arange(n)
    # Below a tenth of a voxel the neighbours' weights are 0 anyway, and further below the exponent overflows.
    weights = np.exp(-0.5 * ((at[:, None] - at) / max(sigma, 0.1)) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def slices_matrix(n: int, thickness: float, phase: float) -> NDArray[np.float64]:
    """
    Return (n, n): averages over slices, side by side, and linear interpolation from their centres to the voxels.

    ``thickness`` is in voxels; the first slice begins ``phase`` (0 to 1) slices before the first voxel's face. Slices
    no thicker than a voxel change nothing.
    """
    if thickness <= 1:
        return np.eye(n)
    at = np.arange(n)
    first = -0.5 - phase * thickness
    centres = np.arange(first + thickness / 2, n - 0.5 + thickness / 2, thickness)
    upper = np.minimum(at + 0.5, centres[:, None] + thickness / 2)
    lower = np.maximum(at - 0.5, centres[:, None] - thickness / 2)
    average = (upper - lower).clip(min=0)
    seen = average.sum(axis=1) > 1e-6
    average, centres = average[seen], centres[seen]
    average /= average.sum(axis=1, keepdims=True)
    return np.stack([np.interp(at, centres, column) for column in average.T], axis=1)
